"""Tickets from Python: what they know, and zeros that stay under any way of training."""

import copy
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import tamt
import tamt_kernels as tk
from tamt.masks.masking import apply_masks, packed_masks, prunable_weights
from tamt.runtime.errors import UserError
from tamt.training.optimizer import make_optimizer

SPARSITY = 0.7
STEPS = 50
"""Of each way of training, after which no pruned weight may have come back."""


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


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = STEPS, parts: int = 1) -> None:
    model.train()
    for number, batch in enumerate(batches(count * parts)):
        (model(**batch).loss / parts).backward()
        if (number + 1) % parts == 0:
            optimizer.step()
            optimizer.zero_grad()


class EightBitAdam(torch.optim.Optimizer):
    """Adam with weight decay whose moments are int8 with a scale for each 64, read from `.grad`, written to `.data`."""

    def __init__(self, weights: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for weight in (weight for group in self.param_groups for weight in group["params"] if weight.grad is not None):
            state = self.state[weight]
            for name, decay, new in (("first", 0.9, weight.grad), ("second", 0.99, weight.grad**2)):
                before = self.dequantized(*state[name], weight) if name in state else torch.zeros_like(weight)
                state[name] = self.quantized(before.lerp(new, 1 - decay))
            moments = [self.dequantized(*state[name], weight) for name in ("first", "second")]
            rate = self.defaults["lr"]
            weight.data = weight.data * (1 - 0.1 * rate) - rate * moments[0] / (moments[1].clamp(min=0).sqrt() + 1e-6)

    @staticmethod
    def quantized(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = nn.functional.pad(values.flatten(), (0, -values.numel() % 64)).view(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-20) / 127
        return (blocks / scale).round().to(torch.int8), scale

    @staticmethod
    def dequantized(blocks: torch.Tensor, scale: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return (blocks * scale).flatten()[: like.numel()].view_as(like)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW with decay": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    "fused AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1, fused=True),
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9, nesterov=True),
    "Adafactor": lambda weights: torch.optim.Adafactor(weights, lr=1e-1),
    "RAdam": lambda weights: torch.optim.RAdam(weights, lr=1e-1),
    "8-bit Adam": lambda weights: EightBitAdam(weights, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_under_any_optimizer(name: str, model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    train(model, OPTIMIZERS[name](model.parameters()))
    assert revived(model, ticket) == 0
    assert changed(model, before)


def test_a_gradient_from_before_moves_no_pruned_weight(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)
    model(input_ids=torch.arange(8)[None], labels=torch.tensor([1])).loss.backward()
    ticket.apply(model)
    optimizer.step()
    assert revived(model, ticket) == 0


def test_zeros_stay_while_gradients_accumulate_and_are_scaled(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, parts=3)
    assert revived(model, ticket) == 0
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=10)
    for batch in batches(STEPS):
        with torch.autocast("cpu", torch.float16):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert revived(model, ticket) == 0


def test_zeros_stay_in_hugging_faces_trainer(model: PreTrainedModel, ticket: tamt.Ticket, tmp_path: Path) -> None:
    ticket.apply(model)
    trainer_of(model, tmp_path).train()
    assert revived(model, ticket) == 0
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert revived(saved, ticket) == 0


def trainer_of(model: PreTrainedModel, output: Path, *callbacks: TrainerCallback) -> Trainer:
    """A Trainer of `STEPS` steps, which saves at the end and logs twice."""
    rows = [{"input_ids": ids, "labels": int(ids[3]) % 2} for batch in batches(4) for ids in batch["input_ids"]]
    settings = TrainingArguments(
        output_dir=str(output),
        max_steps=STEPS,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        save_steps=STEPS,
        logging_steps=STEPS // 2,
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model, settings, train_dataset=rows, callbacks=list(callbacks))


def test_a_callback_applies_the_ticket_and_logs_the_sparsity(
    model: PreTrainedModel, ticket: tamt.Ticket, tmp_path: Path
) -> None:
    ticket.save(tmp_path / "mask.safetensors")
    trainer = trainer_of(model, tmp_path, tamt.TicketCallback(tmp_path / "mask.safetensors"))
    trainer.train()
    assert revived(model, ticket) == 0
    logged = [row["sparsity"] for row in trainer.state.log_history]
    assert len(logged) == 3
    assert logged == pytest.approx([ticket.sparsity] * 3, abs=1e-6)
    with pytest.raises(UserError, match="the model has another ticket than the callback"):
        trainer_of(model, tmp_path, tamt.TicketCallback(tamt.Ticket.random(model, 0.5))).train()


def test_a_callback_refuses_a_ticket_whose_zeros_are_a_part_of_the_models(model: PreTrainedModel, tmp_path) -> None:
    more, fewer = tamt.Ticket.magnitude(model, 0.8), tamt.Ticket.magnitude(model, 0.7)
    assert not more.is_applied(model)
    more.apply(model)
    assert more.is_applied(model)
    assert fewer.revived(model) == {}
    with pytest.raises(UserError, match="the model has another ticket than the callback"):
        trainer_of(model, tmp_path, tamt.TicketCallback(fewer)).train()


def test_a_ticket_that_prunes_more_matrices_is_not_applied(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    fewer = {name: mask for name, mask in ticket.masks.items() if "embeddings" not in name}
    tamt.Ticket.from_masks(fewer, ticket.info).apply(model)
    assert not ticket.is_applied(model)


class Reviving(TrainerCallback):
    """Sets a pruned weight from outside."""

    def on_step_end(self, args: object, state: object, control: object, model: PreTrainedModel, **_: object) -> None:
        model.get_input_embeddings().weight.data.fill_(1)


def test_a_callback_refuses_to_save_a_weight_that_came_back(
    model: PreTrainedModel, ticket: tamt.Ticket, tmp_path: Path
) -> None:
    pruned = sum(int((~mask).sum()) for name, mask in ticket.masks.items() if "embedding" in name)
    message = f"^{pruned} pruned weights are not zero at step 50, embeddings.word_embeddings.weight among them; "
    with pytest.raises(UserError, match=message):
        trainer_of(model, tmp_path, tamt.TicketCallback(ticket), Reviving()).train()


def test_zeros_stay_under_accelerate(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    prepared.train()
    for batch in batches(2 * STEPS):
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch).loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert revived(accelerator.unwrap_model(prepared), ticket) == 0
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_commands_keep_zeros_by_one_call_with_the_same_bits(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    other = copy.deepcopy(model)
    ticket.apply(other)
    apply_masks(model, ticket.masks)
    for trained, pruned in ((model, packed_masks(model, ticket.masks)), (other, [])):
        torch.manual_seed(0)
        optimizer, schedule = make_optimizer(trained.parameters(), 1e-2, STEPS, 0.1, pruned)
        trained.train()
        for batch in batches(STEPS):
            trained(**batch).loss.backward()
            optimizer.step(scale=torch.ones(()))
            schedule.step()
            optimizer.zero_grad()
        assert revived(trained, ticket) == 0
    weights = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, another) for one, another in weights)


def test_lora_is_merged_into_the_subnetwork(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    peft = pytest.importorskip("peft")
    ticket.apply(model)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    config = peft.LoraConfig(target_modules=["query", "value"], r=4, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model, config)
    train(adapted, torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2))
    added = {
        name.removeprefix("bert.") + ".weight": module.get_delta_weight("default").detach()
        for name, module in adapted.get_base_model().named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for look in (ticket.revived, ticket.sparsity_of, ticket.apply, ticket.is_applied):
        with pytest.raises(UserError, match="has adapters of peft around its matrices; apply a ticket before"):
            look(adapted)
    merged = ticket.merge_lora(adapted)
    assert len(added) == 4
    for name, weight in prunable_weights(merged).items():
        mask = ticket.masks[name]
        wanted = before[name] + added[name] * mask if name in added else before[name]
        assert torch.equal(weight, wanted)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    for weight in merged.parameters():
        weight.requires_grad_(True)
    train(merged, torch.optim.SGD(merged.parameters(), lr=1e-1), count=5)
    assert revived(merged, ticket) == 0
    with pytest.raises(UserError, match="has no LoRA adapters"):
        ticket.merge_lora(merged)


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
    train(compiled, torch.optim.SGD(model.parameters(), lr=1e-1))
    assert revived(model, ticket) == 0


def test_zeros_stay_in_a_compiled_copy(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    copied = copy.deepcopy(model)
    train(torch.compile(copied, backend="eager"), torch.optim.SGD(copied.parameters(), lr=1e-1))
    assert revived(copied, ticket) == 0


def test_a_copy_with_a_ticket_can_be_exported(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model.eval())
    ids = batches(1)[0]["input_ids"]
    exported = torch.export.export(copy.deepcopy(model), (ids,)).module()
    assert torch.equal(exported(ids).logits, model(ids).logits)


def test_zeros_stay_in_a_compiled_model_that_is_unfrozen(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    model.base_model.requires_grad_(False)
    ticket.apply(model)
    compiled = torch.compile(model, backend="eager")
    train(compiled, torch.optim.SGD(model.parameters(), lr=1e-1))
    model.requires_grad_(True)
    train(compiled, torch.optim.SGD(model.parameters(), lr=1e-1))
    assert revived(model, ticket) == 0


def test_tensors_may_stand_in_for_the_weights(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    parameters = {name: parameter * 1 for name, parameter in model.named_parameters()}
    batch = batches(1)[0]
    torch.func.functional_call(model, parameters, kwargs=batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-1).step()
    assert revived(model, ticket) == 0


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_with_a_ticket_may_run_sparse(frozen: bool, model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    model.requires_grad_(not frozen)
    ticket.apply(model.eval())
    dense = model.state_dict()
    expected = model(**model.dummy_inputs).logits
    tk.sparsify(model, at_least=0)
    state = model.state_dict()
    assert torch.allclose(model(**model.dummy_inputs).logits, expected, atol=1e-6)
    model.load_state_dict(state)
    assert torch.allclose(copy.deepcopy(model)(**model.dummy_inputs).logits, expected, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"Missing key.*mask"):
        model.load_state_dict(dense)


def test_what_stays_dense_beside_sparse_matrices_keeps_its_zeros(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    ticket.apply(model)
    tk.sparsify(model.base_model.encoder, at_least=0)
    model = copy.deepcopy(model)
    words = model.get_input_embeddings()
    train(model, torch.optim.SGD(model.parameters(), lr=1e-1), count=3)
    assert not words.weight[~ticket.masks["embeddings.word_embeddings.weight"]].any()


@pytest.mark.parametrize("copied", [True, False])
def test_a_matrix_that_is_resized_under_its_ticket_is_named(
    copied: bool, model: PreTrainedModel, ticket: tamt.Ticket
) -> None:
    ticket.apply(model)
    model.resize_token_embeddings(40)
    model = copy.deepcopy(model) if copied else model
    with pytest.raises(UserError, match=r"word_embeddings\.weight has \[40, 32\] entries.*; resize the model first"):
        train(model, torch.optim.SGD(model.parameters(), lr=1e-1), count=1)


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
from contextlib import nullcontext
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
for step in range(100):
    ids = torch.randint(5, 28, (4, 12), generator=generator)
    with shared.no_sync() if step % 2 == 0 else nullcontext():
        shared(input_ids=ids, labels=ids[:, 3] % 2).loss.backward()
    if step % 2:
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


def test_zeros_are_not_looked_for_in_another_model(ticket: tamt.Ticket, tiny_mpnet: Path) -> None:
    other = AutoModel.from_pretrained(tiny_mpnet)
    for look in (ticket.revived, ticket.sparsity_of, ticket.is_applied):
        with pytest.raises(UserError, match="the mask is for another model"):
            look(other)


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


def test_a_ticket_is_not_saved_as_a_file_of_torch(ticket: tamt.Ticket, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"end its name in \.safetensors"):
        ticket.save(tmp_path / "mask.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [np.float64(0.7), torch.tensor(0.7, dtype=torch.float64)])
def test_a_sparsity_may_be_a_number_of_numpy_or_torch(number, model: PreTrainedModel, tiny_bert, tmp_path) -> None:
    assert tamt.Ticket.magnitude(model, number).info.sparsity == 0.7
    assert tamt.find_ticket(tiny_bert, "omp", sparsity=number, output=tmp_path / "run").info.sparsity == 0.7


def test_what_a_ticket_knows(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    assert ticket.sparsity == pytest.approx(SPARSITY, abs=1e-3)
    assert set(ticket.sparsity_by_matrix()) == set(prunable_weights(model))
    for name, weight in prunable_weights(model).items():
        smallest_kept = weight.abs()[ticket.masks[name]].min()
        assert (weight.abs()[~ticket.masks[name]] <= smallest_kept).all()
    drawn = tamt.Ticket.random(model, SPARSITY, seed=1)
    # Of two random halves with a share k kept, k² is in both and 2k − k² in either.
    assert ticket.similarity(drawn) == pytest.approx(0.09 / 0.51, abs=0.05)
    assert tamt.Ticket.random(model, SPARSITY, seed=np.int64(1)).similarity(drawn) == 1
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


def test_a_pattern_is_given_by_its_name(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="the sparsity '2:4' is text; give a number such as 0.7, or pattern='2:4'"):
        tamt.Ticket.magnitude(model, "2:4")  # type: ignore[arg-type]


def test_a_random_ticket_has_a_seed_that_searches_take(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="-1 is negative or over 32 bits"):
        tamt.Ticket.random(model, 0.5, seed=-1)
    for seed in (1.5, "1"):
        with pytest.raises(UserError, match=f"^seed {seed!r} is not a whole number"):
            tamt.Ticket.random(model, 0.5, seed=seed)
    assert tamt.Ticket.random(model, 0.5, seed=np.int64(1)) == tamt.Ticket.random(model, 0.5, seed=1)


def test_weights_need_a_magnitude_to_be_ranked(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    assert tamt.Ticket.magnitude(model.double(), SPARSITY) == ticket
    model.get_input_embeddings().weight.data[3, 5] = torch.nan
    with pytest.raises(UserError, match=r"embeddings\.word_embeddings\.weight has NaN entries"):
        tamt.Ticket.magnitude(model, SPARSITY)


def test_what_is_no_ticket_is_named(ticket: tamt.Ticket) -> None:
    with pytest.raises(UserError, match="3 is no ticket; give the path"):
        tamt.Ticket.load(3)
    with pytest.raises(UserError, match="None is no ticket; give the path"):
        tamt.TicketCallback(None)
    with pytest.raises(UserError, match="other is 'runs/kd-70' but must be a ticket"):
        ticket.similarity("runs/kd-70")
    with pytest.raises(UserError, match="there are no masks"):
        tamt.Ticket.from_masks({}, ticket.info)


@pytest.mark.parametrize("info", [{"pattern": "2:4"}, {"pattern": "2by4"}, {"structure": "ffn:0.5"}])
def test_masks_have_what_their_info_says(info: dict[str, str], ticket: tamt.Ticket) -> None:
    with pytest.raises(UserError, match="the masks are not what their info says"):
        tamt.Ticket.from_masks(ticket.masks, replace(ticket.info, **info))


def test_a_name_is_not_a_model(ticket: tamt.Ticket) -> None:
    for use in (ticket.apply, ticket.revived, lambda name: tamt.Ticket.magnitude(name, 0.5)):
        with pytest.raises(UserError, match="wanted, not a str; load it with from_pretrained"):
            use("bert-base-uncased")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Tickets'"):
        _ = tamt.Tickets


def test_a_frozen_weight_is_pruned_once(model: PreTrainedModel, ticket: tamt.Ticket, monkeypatch) -> None:
    pruned: list[int] = []
    prune = tk.prune_
    monkeypatch.setattr(tk, "prune_", lambda tensors, packed: (pruned.append(1), prune(tensors, packed)))
    model.requires_grad_(False)
    ticket.apply(model)
    count = len(pruned)
    assert revived(model, ticket) == 0
    model(**model.dummy_inputs)
    assert len(pruned) == count > 0


def test_a_frozen_weight_is_pruned_too(model: PreTrainedModel, ticket: tamt.Ticket) -> None:
    model.get_input_embeddings().weight.requires_grad_(False)
    ticket.apply(model)
    train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-1), count=2)
    model.get_input_embeddings().weight.requires_grad_(True)
    train(model, torch.optim.SGD(model.parameters(), lr=1e-1), count=2)
    assert revived(model, ticket) == 0


def test_a_ticket_of_another_model_of_equal_shapes_is_told(
    tiny_bert: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("bert", "moved/bert", "bert2", "stays"):
        shutil.copytree(tiny_bert, folder)
    ticket = tamt.Ticket.magnitude(AutoModel.from_pretrained("bert"), SPARSITY)
    gone = tamt.Ticket(replace(ticket.packed, info=replace(ticket.info, model="was-here")))
    hub = tamt.Ticket(replace(ticket.packed, info=replace(ticket.info, model="bert-base-uncased")))
    fine_tuned = AutoModelForSequenceClassification.from_pretrained("bert2")
    fine_tuned.save_pretrained("sst2")
    pruned = AutoModel.from_pretrained("stays")
    ticket.apply(pruned)
    capsys.readouterr()
    pruned.save_pretrained("pruned")
    Path("linked").symlink_to("bert")
    nameless = AutoModel.from_config(pruned.config)
    nameless.name_or_path = nameless.config.name_or_path = ""

    def said(ticket: tamt.Ticket, model: str | PreTrainedModel) -> str:
        ticket.apply(AutoModel.from_pretrained(model) if isinstance(model, str) else model)
        return capsys.readouterr().err

    message = "the mask was found in bert, and it is applied to bert2; if these are not the same weights, give the mask"
    assert message in said(ticket, "bert2")
    silent = [
        (ticket, each) for each in ("bert", "moved/bert", "sst2", "pruned", "linked", str(tmp_path / "bert"), nameless)
    ]
    for each, model in [*silent, (gone, "bert2"), (hub, "bert2")]:
        assert "the mask was found" not in said(each, model), model


@pytest.mark.parametrize("name", ["bert2", "moved/bert"])
def test_commands_tell_a_mask_of_another_model(
    name: str, tiny_bert: Path, corpus: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("bert", name):
        shutil.copytree(tiny_bert, folder)
    tamt.find_ticket("bert", "omp", output="omp")
    tamt.find_ticket("bert", "rand", structure="ffn:0.5", output="rand")
    few = {"train_samples": 8, "epochs": 1, "max_length": 16, **cats_and_dogs}
    uses: list[Callable[[str], object]] = [
        lambda ticket: tamt.export(name, ticket=ticket, output=f"{ticket}-exported"),
        lambda ticket: tamt.evaluate(name, corpus, ticket=ticket, blocks=2, max_length=16),
        lambda ticket: tamt.finetune(name, "classification", ticket=ticket, output=f"{ticket}-tuned", **few),
    ]
    for use in uses:
        for ticket in ("omp", "rand"):
            capsys.readouterr()
            use(ticket)
            assert capsys.readouterr().err.count("the mask was found in bert") == (name == "bert2")
