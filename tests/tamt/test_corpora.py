"""Text becomes blocks and batches: complete, in a seeded order, the same on every resume."""

from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from tamt.data.corpora import dev_batches, load_corpus, load_dev_corpus, load_held_out, train_batches
from tamt.data.token_masking import TokenMasking
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError

REAL_TEXT = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(params=["tiny_bert", "tiny_roberta"])
def tokenizer(request):
    return load_tokenizer(str(request.getfixturevalue(request.param)))


def test_blocks_hold_every_token_once_between_special_tokens(tokenizer, corpus: Path) -> None:
    blocks = load_dev_corpus([str(corpus)], tokenizer, 16)
    everything = blocks.batch(range(len(blocks)))
    text = everything["input_ids"][~everything["special"]]
    lines = corpus.read_text(encoding="utf-8").splitlines()
    expected = [i for line in lines for i in tokenizer(line, add_special_tokens=False)["input_ids"]]
    assert text.tolist() == expected
    assert (everything["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert (everything["input_ids"][:-1, -1] == tokenizer.sep_token_id).all()


def test_the_last_block_is_padded(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sees a dog\n", encoding="utf-8")
    blocks = load_dev_corpus([str(tmp_path / "text.txt")], tokenizer, 5)
    last = blocks.batch([1])
    assert len(blocks) == 2
    assert last["attention_mask"].tolist() == [[1, 1, 1, 1, 0]]
    assert last["special"].tolist() == [[True, False, False, True, True]]
    assert last["input_ids"][0, -1] == tokenizer.pad_token_id


def test_a_tokenizer_may_drop_what_it_does_not_know(tmp_path: Path) -> None:
    letters = {letter: number for number, letter in enumerate(["[PAD]", "[CLS]", "[SEP]", *"вгдеж"])}
    rules = Tokenizer(models.BPE(letters, merges=[]))
    rules.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="[PAD]")
    (tmp_path / "text.txt").write_text("abc\nгде\n", encoding="utf-8")
    blocks = load_dev_corpus([str(tmp_path / "text.txt")], tokenizer, 5)
    assert (blocks.prefix, blocks.suffix) == ([1], [2])
    assert blocks.tokens.tolist() == [letters[letter] for letter in "где"]
    (tmp_path / "text.txt").write_text("abc\n", encoding="utf-8")
    with pytest.raises(UserError, match="knows nothing of the text"):
        load_dev_corpus([str(tmp_path / "text.txt")], tokenizer, 5)


def test_files_without_dev_text_lend_their_last_blocks(tokenizer, corpus: Path) -> None:
    train, dev = load_corpus([str(corpus)], None, tokenizer, 16)
    whole = load_dev_corpus([str(corpus)], tokenizer, 16)
    assert len(train) + len(dev) == len(whole)
    assert len(dev) == round(0.05 * len(whole))
    assert torch.equal(torch.cat([train.tokens, dev.tokens]), whole.tokens)


def test_what_is_only_measured_has_the_dev_text_of_what_is_trained(tokenizer, corpus: Path) -> None:
    for dev_corpus in (None, [str(corpus)]):
        _, dev = load_corpus([str(corpus)], dev_corpus, tokenizer, 16)
        assert torch.equal(load_held_out([str(corpus)], dev_corpus, tokenizer, 16).tokens, dev.tokens)
    assert len(load_held_out([], [str(corpus)], tokenizer, 16)) == len(dev)


def test_each_epoch_has_every_block_in_another_order(tokenizer, corpus: Path) -> None:
    blocks = load_dev_corpus([str(corpus)], tokenizer, 66)
    count = len(blocks) // 5 * 5
    blocks, _ = blocks.split(count)
    epochs = [
        torch.cat([batch["input_ids"] for batch in islice(train_batches(blocks, 5, seed, first), count // 5)])
        for seed, first in ((0, 0), (0, count // 5), (1, 0))
    ]
    assert len({tuple(map(tuple, epoch.tolist())) for epoch in epochs}) == 3
    assert len({tuple(sorted(map(tuple, epoch.tolist()))) for epoch in epochs}) == 1


def test_a_resumed_run_gets_the_batches_that_were_left(tokenizer, corpus: Path) -> None:
    blocks = load_dev_corpus([str(corpus)], tokenizer, 16)
    masking = TokenMasking(tokenizer.mask_token_id, len(tokenizer))
    alone = list(islice(train_batches(blocks, 7, 3, 0, masking), 200))
    resumed = list(islice(train_batches(blocks, 7, 3, 120, masking), 80))
    for left, right in zip(alone[120:], resumed, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_every_batch_is_masked_anew(tokenizer, corpus: Path) -> None:
    blocks, _ = load_dev_corpus([str(corpus)], tokenizer, 16).split(4)
    masking = TokenMasking(tokenizer.mask_token_id, len(tokenizer))
    first, second = islice(train_batches(blocks, 4, 0, 0, masking), 2)
    assert first["labels"].ne(-100).sum() != second["labels"].ne(-100).sum() or not torch.equal(
        first["labels"].sort().values, second["labels"].sort().values
    )


def test_dev_tokens_are_masked_the_same_whatever_the_batch_size(tokenizer, corpus: Path) -> None:
    blocks = load_dev_corpus([str(corpus)], tokenizer, 16)
    masking = TokenMasking(tokenizer.mask_token_id, len(tokenizer))
    small, large = (
        torch.cat([batch["input_ids"] for batch in dev_batches(blocks, size, 0, masking)]) for size in (3, 50)
    )
    other = torch.cat([batch["input_ids"] for batch in dev_batches(blocks, 50, 1, masking)])
    assert torch.equal(small, large)
    assert not torch.equal(small, other)


def test_bad_text_is_named(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (tmp_path / "short.txt").write_text("the cat\n", encoding="utf-8")
    for name, message in {"none": "no corpus file", "empty": "is empty", "latin": "not UTF-8.*byte 3"}.items():
        with pytest.raises(UserError, match=message):
            load_dev_corpus([str(tmp_path / f"{name}.txt")], tokenizer, 16)
    with pytest.raises(UserError, match="fills only one block"):
        load_corpus([str(tmp_path / "short.txt")], None, tokenizer, 16)
    with pytest.raises(UserError, match="leaves no room"):
        load_dev_corpus([str(tmp_path / "short.txt")], tokenizer, 2)


def test_wikitext_without_a_hub_says_what_to_do(tokenizer) -> None:
    with pytest.raises(UserError, match="wikitext-103 could not be fetched.*--corpus"):
        load_dev_corpus(["wikitext-103"], tokenizer, 16)


@pytest.mark.skipif(not REAL_TEXT.is_dir(), reason="the real data beside the project are not here")
def test_the_dev_text_of_the_paper(tiny_bert: Path) -> None:
    blocks = load_dev_corpus([str(REAL_TEXT / "wikitext-103" / "valid.txt")], load_tokenizer(str(tiny_bert)), 32)
    assert len(blocks.tokens) > 200_000


def test_wikitext_comes_from_the_hub_by_split_and_without_blank_lines(tokenizer, monkeypatch) -> None:
    asked = []

    def load_dataset(path: str, name: str, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        lines = {"train": ["", "the cat sees a dog", " \n"] * 20, "validation": ["a bird"]}
        return datasets.Dataset.from_dict({"text": lines[split]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, dev = load_corpus(["wikitext-103"], None, tokenizer, 8)
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1", split) for split in ("train", "validation")]
    assert len(train.tokens) == 20 * 5
    assert len(dev.tokens) == 2
