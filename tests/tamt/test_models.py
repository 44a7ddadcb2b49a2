"""What of a checkpoint cannot be worked with is refused when it is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    ConvBertConfig,
    DistilBertConfig,
    ElectraConfig,
    EsmConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RemBertConfig,
)

import tamt
from tamt.models.language_model import load_masked_language_model
from tamt.models.loading import load_encoder
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError

SIZES = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}


def saved(folder: Path, config: PretrainedConfig) -> str:
    """The folder of a random model with an MLM head, whose biases are not zero either."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "config",
    [
        # Its decoder reads the transform through a second matrix.
        MobileBertConfig(**SIZES, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
        RemBertConfig(**SIZES, input_embedding_size=16, output_embedding_size=24),  # it has no `transform`
        EsmConfig(**SIZES, pad_token_id=0, mask_token_id=1),  # its bias is beside the decoder
        ModernBertConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    ],
    ids=lambda config: config.model_type,
)
def test_an_mlm_head_that_would_be_read_wrongly_is_refused(config: PretrainedConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the MLM head of \w+ForMaskedLM is not known here; choose a BERT"):
        load_masked_language_model(saved(tmp_path, config))


@pytest.mark.parametrize(
    "config",
    [
        DistilBertConfig(vocab_size=40, n_layers=2, n_heads=2, dim=32, hidden_dim=64),
        ElectraConfig(**SIZES, embedding_size=16),
        ConvBertConfig(**SIZES, embedding_size=16),
        MPNetConfig(**SIZES),
    ],
    ids=lambda config: config.model_type,
)
def test_a_known_mlm_head_gives_the_logits_of_the_model(config: PretrainedConfig, tmp_path: Path) -> None:
    heads = load_masked_language_model(saved(tmp_path, config))
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        logits = heads.decoder(heads.transform(heads.encoder(ids).last_hidden_state))
        torch.testing.assert_close(logits, heads.model(ids).logits)


def test_bert_and_roberta_are_known(tiny_bert: Path, tiny_roberta: Path) -> None:
    for folder in (tiny_bert, tiny_roberta):
        assert not load_masked_language_model(str(folder)).fresh_head


@pytest.fixture
def saved_tokenizer(tiny_bert: Path, tmp_path: Path) -> Callable[[str, str | None], str]:
    """Writes the tiny BERT's tokenizer, one of its special tokens changed, beside its configuration."""

    def save(special: str, token: str | None) -> str:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_bert)
        setattr(tokenizer, special, token)
        tokenizer.save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tiny_bert).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize(
    ("special", "token", "message"),
    [
        ("mask_token", None, "has no mask token; choose"),
        ("pad_token", None, "has no padding token; set"),
        ("pad_token", "[NEW]", "has ids up to 28, but the model's vocabulary ends at 27; give"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(special, token, message, saved_tokenizer) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(saved_tokenizer(special, token))


def test_no_mask_token_is_needed_where_nothing_is_masked(saved_tokenizer) -> None:
    assert load_tokenizer(saved_tokenizer("mask_token", None), masking=False).pad_token == "[PAD]"


def test_the_folder_of_a_run_is_not_a_model(tiny_bert: Path, tmp_path: Path) -> None:
    searched, fine_tuned = tmp_path / "search", tmp_path / "sst2"
    searched.mkdir()
    tamt.Ticket.magnitude(AutoModel.from_pretrained(tiny_bert), 0.5).save(searched / "mask.safetensors")
    AutoModel.from_pretrained(tiny_bert).save_pretrained(fine_tuned / "model")
    for load in (load_tokenizer, load_encoder):
        with pytest.raises(UserError, match="search holds a mask and no model; give it as --mask"):
            load(str(searched))
        with pytest.raises(UserError, match="sst2 is the folder of a run; give the model in it, .*sst2/model"):
            load(str(fine_tuned))
