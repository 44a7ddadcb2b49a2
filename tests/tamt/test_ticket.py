"""Tickets from Python: what they know, and zeros that stay under any way of training."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

import tamt
from tamt.masks.masking import prunable_weights
from tamt.runtime.errors import UserError

SPARSITY = 0.7


@pytest.fixture
def model(tiny_bert: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)


@pytest.fixture
def ticket(model: PreTrainedModel) -> tamt.Ticket:
    return tamt.Ticket.magnitude(model, SPARSITY)


def revived(model: PreTrainedModel, ticket: tamt.Ticket) -> int:
    """How many pruned weights are not zero."""
    weights = prunable_weights(model)
    return sum(int((weights[name][~mask] != 0).sum()) for name, mask in ticket.masks.items())


def changed(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> bool:
    return all((weight != before[name]).any() for name, weight in prunable_weights(model).items())


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 28, (count, 8, 12), generator=generator)
    return [{"input_ids": ids, "labels": ids[:, 3] % 2} for ids in tokens]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 6, parts: int = 1) -> None:
    model.train()
    for number, batch in enumerate(batches(count)):
        (model(**batch).loss / parts).backward()
        if (number + 1) % parts == 0:
            optimizer.step()
            optimizer.zero_grad()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW with decay": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    "fused AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1, fused=True),
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9, nesterov=True),
    "Adafactor": lambda weights: torch.optim.Adafactor(weights, lr=1e-1),
    "RAdam": lambda weights: torch.optim.RAdam(weights, lr=1e-1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_under_any_optimizer(name: str, model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    train(model, OPTIMIZERS[name](model.parameters()))
    assert revived(model, ticket) == 0
    assert changed(model, before)


def test_zeros_stay_while_gradients_accumulate_and_are_scaled(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, parts=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in batches(3):
        scaler.scale(model(**batch).loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert revived(model, ticket) == 0


def test_zeros_stay_in_hugging_faces_trainer(model: PreTrainedModel, ticket: tamt.Ticket, tmp_path: Path) -> None:
    ticket.apply(model)
    rows = [{"input_ids": ids, "labels": int(ids[3]) % 2} for batch in batches(4) for ids in batch["input_ids"]]
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=5,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        save_steps=5,
        use_cpu=True,
    )
    Trainer(model, settings, train_dataset=rows).train()
    assert revived(model, ticket) == 0
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-5")
    assert revived(saved, ticket) == 0


def test_zeros_stay_after_a_copy_a_move_and_a_load(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ticket.apply(model)
    for assign in (False, True):
        model.load_state_dict(dense, assign=assign)
        assert revived(model, ticket) == 0
        train(model, torch.optim.SGD(model.parameters(), lr=1e-1))
        assert revived(model, ticket) == 0
    for each in (copy.deepcopy(model), model.to(torch.float64)):
        train(each, torch.optim.SGD(each.parameters(), lr=1e-1))
        assert revived(each, ticket) == 0


def test_a_pickled_model_keeps_its_zeros(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    train(read, torch.optim.SGD(read.parameters(), lr=1e-1))
    assert revived(read, ticket) == 0


def test_zeros_stay_in_a_compiled_model(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    compiled = torch.compile(model, backend="eager")
    train(compiled, torch.optim.SGD(model.parameters(), lr=1e-1), count=2)
    assert revived(model, ticket) == 0


def test_zeros_stay_under_sparse_gradients_of_the_embedding(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    model.get_input_embeddings().sparse = True
    words = model.get_input_embeddings().weight
    train(model, torch.optim.SGD(model.parameters(), lr=1e-1), count=3)
    assert words.grad is None
    model(**batches(1)[0]).loss.backward()
    assert words.grad is not None
    assert words.grad.is_sparse
    assert revived(model, ticket) == 0


DISTRIBUTED = """
import sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSequenceClassification
import tamt
dist.init_process_group("gloo")
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2)
ticket = tamt.Ticket.magnitude(model, 0.7)
ticket.apply(model)
shared = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
generator = torch.Generator().manual_seed(dist.get_rank())
for _ in range(4):
    ids = torch.randint(5, 28, (4, 12), generator=generator)
    shared(input_ids=ids, labels=ids[:, 3] % 2).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
weights = dict(model.base_model.named_parameters())
assert all((weights[name][~mask] == 0).all() for name, mask in ticket.masks.items())
dist.destroy_process_group()
"""


def test_zeros_stay_in_two_processes(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, tmp_path / "train.py", tiny_bert], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_ticket_that_is_removed_leaves_zeros_that_train(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    copied = copy.deepcopy(model)
    for each in (model, copied):
        ticket.remove(each)
        assert revived(each, ticket) == 0
        train(each, torch.optim.SGD(each.parameters(), lr=1e-1), count=2)
        assert revived(each, ticket) > 0


def test_a_model_takes_one_ticket(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    with pytest.raises(UserError, match="the model has no ticket"):
        ticket.remove(model)
    ticket.apply(model)
    with pytest.raises(UserError, match="has a ticket already"):
        ticket.apply(model)


def test_a_ticket_of_another_model_changes_nothing(ticket: tamt.Ticket, tiny_mpnet: Path) -> None:
    other = AutoModelForSequenceClassification.from_pretrained(tiny_mpnet)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match="the mask is for another model"):
        ticket.apply(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_ticket_is_saved_and_loaded(ticket: tamt.Ticket, tmp_path: Path) -> None:
    ticket.save(tmp_path / "mask.safetensors")
    for path in (tmp_path, str(tmp_path), tmp_path / "mask.safetensors"):
        read = tamt.Ticket.load(path)
        assert read.info == ticket.info
        assert read.similarity(ticket) == 1
        assert all(torch.equal(mask, ticket.masks[name]) for name, mask in read.masks.items())


def test_what_a_ticket_knows(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    assert ticket.sparsity == pytest.approx(SPARSITY, abs=1e-3)
    assert set(ticket.sparsity_by_matrix()) == set(prunable_weights(model))
    for name, weight in prunable_weights(model).items():
        smallest_kept = weight.abs()[ticket.masks[name]].min()
        assert (weight.abs()[~ticket.masks[name]] <= smallest_kept).all()
    drawn = tamt.Ticket.random(model, SPARSITY, seed=1)
    # Of two random halves with a share k kept, k² is in both and 2k − k² in either.
    assert ticket.similarity(drawn) == pytest.approx(0.09 / 0.51, abs=0.05)
    assert tamt.Ticket.random(model, SPARSITY, seed=1).similarity(drawn) == 1
    assert "OMP, 69.9% of 17,280 pruned)" in repr(ticket)
    assert "seed 1)" in repr(drawn)


def test_a_notebook_shows_a_table_with_every_layer(ticket: tamt.Ticket) -> None:
    shown = ticket._repr_html_()
    assert "<th>layer 0</th>" in shown
    assert "<th>layer 1</th>" in shown
    assert shown.count("<span") == len(ticket.masks)
    assert "encoder.layer.1.output.dense.weight: 70" in shown


def test_what_is_no_model_name_is_shown_as_text(ticket: tamt.Ticket) -> None:
    object.__setattr__(ticket.info, "model", "<script>")
    assert "<script>" not in ticket._repr_html_()


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, float("nan")])
def test_a_sparsity_is_between_0_and_1(sparsity: float, model: PreTrainedModel) -> None:
    for make in (tamt.Ticket.magnitude, tamt.Ticket.random):
        with pytest.raises(UserError, match="is not between 0 and 1"):
            make(model, sparsity)


def test_import_tamt_imports_no_torch() -> None:
    code = "import sys, tamt; assert 'Ticket' in dir(tamt); assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Tickets'"):
        _ = tamt.Tickets


def test_a_frozen_weight_is_pruned_too(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    model.get_input_embeddings().weight.requires_grad_(False)
    ticket.apply(model)
    train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-1), count=2)
    model.get_input_embeddings().weight.requires_grad_(True)
    train(model, torch.optim.SGD(model.parameters(), lr=1e-1), count=2)
    assert revived(model, ticket) == 0
