"""What docs/families.md promises of each family of encoders, on tiny random models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tamt.commands.export import export
from tamt.finetuning.finetune import finetune
from tamt.masks.file import MaskInfo, load_masks, save_masks
from tamt.masks.masking import Masks, apply_masks, keep_of, magnitude_masks, prunable_modules, prunable_weights
from tamt.models.language_model import load_masked_language_model
from tamt.models.task_models import load_classifier, load_question_answerer
from tamt.runtime.errors import UserError
from tamt.search.imp import STAGES
from tamt.search.train import train
from tests.tamt.families import FAMILIES, PAGE, page, save_family

STEPS = {"tamt-kd": 2, "tamt-mlm": 2, "imp": STAGES}
ONE_SHOT = ("omp", "rand", "wanda")
DENSE = ("pooler", "embed", "contact_head", "cls")
"""What names of linear layers hold that are no matrix of the layers."""

each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, rows and questions that take no time."""
    folder = tmp_path_factory.mktemp("files")
    sentences = ["the old dog sees a red house by the river", "a small cat likes the new tree on a road"] * 12
    (folder / "text.txt").write_text("\n".join(sentences), encoding="utf-8")
    (folder / "rows.tsv").write_text("sentence\tlabel\nthe cat sees\tgood\nthe dog\tbad\n", encoding="utf-8")
    answers = [{"text": "old dog", "answer_start": 4}]
    paragraph = {"context": "The old dog sees.", "qas": [{"id": "1", "question": "The dog?", "answers": answers}]}
    for split in ("train", "dev"):
        content = {"version": "1.1", "data": [{"title": "a", "paragraphs": [paragraph]}]}
        (folder / f"{split}-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Masks]]:
    """The folder of a family's model, made once, and a mask file for it with its masks."""
    made: dict[str, tuple[Path, Path, Masks]] = {}

    def get(name: str) -> tuple[Path, Path, Masks]:
        if name not in made:
            folder = save_family(tmp_path_factory.mktemp(name), name)
            masks = magnitude_masks(prunable_weights(AutoModel.from_pretrained(folder)), 0.5)
            save_masks(folder / "mask.safetensors", masks, MaskInfo(str(folder), "omp", 0.5, seed=0, step=0))
            made[name] = folder, folder / "mask.safetensors", masks
        return made[name]

    return get


@each_family
def test_all_linear_layers_of_the_stacks_are_prunable(name: str, saved) -> None:
    encoder = AutoModel.from_pretrained(saved(name)[0])
    linear = {name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    dense = linear - prunable_modules(encoder).keys()
    assert all(any(part in each for part in DENSE) for each in dense), dense
    assert len(linear - dense) >= 4


def search(method: str, model: Path, output: Path, files: Path) -> dict:
    (row,) = train(
        method=method, model=str(model), output=output, corpus=[str(files / "text.txt")], sparsity=0.5,
        steps=STEPS.get(method), lr=None if method in ONE_SHOT else 0.02, batch_size=2, max_length=16, eval_blocks=1,
        log_every=100,
    )["results"][-1:]  # fmt: skip
    return row


@each_family
@pytest.mark.parametrize("method", ["omp", "rand", "wanda", "tamt-kd"])
def test_masks_are_found(name: str, method: str, saved, files: Path, tmp_path: Path) -> None:
    model, _, expected = saved(name)
    row = search(method, model, tmp_path / "run", files)
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert masks.keys() == expected.keys()
    assert all(int(mask.sum()) == keep_of(mask.numel(), 0.5) for mask in masks.values())
    assert 0 < row["kd_loss"] < 2
    assert all(torch.equal(masks[each], expected[each]) for each in masks) == (method == "omp")
    assert row.get("changed", 1) > 0


@each_family
def test_a_student_without_dropout_computes_the_same_in_training_and_evaluation(name: str, saved) -> None:
    encoder = load_masked_language_model(str(saved(name)[0]), need_head=False, dropout=False).encoder
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        evaluated = encoder.eval()(input_ids=ids)[0]
        trained = encoder.train()(input_ids=ids)[0]
    torch.testing.assert_close(trained, evaluated)


@each_family
@pytest.mark.parametrize("method", ["tamt-mlm", "imp"])
def test_an_mlm_head_that_is_known_trains_and_another_is_refused(name, method, saved, files, tmp_path: Path) -> None:
    model, _, expected = saved(name)
    if not FAMILIES[name].mlm:
        with pytest.raises(UserError, match=r"the MLM head of \w+ is not known here; choose a BERT"):
            search(method, model, tmp_path / "run", files)
        return
    row = search(method, model, tmp_path / "run", files)
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert masks.keys() == expected.keys()
    assert row["mlm_loss"] > 0


def check_pruned(kind: Any, tuned: Path, before: Path, masks: Masks) -> None:
    """The whole model is there; what the masks prune is zero, and of the rest something has been trained."""
    model, info = kind.from_pretrained(tuned, output_loading_info=True)
    assert not info["missing_keys"]
    found, dense = prunable_weights(model), prunable_weights(AutoModel.from_pretrained(before))
    assert all(weight[~masks[each]].count_nonzero() == 0 for each, weight in found.items())
    assert any(not torch.equal(weight[masks[each]], dense[each][masks[each]]) for each, weight in found.items())


@each_family
def test_a_subnetwork_is_fine_tuned(name: str, saved, files: Path, tmp_path: Path) -> None:
    model, mask, masks = saved(name)
    rows = files / "rows.tsv"
    finetune("classification", str(model), tmp_path / "run", mask, train_file=rows, dev_file=rows, epochs=1, lr=1e-3)
    check_pruned(AutoModelForSequenceClassification, tmp_path / "run" / "model", model, masks)


@each_family
def test_a_regression_starts_where_it_is_told(name: str, saved) -> None:
    model, tokens = load_classifier(str(saved(name)[0]), None, start=100.0).eval(), torch.tensor([[2, 5, 6, 3]])
    assert model(input_ids=tokens).logits.item() == pytest.approx(100, abs=10)


@each_family
def test_a_subnetwork_answers_questions(name: str, saved, files: Path, tmp_path: Path) -> None:
    model, mask, masks = saved(name)
    if not FAMILIES[name].questions:
        with pytest.raises(UserError, match="and transformers has no model of that kind that answers questions"):
            load_question_answerer(str(model))
        return
    finetune("squad", str(model), tmp_path / "run", mask, data_dir=files, epochs=1, lr=1e-3, max_length=32)
    check_pruned(AutoModelForQuestionAnswering, tmp_path / "run" / "model", model, masks)


@each_family
@torch.no_grad()
def test_the_export_computes_the_same_in_plain_transformers(name: str, saved, tmp_path: Path) -> None:
    model, mask, masks = saved(name)
    row = export(str(model), tmp_path / "out", mask)["results"][0]
    known = FAMILIES[name].mlm
    assert row["mlm_head"] == known
    kind = AutoModelForMaskedLM if known else AutoModel
    original, exported = (kind.from_pretrained(folder).eval() for folder in (model, tmp_path / "out"))
    if known:  # the decoder stays dense
        decoder = original.get_output_embeddings()
        decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    apply_masks(original, masks)
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")(["the old dog sees a cat"], return_tensors="pt")
    del inputs["token_type_ids"]  # which some families do not know
    assert torch.equal(original(**inputs)[0], exported(**inputs)[0])


def test_the_page_of_families_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.tamt.families writes it"
