"""Tiny random models of encoder families, each in a folder with its tokenizer as a user would have it.

`FAMILIES` is what is promised to work; `python -m tests.tamt.families` writes its table into docs/families.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from tests.conftest import save_tokenizer

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = {**SIZES, "max_position_embeddings": 64, "pad_token_id": 0}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
MODERN = {**SPECIAL_IDS, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
BUCKETS = {**RELATIVE, "position_buckets": 16}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64, "embed_init_std": 0.2, **SPECIAL_IDS}
DEPTH = ("ffn", "layers")

Maker = Callable[..., Any]
"""Makes the model of a family with its MLM head; options are those of its configuration."""


def maker(name: str, sizes: Mapping[str, Any] = POSITIONS, head: str = "ForMaskedLM", **more: Any) -> Maker:
    """That of transformers' `{name}{head}` and `{name}Config`."""
    return lambda **options: getattr(tf, name + head)(getattr(tf, f"{name}Config")(**{**sizes, **more, **options}))


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        title: what it is called.
        make: makes a tiny model of it.
        mlm: whether its MLM head is known, which TAMT-MLM and IMP need.
        questions: whether transformers has a model of it that answers questions.
        inputs: what its tokenizer gives the model.
        between: what its tokenizer puts between the texts of a pair.
        shrinks: the kinds of groups that leave a smaller model of it; heads and hidden together, or each by itself.
    """

    title: str
    make: Maker
    mlm: bool = True
    questions: bool = True
    inputs: tuple[str, ...] = ("input_ids", "token_type_ids", "attention_mask")
    between: str = "[SEP]"
    shrinks: tuple[str, ...] = ("ffn", "layers", "heads+hidden")


FAMILIES: Mapping[str, Family] = {
    "bert": Family("BERT", maker("Bert")),
    "roberta": Family("RoBERTa", maker("Roberta")),
    "xlm-roberta": Family("XLM-RoBERTa", maker("XLMRoberta")),
    "camembert": Family("CamemBERT", maker("Camembert")),
    "distilbert": Family(
        "DistilBERT",
        maker("DistilBert", {}, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64),
    ),
    "electra": Family("ELECTRA", maker("Electra", embedding_size=16)),
    "mpnet": Family("MPNet", maker("MPNet"), shrinks=DEPTH),
    "deberta": Family("DeBERTa", maker("Deberta", **RELATIVE), shrinks=DEPTH),
    "deberta-v2": Family("DeBERTa v2", maker("DebertaV2", **BUCKETS, conv_kernel_size=3), shrinks=("ffn",)),
    "deberta-v3": Family("DeBERTa v3", maker("DebertaV2", **BUCKETS, share_att_key=True, norm_rel_ebd="layer_norm")),
    "nomic": Family(
        "Nomic BERT", maker("NomicBert"), questions=False, shrinks=("ffn", "layers", "heads+hidden", "heads", "hidden")
    ),
    "gte": Family("GTE", maker("Gte"), questions=False),
    "jina": Family("Jina v3", maker("JinaEmbeddingsV3")),
    "ernie": Family("ERNIE", maker("Ernie")),
    "megatron": Family("Megatron-BERT", maker("MegatronBert")),
    "roformer": Family("RoFormer", maker("RoFormer", embedding_size=16)),
    "convbert": Family("ConvBERT", maker("ConvBert", embedding_size=16), shrinks=DEPTH),
    "big-bird": Family("BigBird", maker("BigBird", block_size=4)),
    "longformer": Family("Longformer", maker("Longformer", attention_window=8, sep_token_id=3), between="[SEP] [SEP]"),
    "esm": Family("ESM", maker("Esm", mask_token_id=4), mlm=False, questions=False, shrinks=("ffn",)),
    "fnet": Family(
        "FNet",
        maker("FNet", {k: v for k, v in POSITIONS.items() if k != "num_attention_heads"}),
        inputs=("input_ids", "token_type_ids"),
        shrinks=DEPTH,
    ),
    "data2vec": Family("Data2Vec text", maker("Data2VecText")),
    "nystromformer": Family(
        "Nyströmformer",
        maker("Nystromformer", num_landmarks=16, segment_means_seq_len=16, conv_kernel_size=3),
        shrinks=DEPTH,
    ),
    "modernbert": Family("ModernBERT", maker("ModernBert", **MODERN), mlm=False, shrinks=("ffn", "heads+hidden")),
    "eurobert": Family(
        "EuroBERT",
        maker("EuroBert", **SPECIAL_IDS, num_key_value_heads=2),
        mlm=False,
        questions=False,
        shrinks=DEPTH,
    ),
    "mobilebert": Family(
        "MobileBERT",
        maker("MobileBert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
        mlm=False,
        shrinks=DEPTH,
    ),
    "xlm": Family("XLM", maker("XLM", XLM, "WithLMHeadModel"), mlm=False, shrinks=()),
    "flaubert": Family("FlauBERT", maker("Flaubert", XLM, "WithLMHeadModel", pad_index=0), mlm=False, shrinks=()),
    "albert": Family("ALBERT", maker("Albert", embedding_size=16, num_hidden_groups=1), mlm=False, shrinks=()),
}

OTHERS: Mapping[str, Maker] = {
    "llama": maker("Llama", **SPECIAL_IDS, num_key_value_heads=1, head="ForCausalLM"),
    "xlnet": maker("XLNet", {}, "LMHeadModel", d_model=32, n_layer=2, n_head=2, d_inner=64, pad_token_id=0),
    "funnel": maker("Funnel", {}, block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64),
    "t5": maker(
        "T5",
        {},
        "ForConditionalGeneration",
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    ),
    "bart": maker(
        "Bart",
        SPECIAL_IDS,
        "Model",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
    ),
}
"""Of other kinds, which nothing is promised of."""


def save_family(folder: Path, name: str, **options: Any) -> Path:
    """Write a random model of a family and its tokenizer into `folder`, which is returned."""
    family = FAMILIES[name] if name in FAMILIES else Family(name, OTHERS[name])
    vocabulary = save_tokenizer(
        folder, SPECIAL, "[CLS]", "[SEP]", family.between, model_input_names=list(family.inputs)
    )
    torch.manual_seed(0)
    model = family.make(vocab_size=vocabulary, initializer_range=0.2, **options)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):  # zero in a fresh model, never in a trained one
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def page() -> str:
    """The page of the documentation that lists the families."""
    rows = "\n".join(
        f"| {family.title} | yes | {'yes' if family.mlm else 'no'} | yes | {'yes' if family.questions else 'no'} | "
        f"{'with its MLM head' if family.mlm else 'without a head'} | {', '.join(family.shrinks) or 'no'} |"
        for family in FAMILIES.values()
    )
    return f"""# Encoders

{len(FAMILIES)} families of encoders work. Each is tested with a tiny random model: the searches and tasks of its row,
and an export that plain transformers opens with the same outputs (`tests/tamt/test_families.py`). Others whose
layers are `nn.Linear` under an `nn.Embedding` may work too.

| family | OMP, random, Wanda, TAMT-KD | TAMT-MLM, IMP | classification | SQuAD | `tamt export` | shrinks by |
|---|---|---|---|---|---|---|
{rows}

- Classification includes regression.
- TAMT-MLM and IMP train an MLM head: they need one whose layers TAMT knows, as BERT, RoBERTa, DistilBERT and ELECTRA
  have it.
- A [structured ticket](structured-tickets.md) of the kinds of groups in the last column makes a smaller model; heads
  and hidden are pruned together, at one sparsity. Heads alone become zeros where this column has heads+hidden.
- SQuAD needs a model of transformers that answers questions; some families have none.
- No code of a model's repository is executed, so a family works where transformers itself has it.

This page is written by `python -m tests.tamt.families`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
