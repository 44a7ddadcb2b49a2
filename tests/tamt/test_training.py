"""The loop that every training shares: what is not finite is left out, and told where the run waits anyway."""

import threading

import pytest
import torch

from tamt.runtime.console import Progress
from tamt.training.compute import Compute
from tamt.training.loss_scale import FIRST_LOSS_SCALE, GROWTH_INTERVAL, LARGEST_LOSS, LossScale, NonFiniteError
from tamt.training.optimizer import MAX_GRADIENT_NORM, make_optimizer
from tamt.training.prefetch import prefetch
from tamt.training.steps import Stepper

CPU = torch.device("cpu")
ONE, NAN = torch.ones(()), torch.tensor(torch.nan)


def train(losses: list[float], dynamic: bool = False):
    """Minimise w · each of `losses` in turn; return w, the steps and the loss scale."""
    compute = Compute(CPU, "fp32")
    scale = compute.loss_scale = LossScale(CPU, dynamic)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer, schedule = make_optimizer(model.parameters(), 0.1, 1000)
    batches = ({"x": torch.tensor([[loss]])} for loss in losses)
    stepper = Stepper(compute, model, optimizer, schedule)
    steps = stepper.take(batches, lambda b: {"loss": model(b["x"]).sum()}, 1, len(losses))
    return model.weight, steps, scale


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 2 * LARGEST_LOSS, -2 * LARGEST_LOSS])
def test_after_a_bad_step_nothing_changes_until_it_is_told(bad: float) -> None:
    weight, steps, _ = train([1.0, 1.0, bad, 1.0, 1.0])
    seen, told = [], None
    for _step, parts in steps:
        seen.append(weight.item())
        told = parts
    assert seen[0] > seen[1]
    assert seen[1:] == [seen[1]] * 4
    with pytest.raises(NonFiniteError, match=r"loss became (nan|inf|-?1\d{5}) at step 3.*lower --lr") as error:
        told["loss"]
    assert error.value.last_good == 2


def test_a_large_loss_is_none_that_exploded() -> None:
    weight, steps, scale = train([LARGEST_LOSS, LARGEST_LOSS])
    seen = [weight.item() for _ in steps]
    assert seen[0] > seen[1]
    scale.check()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_is_told_too(bad: float) -> None:
    weight, steps, scale = train([1.0, 1.0])
    weight.register_hook(lambda grad: grad * bad)
    for _ in steps:
        pass
    assert weight.item() == 1
    with pytest.raises(NonFiniteError, match=f"norm of the gradient became {bad} at step 1"):
        scale.check()


def test_fp16_leaves_a_bad_step_out_and_goes_on() -> None:
    weight, steps, scale = train([1.0, torch.inf, 1.0], dynamic=True)
    seen = [weight.item() for _ in steps]
    assert seen[0] == seen[1] > seen[2]
    scale.check()
    assert scale.scale == FIRST_LOSS_SCALE / 2


def test_a_gradient_that_overflows_fp16_is_left_out_until_the_scale_fits() -> None:
    compute = Compute(CPU, "fp32")  # fp16 by itself: autocast has none on a CPU
    compute.loss_scale = LossScale(CPU, dynamic=True)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer, schedule = make_optimizer(model.parameters(), 0.1, 1000)

    def loss(batch):  # its gradient is 3 · scale, which must be at most 65504
        return {"loss": (model.weight.half() * batch["x"].half()).float().sum()}

    batches = ({"x": torch.full((1, 1), 3.0)} for _ in range(4))
    steps = Stepper(compute, model, optimizer, schedule).take(batches, loss, 1, 4)
    seen = [model.weight.item() for _ in steps]
    compute.loss_scale.check()
    assert compute.loss_scale.scale == FIRST_LOSS_SCALE / 4
    assert seen[0] == seen[1] == 1 > seen[2] > seen[3]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_step_clips_and_updates_as_torch_does(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in ((5, 7), (3,))] for _ in range(2))
    optimizer, _ = make_optimizer(ours, 0.1, 1000, weight_decay=0.01)
    other = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.01)
    for size in (0.01, 3.0, 0.2, 100.0):  # of which the second and the last are clipped
        for mine, their in zip(ours, theirs, strict=True):
            their.grad = size * torch.randn(their.shape, generator=generator)
            mine.grad = their.grad * scale
        wanted = torch.nn.utils.clip_grad_norm_(theirs, MAX_GRADIENT_NORM)
        torch.testing.assert_close(optimizer.step(scale=torch.tensor(scale)), wanted)
        other.step()
        for mine, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, their)
            torch.testing.assert_close(mine.grad, their.grad)


def test_the_loss_scale_changes_no_update() -> None:
    plain, steps, _ = train([0.5, 0.25])
    list(steps)
    scaled, steps, _ = train([0.5, 0.25], dynamic=True)
    list(steps)
    assert plain.item() == scaled.item()


def test_the_loss_scale_grows_and_gives_up() -> None:
    scale = LossScale(CPU, dynamic=True)
    for step in range(GROWTH_INTERVAL):
        scale.update(step, ONE, ONE)
    assert scale.scale == 2 * FIRST_LOSS_SCALE
    other = LossScale(CPU, dynamic=True)
    other.load_state_dict(scale.state_dict())
    for step in range(1, 18):
        other.update(step, ONE, NAN)
        other.check()
    assert other.scale == 1
    other.update(18, ONE, NAN)
    other.update(19, ONE, ONE)
    with pytest.raises(NonFiniteError, match="at step 18"):
        other.check()
    other.check()  # once


def test_prefetch_keeps_the_order_and_ends_its_thread() -> None:
    endless = ({"x": torch.tensor(i)} for i in range(10**9))
    ready = prefetch(endless, CPU)
    assert [int(next(ready)["x"]) for _ in range(10)] == list(range(10))
    ready.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_error_of_prefetched_batches_is_raised_where_its_batch_is_due() -> None:
    def batches():
        yield {"x": ONE}
        raise ValueError("torn")

    ready = prefetch(batches(), CPU)
    assert next(ready)["x"] == 1
    with pytest.raises(ValueError, match="torn"):
        next(ready)


def test_a_training_that_prints_to_a_file_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    clock = [0.0]
    monkeypatch.setattr("tamt.runtime.console.time.monotonic", lambda: clock[0])
    with Progress("tamt-kd", 1000) as progress:
        for step in range(30, 1001, 30):  # no multiple of a tenth
            clock[0] += 1
            progress.update(step, "loss 0.1")
    assert capsys.readouterr().err.count("tamt-kd ") == 9
    with Progress("tamt-kd", 10_000) as progress:
        for step in range(1, 7):
            clock[0] += 20
            progress.update(step, "loss 0.1")
    assert [line.split(" ")[1] for line in capsys.readouterr().err.splitlines()] == ["3/10000", "6/10000"]
