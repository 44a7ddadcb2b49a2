"""Steps of mask training from CUDA graphs, as `tamt train` takes them."""

import pytest
import torch

from benchmarks.step.contenders import Setting
from tamt.masks.masking import magnitude_masks, prunable_weights
from tamt.objectives import Losses
from tamt.search.mask_training import start
from tamt.terms import needs_head, needs_teacher
from tamt.training.optimizer import make_optimizer
from tamt.training.step_graph import WARM_UP
from tamt.training.steps import Stepper

STEPS = WARM_UP + 9
HALFWAY = WARM_UP + 4


def take_steps(objective, graphs, dropout=0.0, accumulation=1, compiled=False, waits_before=STEPS):
    """The losses of some steps with a falling learning rate, and the masked modules after them."""
    setting = Setting(torch.device("cuda"), "tiny", 4, 64, accumulation)
    weights = dict.fromkeys(objective.split("+"), 1.0)
    search = setting.search(needs_teacher(weights), graphs, compiled, lr=5e-3, steps=STEPS)
    search.text.train.tokens = search.text.train.tokens[:-10]  # the last block is padded, a batch of another shape
    set_dropout(search.student.model, dropout)
    first = magnitude_masks(prunable_weights(search.student.encoder), search.options.sparsity)
    head = search.student.head_parameters() if needs_head(weights) else {}
    masked, optimizer, schedule = start(search, first, head)
    batches = search.text.batches(1, masked=needs_head(weights))
    stepper = Stepper(search.compute, search.student.model, optimizer, schedule, accumulation, STEPS + 1, graphs)
    losses = Losses(weights, search.student, search.teacher)
    parts = []
    try:
        for step, parts_of_loss in stepper.take(batches, losses, 1, STEPS):
            parts.append(parts_of_loss)
            if step == waits_before:
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [each["loss"] for each in parts], masked, first


def set_dropout(model, probability):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = probability
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = probability


@pytest.mark.parametrize(
    ("objective", "accumulation"),
    [("mlm", 1), ("kd", 1), ("mlm+kd", 2), ("attention", 1), ("logits", 2), ("kd+contrastive", 1)],
)
def test_steps_from_graphs_are_the_same_steps(objective, accumulation):
    (eager, masked, first), (found, others, _) = (
        take_steps(objective, graphs, accumulation=accumulation) for graphs in (False, True)
    )
    assert found == pytest.approx(eager, rel=2e-2)
    assert found[0] != found[-1]
    for name, module in masked.items():
        torch.testing.assert_close(others[name].score, module.score, rtol=0, atol=1e-2)
        differing = (others[name].score - module.score).abs() > 5e-4
        assert differing.float().mean() < 0.05
        assert int(others[name].mask.sum()) == module.keep
    assert any((others[name].mask.cpu() != first[name].cpu()).any() for name in others)


def test_dropout_draws_anew_at_every_replay():
    torch.cuda.manual_seed(0)
    with_dropout, _, _ = take_steps("kd", True, dropout=0.5)
    torch.cuda.manual_seed(0)
    again, _, _ = take_steps("kd", True, dropout=0.5)
    assert with_dropout == pytest.approx(again, rel=2e-2)
    assert len({round(loss, 6) for loss in with_dropout}) == STEPS


def test_no_step_waits_for_the_gpu():
    take_steps("mlm+kd", False, waits_before=2)
    take_steps("mlm+kd", True, waits_before=WARM_UP + 2)


def test_a_compiled_model_is_recorded_too():
    eager, _, _ = take_steps("mlm", False)
    found, _, _ = take_steps("mlm", True, compiled=True)
    assert found == pytest.approx(eager, rel=2e-2)


def train_all_weights(graphs):
    """The losses of steps as IMP takes them: halfway all goes back to where it began."""
    search = Setting(torch.device("cuda"), "tiny", 4, 64, 1).search(teacher=False, cuda_graphs=graphs)
    model = search.student.model
    set_dropout(model, 0.0)
    model.requires_grad_(True).get_output_embeddings().weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    initial = [p.detach().clone() for p in trained]
    optimizer, schedule = make_optimizer(trained, 1e-3, STEPS)
    batches, losses = search.text.batches(1, masked=True), Losses({"mlm": 1.0}, search.student)
    stepper = Stepper(search.compute, model, optimizer, schedule, 1, STEPS + 1, graphs)
    found = []
    for step, parts in stepper.take(batches, losses, 1, STEPS):
        found.append(parts["loss"])
        if step == HALFWAY:
            with torch.no_grad():
                torch._foreach_copy_(trained, initial)
            optimizer.forget()
    return found


def test_steps_of_imp_from_graphs_are_the_same_steps():
    eager, found = train_all_weights(False), train_all_weights(True)
    assert found == pytest.approx(eager, rel=1e-2)
    assert found[HALFWAY] > found[HALFWAY - 1]
