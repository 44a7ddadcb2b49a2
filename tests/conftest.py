"""Tiny models and text that every test of `tamt` can train on in a second."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# No test reaches a hub or the user's caches; Hugging Face's libraries read these when they are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp(), "XDG_CACHE_HOME": tempfile.mkdtemp()}

# What is fastest here is no concern of a test: results must not depend on the machine or on what else it does.
os.environ.setdefault("TAMT_PRODUCTS", "eager")
os.environ.setdefault("TAMT_PRECISION", "fp32")
os.environ.setdefault("TAMT_SPARSE", "off")

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "tree",
    "house",
    "river",
    "road",
    "sees",
    "likes",
    "finds",
    "hears",
    "old",
    "new",
    "red",
    "blue",
    "small",
    "big",
    "in",
    "on",
    "by",
]


@pytest.fixture(autouse=True)
def _threads_of_torch() -> Iterator[None]:
    """A test that sets the number of threads leaves it as it was: two of a process that shares its core only wait."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 400 lines of random sentences."""
    generator = torch.Generator().manual_seed(0)
    lines = [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator).tolist()) for _ in range(400)
    ]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_tokenizer(
    folder: Path, special: dict[str, str], start: str, end: str, between: str | None = None, **options: object
) -> int:
    """Write a word-level tokenizer with its special tokens and other options; returns the size of the vocabulary.

    Between a pair is the end of one text if no other token is given.
    """
    vocabulary = {word: index for index, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {between or end} $B {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options).save_pretrained(folder)
    return len(vocabulary)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer BERT with an MLM head and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = save_tokenizer(folder, {**special, "mask_token": "[MASK]"}, "[CLS]", "[SEP]")
    torch.manual_seed(0)
    BertForMaskedLM(
        BertConfig(vocab_size=vocabulary, max_position_embeddings=32, initializer_range=0.2, **SIZES)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def still(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without dropout."""
    folder = tmp_path_factory.mktemp("still")
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForMaskedLM.from_pretrained(tiny_bert, **options).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer RoBERTa with an MLM head and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-roberta")
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    vocabulary = save_tokenizer(folder, {**special, "mask_token": "<mask>"}, "<s>", "</s>")
    torch.manual_seed(0)
    RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=34,
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            initializer_range=0.2,
            **SIZES,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_mpnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer MPNet and its tokenizer, without an MLM head, as sentence encoders have none."""
    folder = tmp_path_factory.mktemp("tiny-mpnet")
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    vocabulary = save_tokenizer(folder, {**special, "mask_token": "<mask>"}, "<s>", "</s>")
    torch.manual_seed(0)
    config = MPNetConfig(vocab_size=vocabulary, max_position_embeddings=34, initializer_range=0.2, **SIZES)
    MPNetModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def losses_of() -> Callable[[Path], list[float]]:
    """The training losses in the folder of a run, one a line of its metrics."""
    return lambda run: [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in row]


@pytest.fixture
def cats_and_dogs(tmp_path: Path) -> dict[str, Path]:
    """Files of a classification, 204 train rows and 16 dev rows of 4 to 29 tokens: those with a cat are good."""
    files = {}
    for name, rows in (("train_file", 204), ("dev_file", 16)):
        files[name] = tmp_path / f"{name}.tsv"
        kinds = [("cat", "good"), ("dog", "bad")]
        lines = [f"the {kinds[i % 2][0]}{' sees' * (i % 26)}\t{kinds[i % 2][1]}\n" for i in range(rows)]
        files[name].write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")
    return files
