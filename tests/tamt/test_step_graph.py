"""Steps from CUDA graphs, with a recorder that runs what it recorded anew at each replay, as no GPU is here.

Like a graph it reads the batches and the learning rates that lay in memory when it recorded.
"""

import inspect
import sys
from pathlib import Path

import pytest
import torch

from tamt.data.token_masking import IGNORED, TokenMasking, prepare
from tamt.finetuning.batches import pad
from tamt.finetuning.finetune import finetune
from tamt.masks.file import load_masks
from tamt.models.language_model import load_masked_language_model
from tamt.models.tokenizer import load_tokenizer
from tamt.objectives import Losses
from tamt.runtime.errors import UserError
from tamt.search.train import train
from tamt.training import step_graph
from tamt.training.step_graph import MOST, WARM_UP, StepGraph

CPU = torch.device("cpu")


class Recorder:
    """Stands in for the one that needs a GPU."""

    recorded = replayed = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def warm_up(self, run):
        return run()

    def record(self, run):
        Recorder.recorded += 1
        optimizer = inspect.getclosurevars(run).nonlocals["self"]._optimizer
        assert all(group.pop("capturable") for group in optimizer.param_groups)
        there = addresses(optimizer)

        def replay():
            assert addresses(optimizer) == there, "a graph would still change what was there"
            Recorder.replayed += 1
            return run()

        return replay


def addresses(optimizer: torch.optim.Optimizer) -> list[int]:
    """Where all that an optimizer changes lies."""
    state = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, torch.Tensor)]
    return [each.data_ptr() for each in (*(p for group in optimizer.param_groups for p in group["params"]), *state)]


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    monkeypatch.setattr(step_graph, "Recorder", Recorder)
    Recorder.recorded = Recorder.replayed = 0
    return Recorder


@pytest.fixture
def model(still: Path) -> str:
    """Without dropout, whose draws would differ if batches had other shapes."""
    return str(still)


@pytest.mark.parametrize("method", ["tamt-mlm", "tamt-mlm+kd", "imp"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_search_from_graphs_finds_the_same_mask(
    method, accumulation, model, corpus: Path, losses_of, tmp_path: Path, monkeypatch, recorder
) -> None:
    monkeypatch.setattr(step_graph, "_gpu_is_there", lambda: True)
    steps = 30 if method == "imp" else WARM_UP + 9  # of which IMP takes 18, and prunes after every third
    for graphs in (False, True):
        train(
            method, model, tmp_path / str(graphs), [str(corpus)], max_length=16, steps=steps, no_cuda_graphs=not graphs,
            accumulation=accumulation, batch_size=8, log_every=1,
        )  # fmt: skip
    first, second = (load_masks(tmp_path / str(graphs) / "mask.safetensors")[0] for graphs in (False, True))
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [losses_of(tmp_path / str(graphs)) for graphs in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert recorder.recorded == 1  # batches with more or fewer masked tokens have one shape
    assert recorder.replayed == len(losses[1]) - WARM_UP >= 9


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_fine_tuning_from_graphs_is_the_same(
    accumulation, model, cats_and_dogs, losses_of, tmp_path: Path, monkeypatch, recorder
) -> None:
    monkeypatch.setattr(step_graph, "_gpu_is_there", lambda: True)
    monkeypatch.setattr(sys.modules["tamt.finetuning.finetune"].processes, "parts_of_step", lambda *_: accumulation)
    scores = []
    for graphs in (False, True):
        found = finetune(
            "classification", model, tmp_path / str(graphs), **cats_and_dogs, epochs=2, batch_size=8, max_length=30,
            lr=1e-3, eval_every=20, log_every=1, no_cuda_graphs=not graphs,
        )  # fmt: skip
        scores.append(found["results"][0]["score"])
    assert scores[0] == scores[1]
    first, second = (losses_of(tmp_path / str(graphs)) for graphs in (False, True))
    assert first == pytest.approx(second, rel=1e-4)
    assert first[-1] < first[0] / 2
    assert 2 <= recorder.recorded <= 4 + 2  # the last batch of an epoch is smaller
    assert recorder.replayed > len(first) / 2


@pytest.mark.parametrize(
    ("longest", "few", "lengths"),
    [(128, True, {32, 64, 96, 128}), (30, True, {8, 16, 24, 30}), (6, True, {6}), (20, False, set(range(3, 21)))],
)
def test_batches_for_graphs_have_few_lengths(model, longest, few, lengths) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.model_max_length = longest
    found = set()
    for tokens in range(3, longest + 1):
        rows = [{"input_ids": [5] * length, "attention_mask": [1] * length} for length in (3, tokens)]
        batch = pad(tokenizer, rows, few)
        found.add(batch["input_ids"].shape[1])
        assert batch["attention_mask"].sum(1).tolist() == [3, tokens]
        assert (batch["input_ids"] == tokenizer.pad_token_id).equal(batch["attention_mask"] == 0)
    assert found == lengths


def stepper() -> tuple[StepGraph, torch.nn.Parameter, torch.optim.SGD]:
    """Steps whose gradient is the sum of their batches."""
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def take(batches):
        loss = sum((weight * batch["x"].sum() for batch in batches), torch.zeros(()))
        loss.backward()
        norm = weight.grad.norm()
        with torch.no_grad():
            weight.sub_(weight.grad * optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        return {"loss": loss.detach()}, norm

    return StepGraph(take, optimizer, CPU), weight, optimizer


def batch(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.tensor(values)}]


def test_a_graph_reads_the_batch_and_the_learning_rate_of_its_step(recorder) -> None:
    step, weight, optimizer = stepper()
    norms = []
    for i in range(WARM_UP + 3):
        optimizer.param_groups[0]["lr"] = 0.5**i
        norms.append(step(batch(float(i)))[1])
    assert weight.item() == -sum(i * 0.5**i for i in range(WARM_UP + 3))
    assert [norm.item() for norm in norms] == list(range(WARM_UP + 3))  # none is written over by a later step
    assert optimizer.param_groups[0]["lr"] == 0.5 ** (WARM_UP + 2)
    assert isinstance(optimizer.param_groups[0]["lr"], float)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_only_so_many_shapes_are_recorded(recorder) -> None:
    step, weight, _ = stepper()
    for _ in range(WARM_UP + 1):
        for size in range(1, MOST + 2):
            step(batch(*[1.0] * size))
    assert (recorder.recorded, recorder.replayed) == (MOST, MOST)
    assert weight.item() == -(WARM_UP + 1) * sum(range(1, MOST + 2))


def test_a_step_that_cannot_be_recorded_is_told(recorder, monkeypatch) -> None:
    def refuse(self, run):
        raise RuntimeError("it waits for the device\nfor good")

    monkeypatch.setattr(recorder, "record", refuse)
    step, weight, optimizer = stepper()
    for _ in range(WARM_UP):
        step(batch(1.0))
    with pytest.raises(UserError, match=r"cannot hold a step here \(it waits for the device\); give --no-cuda-graphs"):
        step(batch(1.0))
    assert weight.item() == -WARM_UP
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_masked_tokens_are_seldom_more_than_there_is_room_for() -> None:
    masking = TokenMasking(4, 28)
    assert masking.most(8192) == 1424  # of 1,229 on average, with a deviation of 32
    assert masking.most(4) == 4


def test_padding_of_the_positions_changes_no_loss(model) -> None:
    student = load_masked_language_model(model)
    ids = torch.randint(5, 28, (4, 12), generator=torch.Generator().manual_seed(0))
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "special": torch.zeros_like(ids).bool()}
    masked = TokenMasking(4, 28)(plain, torch.Generator().manual_seed(0))
    found = []
    for places in (0, 20):
        prepared = prepare(masked, places)
        loss = Losses({"mlm": 1.0}, student)(prepared)["loss"]
        student.model.zero_grad()
        loss.backward()
        head = [parameter.grad.clone() for parameter in student.head_parameters().values()]
        found.append((loss.detach(), *head))
        assert len(prepared["positions"]) == len(prepared["labels"]) == max(places, int(prepared["masked_tokens"]))
    assert (prepared["labels"] == IGNORED).sum() == 20 - prepared["masked_tokens"]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
