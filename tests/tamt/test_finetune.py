"""Fine-tuning end to end on tiny models: zeros stay zero, learning works, best and final are told apart."""

import json
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    pipeline,
)

from tamt.commands.predict import predict
from tamt.data import assets as demo
from tamt.data.rows import Rows
from tamt.finetuning.batches import bucketed
from tamt.finetuning.classification import Classification, encode
from tamt.finetuning.finetune import finetune
from tamt.masks.file import MaskInfo, digest_of, load_masks, load_packed, save_masks
from tamt.masks.masking import apply_masks, magnitude_masks, packed_masks, prunable_weights
from tamt.models.task_models import load_classifier
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError
from tamt.training.checkpoint import read_checkpoint
from tamt.training.loss_scale import NonFiniteError
from tamt.training.optimizer import make_optimizer
from tamt.training.run_folder import RunFolder
from tamt.training.steps import Stepper

SENTENCES = ["the {} dog sees a house", "a {} cat finds the river by the road", "{} fish", "the bird hears a {} tree"]
SETTINGS = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "eval_every": 3}


def write_rows(path: Path, rows: int) -> Path:
    """Sentences with `new` are good, those with `old` bad."""
    lines = []
    for i in range(rows):
        word, label = [("new", "good"), ("old", "bad")][i % 2]
        lines.append(f"{SENTENCES[i // 2 % len(SENTENCES)].format(word)}\t{label}\n")
    path.write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, object]:
    """Options that name 32 train rows and 16 dev rows."""
    return {
        "task": "classification",
        "train_file": write_rows(tmp_path / "train.tsv", 32),
        "dev_file": write_rows(tmp_path / "dev.tsv", 16),
        "text_column": ["text"],
    }


@pytest.fixture
def mask(tiny_bert: Path, tmp_path: Path) -> Path:
    """The file of an OMP mask of tiny BERT at 70 %."""
    return write_mask(tiny_bert, tmp_path / "mask.safetensors")


def write_mask(model: Path, path: Path) -> Path:
    masks = magnitude_masks(prunable_weights(load_classifier(str(model), ["a", "b"])), 0.7)
    save_masks(path, masks, MaskInfo(str(model), "omp", 0.7, seed=3, step=40))
    return path


def run(model: Path, output: Path, **options: object) -> dict:
    return finetune(model=str(model), output=output, **{**SETTINGS, **options})["results"][0]


def bits_of_pruned(model: torch.nn.Module, masks: dict[str, Tensor]) -> int:
    """How many bits are set in all pruned weights: 0 if every one is +0.0."""
    weights = prunable_weights(model)
    return sum(int(weights[name].detach()[~mask].view(torch.int32).count_nonzero()) for name, mask in masks.items())


def test_pruned_weights_are_zero_in_every_step_the_checkpoint_and_the_saved_model(
    tiny_bert: Path, files: dict, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, _ = load_masks(mask)
    counted = []
    take = Stepper.take

    def watched(stepper, *rest) -> Iterator:  # type: ignore[no-untyped-def]
        model, optimizer = stepper.model, stepper.optimizer
        for step in take(stepper, *rest):
            counted.append(bits_of_pruned(model, masks))
            moments = optimizer.state[prunable_weights(model)["encoder.layer.0.output.dense.weight"]]
            assert moments["exp_avg"].count_nonzero() > 0, "momentum is on"
            yield step

    monkeypatch.setattr(Stepper, "take", watched)
    checkpoints = []
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda self, step, state: checkpoints.append(state["model"]))
    result = run(tiny_bert, tmp_path / "run", mask=mask, weight_decay=0.1, save_every=2, **files)
    assert counted == [0] * 8
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert bits_of_pruned(saved, masks) == 0
    assert [
        int(state[f"bert.{name}"][~mask].count_nonzero()) for state in checkpoints for name, mask in masks.items()
    ] == [0] * (3 * len(masks))
    start = prunable_weights(load_classifier(str(tiny_bert), ["a", "b"]))
    for name, weight in prunable_weights(saved).items():
        changed = weight.detach()[masks[name]] != start[name].detach()[masks[name]]
        assert changed.float().mean() > 0.5 or "word_embeddings" in name, "the remaining weights train"
    assert (result["method"], result["sparsity"]) == ("omp", pytest.approx(0.7, abs=1e-3))
    assert (result["mask"], result["mask_seed"], result["mask_step"]) == (str(mask), 3, 40)
    assert result["mask_digest"] == digest_of(load_packed(mask))


@pytest.mark.parametrize("scale", [1, 10_000])  # with a loss of 1, and of 3 thousand million
def test_a_regression_of_ones_own_files_is_learned(scale: int, tiny_bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    rows = [
        f"{SENTENCES[i % 4].format(['new', 'old'][i // 4 % 2])},{[-2.5 * scale, 7 * scale][i // 4 % 2]}"
        for i in range(32)
    ]
    file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    files = {"train_file": file, "dev_file": file, "text_column": ["text"], "task": "regression"}
    result = run(tiny_bert, tmp_path / "run", **files, epochs=20)
    assert result["metric"] == "pearson"
    assert result["score"] > (0.9 if scale == 1 else 0.8)
    (first, *_) = map(json.loads, (tmp_path / "run" / "predictions.jsonl").open())
    assert first["label"] == -2.5 * scale
    assert isinstance(first["prediction"], float)


@pytest.mark.parametrize(
    ("chosen", "where"),
    [({}, "mean"), ({"recipe": "paper"}, "zero"), ({"recipe": "paper", "regression_start": "mean"}, "mean")],
)
def test_where_a_regression_starts(chosen: dict, where: str, tiny_bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.tsv"
    file.write_text("sentence\tlabel\n" + "".join(f"a new film\t{40 + i}\n" for i in range(9)), encoding="utf-8")
    files = {"train_file": file, "dev_file": file, "task": "regression", "epochs": 1, "lr": 1e-9} | chosen
    run(tiny_bert, tmp_path / "run", **files)
    predicted = [json.loads(line)["prediction"] for line in (tmp_path / "run" / "predictions.jsonl").open()]
    assert predicted == pytest.approx([44 if where == "mean" else 0] * 9, abs=3)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["regression_start"] == where


def test_a_regression_in_half_precision_answers_in_full(tiny_bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.tsv"
    rows = [f"{'a new film ' * (1 + i)}\t{205 + i / 10}\n" for i in range(9)]
    file.write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    files = {"train_file": file, "dev_file": file, "task": "regression", "epochs": 1, "lr": 1e-9}
    run(tiny_bert, tmp_path / "run", **files, precision="bf16")
    predict(str(tmp_path / "run"), file, tmp_path / "answers.jsonl", precision="bf16")
    for answers in (tmp_path / "run" / "predictions.jsonl", tmp_path / "answers.jsonl"):
        predicted = [json.loads(line)["prediction"] for line in answers.open()]
        assert len(set(predicted)) == 9  # bfloat16 has whole numbers alone here
        assert predicted == pytest.approx([205.4] * 9, abs=2)


def test_the_rate_rises_over_the_warm_up_and_falls_after_it(tiny_bert: Path, files: dict, tmp_path: Path) -> None:
    run(tiny_bert, tmp_path / "run", **files, epochs=5, lr=1e-3, warmup=0.4, log_every=1)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rates = [line["lr"] for line in logged if "lr" in line]
    steps = len(rates)
    rising = round(0.4 * steps)
    expected = [min(step / rising, (steps - step) / (steps - rising)) for step in range(1, steps + 1)]
    assert rates == pytest.approx([1e-3 * share for share in expected])


def test_a_head_that_cannot_start_at_the_mean_is_named(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.models.bert.modeling_bert.BertForSequenceClassification.__init__",
        partialmethod(without_bias, BertForSequenceClassification.__init__),
    )
    load_classifier(str(tiny_bert), None)
    with pytest.raises(UserError, match="has no bias that could start at the labels' mean; give --regression-start"):
        load_classifier(str(tiny_bert), None, start=2.7)


def without_bias(model: BertForSequenceClassification, make: Callable, config: BertConfig) -> None:
    make(model, config)
    model.classifier.bias = None


def test_the_gradient_of_pruned_weights_is_outside_the_norm(tiny_bert: Path) -> None:
    model = load_classifier(str(tiny_bert), ["a", "b"])
    masks = magnitude_masks(prunable_weights(model), 0.7)
    apply_masks(model, masks)
    optimizer, _ = make_optimizer(model.parameters(), 0.1, 10, pruned=packed_masks(model, masks))
    for _ in range(2):  # accumulated
        model(input_ids=torch.tensor([[2, 7, 8, 3]]), labels=torch.tensor([1])).loss.backward()
    everywhere = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.base_model.named_parameters()}
    kept = {f"bert.{name}": mask for name, mask in (everywhere | masks).items()}
    remaining = [p.grad[kept.get(name, ...)].flatten() for name, p in model.named_parameters()]
    expected = torch.cat(remaining).norm()
    torch.testing.assert_close(optimizer.step(scale=torch.ones(())), expected)
    for name, weight in prunable_weights(model).items():
        assert weight.grad is not None
        assert weight.grad[~masks[name]].count_nonzero() == 0
        assert weight.grad[masks[name]].count_nonzero() > 0
        assert weight[~masks[name]].count_nonzero() == 0


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_mpnet"])
def test_overfits_32_rows(name: str, files: dict, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    mask = write_mask(model, tmp_path / "mask.safetensors")
    result = run(
        model, tmp_path / "run", mask=mask, **{**files, "epochs": 30, "lr": 3e-3, "dev_file": files["train_file"]}
    )
    assert result["final_score"] >= 0.99
    assert result["train_samples"] == 32


def test_the_saved_model_answers_with_plain_transformers(tiny_bert: Path, files: dict, tmp_path: Path) -> None:
    result = run(tiny_bert, tmp_path / "run", **{**files, "epochs": 20, "dev_file": files["train_file"]})
    assert (result["method"], result["sparsity"], result["metric"]) == ("full", 0.0, "accuracy")
    assert [result[key] for key in ("mask", "mask_seed", "mask_step")] == [None] * 3
    folder = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "bad", 1: "good"}
    answer = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert [row["label"] for row in answer(["the new dog sees a house", "old fish"])] == ["good", "bad"]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"results": [result]}


def test_best_and_final_are_told_apart_and_the_best_is_saved(
    tiny_bert: Path, files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.75, 0.75, 0.625])
    snapshots = []

    evaluate_really = Classification.evaluate

    def evaluate(self: Classification) -> dict[str, float]:
        evaluate_really(self)
        snapshots.append(self.model.classifier.weight.detach().clone())
        score = next(scores)
        return {"accuracy": score, "other": 1 - score}

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    result = run(tiny_bert, tmp_path / "run", **{**files, "eval_every": 2, "epochs": 2})
    assert (result["score"], result["best_step"], result["final_score"]) == (0.75, 4, 0.625)
    assert result["dev"] == {"accuracy": 0.75, "other": 0.25}
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(saved.classifier.weight, snapshots[1])


def test_the_end_is_evaluated_once_even_between_two_evaluations(tiny_bert: Path, files: dict, tmp_path: Path) -> None:
    run(tiny_bert, tmp_path / "run", **{**files, "eval_every": 3, "epochs": 2})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev_accuracy" in line] == [3, 6, 8]


def test_same_seed_same_model_and_another_seed_another(
    tiny_bert: Path, files: dict, mask: Path, tmp_path: Path
) -> None:
    def trained(name: str, seed: int) -> dict[str, Tensor]:
        run(tiny_bert, tmp_path / name, mask=mask, seed=seed, train_samples=20, **files)
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "model").state_dict()

    first, again, other = trained("a", 1), trained("b", 1), trained("c", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_resumed_run_ends_as_the_unbroken_one(
    tiny_bert: Path, files: dict, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**files, "mask": mask, "save_every": 3, "epochs": 3}
    whole = run(tiny_bert, tmp_path / "whole", **options)
    evaluate = Classification.evaluate
    calls = []

    def interrupted(self: Classification) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_bert, tmp_path / "broken", **options)
    resumed = run(tiny_bert, tmp_path / "broken", resume=True, **options)
    for key in ("score", "best_step", "final_score"):
        assert resumed[key] == whole[key]
    models = [AutoModelForSequenceClassification.from_pretrained(tmp_path / n / "model") for n in ("whole", "broken")]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_is_that_of_the_best_score_whatever_was_found_before_a_resume(
    tiny_bert: Path, files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is broken off after a better model was saved, and does not find so good a one again."""
    scores, models, evaluate_really = iter([0.5, 0.9, None, *[0.4] * 9]), [], Classification.evaluate

    def evaluate(self: Classification) -> dict[str, float]:
        evaluate_really(self)
        models.append(self.model.classifier.weight.detach().clone())
        if (score := next(scores)) is None:
            raise KeyboardInterrupt
        return {"accuracy": score}

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    options = {**files, "eval_every": 2, "epochs": 3, "save_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bert, tmp_path / "run", **options)
    result = run(tiny_bert, tmp_path / "run", resume=True, **options)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").classifier.weight
    assert (result["score"], result["best_step"]) == (0.5, 2)
    assert torch.equal(saved, models[0])
    assert not list((tmp_path / "run").glob(".model*"))


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    tiny_bert: Path, files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Classification.loss
    calls = []

    def broken(self: Classification, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return {"loss": loss(self, batch)["loss"] * (float("nan") if len(calls) == 6 else 1.0)}

    monkeypatch.setattr(Classification, "loss", broken)
    with pytest.raises(NonFiniteError, match="step 6"):
        run(tiny_bert, tmp_path / "run", **files)
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-5.checkpoint")
    assert checkpoint["step"] == 5
    assert all(tensor.isfinite().all() for tensor in checkpoint["model"].values())


def test_the_demo_task_takes_the_snippets(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "snippets.tsv"
    rows = [f"{SENTENCES[i % 4].format(('old', 'new')[i % 2])}\t{i % 2}\n" for i in range(1100)]
    file.write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    monkeypatch.setattr(demo, "snippets_file", lambda: file)
    result = run(tiny_bert, tmp_path / "run", task="demo", train_samples=40)
    assert result["train_samples"] == 40


def test_a_checkpoint_with_a_head_gets_a_fresh_one(tiny_bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    load_classifier(str(tiny_bert), ["a", "b", "c"]).save_pretrained(tmp_path / "three")
    torch.manual_seed(1)
    two = load_classifier(str(tmp_path / "three"), ["a", "b"])
    torch.manual_seed(2)
    three = load_classifier(str(tmp_path / "three"), ["x", "y", "z"])
    assert two.classifier.weight.shape == (2, 32)
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path / "three")
    assert not torch.equal(three.classifier.weight, stored.classifier.weight)
    assert torch.equal(three.bert.pooler.dense.weight, stored.bert.pooler.dense.weight)
    assert torch.equal(
        three.bert.embeddings.word_embeddings.weight,
        BertForMaskedLM.from_pretrained(tiny_bert).bert.embeddings.word_embeddings.weight,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sst"}, "--task sst is not one of cola, .*; did you mean sst2"),
        ({"epochs": 0}, "--epochs 0 must be 1 or more"),
        ({"eval_every": 0}, "--eval-every 0 must be 1 or more"),
        ({"lr": 0.0}, "--lr 0 must be more than 0"),
        ({"warmup": 1.0}, "--warmup 1 must be at least 0 and less than 1"),
        ({"warmup": -0.1}, "--warmup -0.1 must be at least 0 and less than 1"),
        ({"regression_start": "mean"}, "--regression-start is for a regression, and classification is none"),
        ({"task": "stsb", "regression_start": "median"}, "--regression-start median is not one of auto, mean, zero"),
        ({"weight_decay": -1.0}, "--weight-decay -1 must be 0 or more and finite"),
        ({"weight_decay": float("nan")}, "--weight-decay nan must be 0 or more and finite"),
        ({"max_length": 33}, "--max-length 33 is more than the 32 tokens"),
        ({"max_length": 2}, "--max-length 2 leaves no room"),
        ({"train_samples": 33}, "--train-samples 33 is more than the 32 train rows"),
        ({"text_column": ["a", "b", "c"]}, "--text-column takes one column or two"),
        ({"text_column": ["body"]}, "there is no column 'body'"),
        ({"task": "sst2", "text_column": ["text"]}, "--text-column is for --task classification"),
        ({"mask": Path("absent.safetensors")}, r"there is no mask file absent\.safetensors"),
        ({"model": "/absent/model"}, "'/absent/model' is no folder"),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_written(
    options: dict, message: str, tiny_bert: Path, files: dict, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        finetune(**{"model": str(tiny_bert), "output": tmp_path / "run", **SETTINGS, **files, **options})
    assert not (tmp_path / "run").exists()


def test_a_mask_for_another_model_is_refused(tiny_bert: Path, files: dict, mask: Path, tmp_path: Path) -> None:
    masks, info = load_masks(mask)
    masks["encoder.layer.2.output.dense.weight"] = masks.pop("encoder.layer.1.output.dense.weight")
    save_masks(tmp_path / "other.safetensors", masks, info)
    with pytest.raises(UserError, match="for another model than BertForSequenceClassification"):
        run(tiny_bert, tmp_path / "run", mask=tmp_path / "other.safetensors", **files)


def test_a_folder_with_another_run_is_left_alone(tiny_bert: Path, files: dict, tmp_path: Path) -> None:
    run(tiny_bert, tmp_path / "run", **files)
    with pytest.raises(UserError, match="is not empty"):
        run(tiny_bert, tmp_path / "run", **files)
    with pytest.raises(UserError, match="is finished"):
        run(tiny_bert, tmp_path / "run", resume=True, **files)


def test_batches_hold_rows_of_like_length_and_every_row_once_an_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 1003)
    batches = bucketed(lengths, 8, np.random.default_rng(1))
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert sorted(len(batch) for batch in batches) == [3] + [8] * 125
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.15 * lengths.sum()
    assert bucketed(lengths, 8, np.random.default_rng(1)) == batches
    assert bucketed(lengths, 8, np.random.default_rng(2)) != batches
    assert {tuple(sorted(b)) for b in batches} != {
        tuple(sorted(b)) for b in bucketed(lengths, 8, np.random.default_rng(2))
    }


def test_pairs_have_token_types_for_bert_and_none_for_roberta(tiny_bert: Path, tiny_roberta: Path) -> None:
    rows = Rows([("the dog", "a cat sees the house"), ("fish", "birds")], [0, 1])
    for folder, names in (
        (tiny_bert, {"input_ids", "attention_mask", "token_type_ids"}),
        (tiny_roberta, {"input_ids", "attention_mask"}),
    ):
        model, tokenizer = load_classifier(str(folder), ["a", "b"]), load_tokenizer(str(folder))
        encoded = encode(rows, tokenizer, model, max_length=8)
        assert [set(feature) for feature in encoded.features] == [names] * 2
        assert encoded.lengths().tolist() == [8, 5]
        ids = encoded.features[0]["input_ids"]
        assert ids.count(tokenizer.sep_token_id) == 2, "the longer text loses tokens first"
        assert ids[1:3] == tokenizer("the dog", add_special_tokens=False)["input_ids"]


def test_bf16_trains_with_weights_in_fp32(tiny_bert: Path, files: dict, mask: Path, tmp_path: Path) -> None:
    run(tiny_bert, tmp_path / "run", mask=mask, precision="bf16", **files)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.float32}
    assert bits_of_pruned(saved, load_masks(mask)[0]) == 0
