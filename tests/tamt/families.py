"""Tiny random models of encoder families, each in a folder with its tokenizer as a user would have it."""

from collections.abc import Callable, Mapping
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

FAMILIES: Mapping[str, Callable[..., Any]] = {
    "bert": lambda **o: tf.BertForMaskedLM(tf.BertConfig(**POSITIONS | o)),
    "roberta": lambda **o: tf.RobertaForMaskedLM(tf.RobertaConfig(**POSITIONS | o)),
    "distilbert": lambda **o: tf.DistilBertForMaskedLM(
        tf.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, **o)
    ),
    "electra": lambda **o: tf.ElectraForMaskedLM(tf.ElectraConfig(**POSITIONS | {"embedding_size": 16} | o)),
    "deberta": lambda **o: tf.DebertaForMaskedLM(tf.DebertaConfig(**POSITIONS | RELATIVE | o)),
    "modernbert": lambda **o: tf.ModernBertForMaskedLM(tf.ModernBertConfig(**POSITIONS | MODERN | o)),
    "llama": lambda **o: tf.LlamaForCausalLM(
        tf.LlamaConfig(**POSITIONS | SPECIAL_IDS | {"num_key_value_heads": 1} | o)
    ),
    "eurobert": lambda **o: tf.EuroBertForMaskedLM(
        tf.EuroBertConfig(**POSITIONS | SPECIAL_IDS | {"num_key_value_heads": 2} | o)
    ),
    "mobilebert": lambda **o: tf.MobileBertForMaskedLM(
        tf.MobileBertConfig(
            **POSITIONS | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16} | o
        )
    ),
    "xlnet": lambda **o: tf.XLNetLMHeadModel(
        tf.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64, pad_token_id=0, **o)
    ),
    "funnel": lambda **o: tf.FunnelForMaskedLM(
        tf.FunnelConfig(block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64, **o)
    ),
    "t5": lambda **o: tf.T5ForConditionalGeneration(
        tf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, **o)
    ),
    "bart": lambda **o: tf.BartModel(
        tf.BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=64,
            **SPECIAL_IDS,
            **o,
        )
    ),
}
"""Makes the model of a family with its MLM head; options are those of its configuration."""


def save_family(folder: Path, family: str, **options: Any) -> Path:
    """Write a random model of a family and its tokenizer into `folder`, which is returned."""
    vocabulary = save_tokenizer(folder, SPECIAL, "[CLS]", "[SEP]")
    torch.manual_seed(0)
    model = FAMILIES[family](vocab_size=vocabulary, initializer_range=0.2, **options)
    model.save_pretrained(folder)
    return folder
