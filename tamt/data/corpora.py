"""Unlabelled text for the search: read, tokenised, cut into blocks, and shuffled by a seed."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tamt.data import assets as demo
from tamt.data.token_masking import TokenMasking
from tamt.runtime.errors import UserError, did_you_mean
from tamt.runtime.untrusted import check_pulled

if TYPE_CHECKING:
    import datasets

WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
HELD_OUT = 0.05
"""Share of the blocks used as dev text if no dev corpus is given."""


def _datasets() -> ModuleType:
    """The `datasets` library. It only reads text; training on blocks must work without it."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


@dataclass
class Blocks:
    """Text as blocks of one length: special tokens around consecutive tokens of the corpus, the last block padded.

    Attributes:
        tokens: the corpus without special tokens, int32 [n].
        length: tokens per block, special tokens included.
        prefix: token ids before the text of each block ([CLS]).
        suffix: token ids after it ([SEP]).
        padding: id of the padding token.
    """

    tokens: Tensor
    length: int
    prefix: list[int]
    suffix: list[int]
    padding: int

    @property
    def body(self) -> int:
        """Number of tokens of the corpus per block."""
        return self.length - len(self.prefix) - len(self.suffix)

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.body)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The blocks `indices` as `input_ids` and `attention_mask` (int64) and `special` (bool), [batch, length]."""
        ids = torch.full((len(indices), self.length), self.padding, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        special = torch.ones_like(ids, dtype=torch.bool)
        for row, index in enumerate(indices):
            text = self.tokens[index * self.body : (index + 1) * self.body]
            start = len(self.prefix)
            end = start + len(text)
            ids[row, :start] = torch.tensor(self.prefix)
            ids[row, start:end] = text
            ids[row, end : end + len(self.suffix)] = torch.tensor(self.suffix)
            attention[row, : end + len(self.suffix)] = 1
            special[row, start:end] = False
        return {"input_ids": ids, "attention_mask": attention, "special": special}

    def digest(self) -> str:
        """SHA-256 of the tokens and of how they are cut, as hexadecimal digits."""
        around = (self.length, self.padding, *self.prefix, -1, *self.suffix)
        digest = hashlib.sha256(np.array(around, dtype=np.int64).tobytes())
        digest.update(self.tokens.numpy().tobytes())
        return digest.hexdigest()

    def split(self, first: int) -> tuple["Blocks", "Blocks"]:
        """The first `first` blocks, and the others."""
        cut = first * self.body
        return (
            Blocks(self.tokens[:cut], self.length, self.prefix, self.suffix, self.padding),
            Blocks(self.tokens[cut:], self.length, self.prefix, self.suffix, self.padding),
        )


def load_corpus(
    corpus: Sequence[str],
    dev_corpus: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> tuple[Blocks, Blocks]:
    """Train and dev blocks of a corpus.

    Args:
        corpus: `["wikitext-103"]` (from the hub), `["demo"]`, or text files, one paragraph per line.
        dev_corpus: the same for the dev text. None: WikiText's validation split, the demo's held-out articles, or the
            last 5 % of the files' blocks.
        tokenizer: tokenizer of the model.
        max_length: tokens per block, special tokens included.

    Raises:
        UserError: a file is missing, empty or not UTF-8 text; the hub cannot be reached; the corpus is too short.
    """
    train = make_blocks(read_corpus(corpus, "train"), tokenizer, max_length)
    if dev_corpus is not None or _has_dev_text(corpus):
        return train, load_dev_corpus(dev_corpus or corpus, tokenizer, max_length)
    if len(train) < 2:
        raise UserError(
            f"the corpus {' '.join(corpus)} fills only one block of {max_length} tokens, so none is left for dev text; "
            "give more text, a smaller --max-length or a --dev-corpus"
        )
    return train.split(len(train) - max(1, round(len(train) * HELD_OUT)))


def load_held_out(
    corpus: Sequence[str],
    dev_corpus: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Blocks:
    """The dev blocks of `load_corpus`; the train text is read only if they are a part of it."""
    if dev_corpus is not None or _has_dev_text(corpus):
        return load_dev_corpus(dev_corpus or corpus, tokenizer, max_length)
    return load_corpus(corpus, None, tokenizer, max_length)[1]


def _has_dev_text(corpus: Sequence[str]) -> bool:
    return list(corpus) in (["wikitext-103"], ["demo"])


def load_dev_corpus(corpus: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Blocks:
    """The blocks of a dev text; see `load_corpus`."""
    return make_blocks(read_corpus(corpus, "validation"), tokenizer, max_length)


def read_corpus(corpus: Sequence[str], split: str) -> "datasets.Dataset":
    """The lines of a corpus, without blank ones, as a data set with the column `text`.

    Raises:
        UserError: see `load_corpus`.
    """
    if list(corpus) == ["wikitext-103"]:
        library = _datasets()
        try:
            lines = library.load_dataset(*WIKITEXT, split=split)
        except Exception as error:  # the hub's client raises almost anything when it is offline
            raise UserError(
                f"wikitext-103 could not be fetched from the hub ({type(error).__name__}); go online once, or give the "
                "text as files: --corpus train.txt --dev-corpus valid.txt"
            ) from error
        return lines.filter(lambda row: bool(row["text"].strip()))
    if list(corpus) == ["demo"]:
        train, dev = demo.corpus_files()
        return _read_files([train if split == "train" else dev])
    return _read_files([Path(file) for file in corpus])


def _read_files(files: Sequence[Path]) -> "datasets.Dataset":
    if not files:
        raise UserError("no corpus is given; give --corpus wikitext-103, demo or text files")
    lines: list[str] = []
    for file in files:
        if not file.is_file():
            named = ("wikitext-103", "demo")
            if str(file) in named:
                raise UserError(f"--corpus {file} stands alone; give it, or text files")
            hint = did_you_mean(file, named, "give text files, or --corpus wikitext-103 or demo")
            raise UserError(f"there is no corpus file {file}; {hint}")
        try:
            check_pulled(file)
            text = file.read_text(encoding="utf-8-sig")  # without a byte order mark
        except UnicodeDecodeError as error:
            raise UserError(
                f"the corpus file {file} is not UTF-8 text (byte {error.start}); convert it, with iconv for example"
            ) from error
        found = [line for line in text.splitlines() if line.strip()]
        if not found:
            raise UserError(f"the corpus file {file} is empty; give a file with text, one paragraph per line")
        lines += found
    return _datasets().Dataset.from_dict({"text": lines})


def make_blocks(lines: "datasets.Dataset", tokenizer: PreTrainedTokenizerBase, max_length: int) -> Blocks:
    """Tokenise the column `text` and cut it into blocks. `datasets` caches the tokens of a hub corpus.

    Raises:
        UserError: `max_length` is longer than the tokenizer's inputs or leaves no room for text; the tokenizer knows
            nothing of the text.
    """
    longest = tokenizer.model_max_length
    if max_length > longest:
        raise UserError(f"--max-length {max_length} is more than the {longest} tokens of its tokenizer; lower it")
    prefix, suffix = _around(tokenizer, lines)
    if max_length <= len(prefix) + len(suffix):
        raise UserError(f"--max-length {max_length} leaves no room for text beside the special tokens; raise it")

    def tokenise(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        # verbose=False: no warning about lines longer than the model takes, because they are cut into blocks below
        return {"ids": tokenizer(rows["text"], add_special_tokens=False, verbose=False)["input_ids"]}

    tokenised = lines.map(tokenise, batched=True, remove_columns=lines.column_names)
    columns = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in tokenised.data.column("ids").chunks]
    tokens = torch.from_numpy(np.concatenate(columns).astype(np.int32))
    return Blocks(tokens, max_length, prefix, suffix, tokenizer.pad_token_id)


def _around(tokenizer: PreTrainedTokenizerBase, lines: "datasets.Dataset") -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    # A tokenizer may drop what it does not know, and know no "a". The lines are read only then.
    for text in itertools.chain(["a"], (line["text"] for line in lines)):
        if tokens := tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            around = tokenizer(text, verbose=False)["input_ids"]
            start = around.index(tokens[0])
            return around[:start], around[start + len(tokens) :]
    raise UserError("the tokenizer of the model knows nothing of the text; give text in the language of the model")


def train_batches(
    blocks: Blocks, batch_size: int, seed: int, first: int, masking: TokenMasking | None = None
) -> Iterator[dict[str, Tensor]]:
    """Endless batches: every epoch has a new order, and every block new masked tokens.

    The block at position p of the endless sequence, and its masked tokens, depend on the blocks, `seed` and p only. So
    a resumed run continues exactly, and two batches of 8 are one of 16.

    Args:
        blocks: the corpus.
        batch_size: blocks per batch.
        seed: seed of the order and of the masked tokens.
        first: number of the first batch, from 0.
        masking: how tokens are masked for MLM; None for plain text.
    """
    epoch, order = -1, torch.empty(0)
    for number in itertools.count(first):
        positions = range(number * batch_size, (number + 1) * batch_size)
        indices = []
        for position in positions:
            if position // len(blocks) != epoch:
                epoch = position // len(blocks)
                order = torch.randperm(len(blocks), generator=_generator(seed, 0, epoch))
            indices.append(int(order[position % len(blocks)]))
        batch = blocks.batch(indices)
        yield _masked(batch, masking, [_generator(seed, 1, position) for position in positions]) if masking else batch


def dev_batches(
    blocks: Blocks, batch_size: int, seed: int, masking: TokenMasking | None = None, chosen: slice = slice(None)
) -> Iterator[dict[str, Tensor]]:
    """Every block once, in order; only the batches in the slice `chosen`.

    The masked tokens of a block depend on `seed` and its number only, not on the batch size, so that masks of weights
    are compared on the same tokens.
    """
    for start in range(0, len(blocks), batch_size)[chosen]:
        indices = range(start, min(start + batch_size, len(blocks)))
        batch = blocks.batch(indices)
        yield _masked(batch, masking, [_generator(seed, 2, index) for index in indices]) if masking else batch


def _masked(
    batch: dict[str, Tensor], masking: TokenMasking, generators: Sequence[torch.Generator]
) -> dict[str, Tensor]:
    rows = [
        masking({name: tensor[i : i + 1] for name, tensor in batch.items()}, generator)
        for i, generator in enumerate(generators)
    ]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _generator(seed: int, use: int, number: int) -> torch.Generator:
    # SeedSequence separates neighbouring seeds and numbers; with their sum, seed 1 would repeat the epochs of seed 0.
    state = np.random.SeedSequence((seed, use, number)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
