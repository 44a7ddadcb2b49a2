"""A run is not resumed after what it reads has changed: half of it would be trained on one text, half on another."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_squad import SETTINGS as QUESTIONS
from test_squad import row, squad, write
from transformers import AutoModel

import tamt
from tamt.data.digest import data_digest
from tamt.finetuning.finetune import finetune
from tamt.models.language_model import load_masked_language_model
from tamt.runtime.errors import UserError
from tamt.search.train import train

__all__ = ["squad"]  # a fixture


def interrupted(run: Callable[..., dict], patched: pytest.MonkeyPatch) -> None:
    """Begin a run and stop it after its first checkpoint."""

    def stop(self: object) -> None:
        raise KeyboardInterrupt

    with patched.context() as patch:
        for training in (
            "finetuning.loop.FineTuning",
            "search.mask_training.MaskTraining",
            "search.imp.IterativePruning",
        ):
            patch.setattr(f"tamt.{training}.after_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run()


def check_refused_until_restored(run: Callable[..., dict], file: Path, former: bytes) -> None:
    with pytest.raises(UserError, match=r"what the run in .*run reads has changed since it began"):
        run(resume=True)
    file.write_bytes(former)
    run(resume=True)


@pytest.mark.parametrize("changed", ["corpus", "dev_corpus"])
@pytest.mark.parametrize("method", ["tamt-kd", "imp"])
def test_a_search_resumes_on_the_same_text_only(
    method: str, changed: str, tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"corpus": tmp_path / "text.txt", "dev_corpus": tmp_path / "dev.txt"}
    former = corpus.read_text()
    for file in files.values():
        file.write_text(former)
    settings = {"max_length": 16, "steps": 20, "save_every": 5, "head_warmup_steps": 1}

    def run(resume: bool = False) -> dict:
        texts = {name: [str(file)] for name, file in files.items()}
        return train(method=method, model=str(tiny_bert), output=tmp_path / "run", resume=resume, **texts, **settings)

    interrupted(run, monkeypatch)
    files[changed].write_text(former + "the new dog sees a house\n")
    check_refused_until_restored(run, files[changed], former.encode())


@pytest.mark.parametrize("changed", ["train_file", "dev_file"])
def test_a_fine_tuning_resumes_on_the_same_rows_only(
    changed: str, tiny_bert: Path, cats_and_dogs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**cats_and_dogs, "task": "classification", "epochs": 2, "batch_size": 8, "lr": 1e-3, "save_every": 1}

    def run(resume: bool = False) -> dict:
        return finetune(model=str(tiny_bert), output=tmp_path / "run", resume=resume, **settings)

    interrupted(run, monkeypatch)
    file = Path(cats_and_dogs[changed])
    former = file.read_text()
    file.write_text("\n".join([*former.splitlines()[:-1], former.splitlines()[1]]) + "\n")  # as many rows as before
    assert file.read_text() != former
    check_refused_until_restored(run, file, former.encode())


@pytest.mark.parametrize("method", ["tamt-kd", "imp"])
def test_a_search_resumes_on_the_same_model_only(
    method: str, tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(tiny_bert, tmp_path / "model")

    def run(resume: bool = False) -> dict:
        settings = {"max_length": 16, "steps": 20, "save_every": 5, "head_warmup_steps": 1}
        output = tmp_path / "run"
        return train(method=method, model=str(model), corpus=[str(corpus)], output=output, resume=resume, **settings)

    interrupted(run, monkeypatch)
    file = model / "model.safetensors"
    former = file.read_bytes()
    weights = load_file(file)
    weights["bert.encoder.layer.0.output.dense.weight"][0, 0] += 1
    save_file(weights, file, {"format": "pt"})
    check_refused_until_restored(run, file, former)


@pytest.mark.parametrize("method", ["tamt-mlm", "imp"])
def test_a_search_resumes_with_the_same_head_only(
    method: str, tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [tmp_path / "head.safetensors", tmp_path / "other.safetensors"]
    model = load_masked_language_model(str(tiny_bert), need_head=True, dropout=False)
    for scale, head in zip((1.0, 2.0), heads, strict=True):
        save_file({name: scale * p.detach() for name, p in model.head_parameters().items()}, head)

    def run(resume: bool = False) -> dict:
        settings = {"max_length": 16, "steps": 20, "save_every": 5, "head": heads[0], "resume": resume}
        return train(method=method, model=str(tiny_bert), corpus=[str(corpus)], output=tmp_path / "run", **settings)

    interrupted(run, monkeypatch)
    former = heads[0].read_bytes()
    heads[0].write_bytes(heads[1].read_bytes())
    check_refused_until_restored(run, heads[0], former)


def test_a_fine_tuning_resumes_on_the_same_mask_only(
    tiny_bert: Path, cats_and_dogs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, mask = AutoModel.from_pretrained(tiny_bert), tmp_path / "mask.safetensors"
    tamt.Ticket.random(model, 0.5, seed=0).save(mask)
    settings = {**cats_and_dogs, "task": "classification", "epochs": 2, "batch_size": 8, "lr": 1e-3, "save_every": 1}

    def run(resume: bool = False) -> dict:
        return finetune(model=str(tiny_bert), mask=mask, output=tmp_path / "run", resume=resume, **settings)

    interrupted(run, monkeypatch)
    former = mask.read_bytes()
    tamt.Ticket.random(model, 0.5, seed=1).save(mask)
    check_refused_until_restored(run, mask, former)


def test_question_answering_resumes_on_the_same_answers_only(
    tiny_bert: Path, squad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(resume: bool = False) -> dict:
        settings = {**QUESTIONS, "epochs": 2, "save_every": 1}
        return finetune(model=str(tiny_bert), data_dir=squad, output=tmp_path / "run", resume=resume, **settings)

    interrupted(run, monkeypatch)
    file = squad / "train-v1.1.json"
    former = file.read_text()
    write(file, [row("the red cat sees a tree by the big road", "the cat", "tree", i) for i in range(32)])
    check_refused_until_restored(run, file, former.encode())


def test_the_digest_knows_where_a_row_and_a_table_end() -> None:
    tables = [[[[1, 2], [3]]], [[[1], [2, 3]]], [[[1, 2, 3]]], [[[1, 2]], [[3]]], [[[1, 2], [4]]], [[[1, 2], [3.5]]]]
    digests = [data_digest(parts) for parts in tables]
    assert len(set(digests)) == len(digests)
    assert data_digest([[[1, 2], [3]]]) == data_digest([iter([(1, 2), (3,)])])
