"""The loss scale, and what happens in a step whose loss or gradient is not finite."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tamt.runtime.errors import UserError

LARGEST_LOSS = 1e5
"""A loss above it has exploded: chance is 10 for the cross-entropy of 30,000 tokens, 1 for KD, 8 for STS-B."""
FIRST_LOSS_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Good steps in a row after which the loss scale doubles."""


class NonFiniteError(UserError):
    """The loss or the gradient became NaN or infinite, or the loss exploded, at the step after `last_good`.

    What trains and the optimizer are as they were after step `last_good`, even if the error is raised some steps later.
    """

    def __init__(self, message: str, last_good: int) -> None:
        super().__init__(message)
        self.last_good = last_good


class LossScale:
    """The factor of the loss, and what happens in a bad step; all of it on the device.

    A step is bad if its loss or gradient is not finite, or if its loss is above `largest`. In fp16 the scale starts at
    2¹⁶, doubles after 2,000 good steps in a row, and halves at a bad step, which is skipped. In fp32 and bf16 the scale
    is 1. Once it is below 1, in fp32 and bf16 at the first bad step, the run has failed: every later step is skipped,
    so that the last good state is still there when `check` reports the failure.

    It replaces torch's GradScaler, which waits for the device in every step. Its tensors never move in memory, because
    CUDA graphs read them there.

    Attributes:
        scale: the factor of the loss, 0-dim.
        largest: a loss above it has exploded; a task with large losses sets it before the first step.
    """

    def __init__(self, device: torch.device, dynamic: bool) -> None:
        self.largest = LARGEST_LOSS
        self.scale = torch.full((), FIRST_LOSS_SCALE if dynamic else 1.0, device=device)
        self._dynamic = dynamic
        self._good = torch.zeros((), device=device)  # good steps since the scale changed
        self._last = torch.zeros(3, device=device)  # the last step before the failure: number, loss, norm

    def of_step(self, loss: Tensor) -> Tensor:
        """The divisor of the gradient of a step with this loss; NaN, which skips the step, if the loss is bad."""
        return torch.where((loss.abs() <= self.largest) & (self.scale >= 1), self.scale, torch.nan)

    def update(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Record a step: its number, its loss and the norm of its gradient, 0-dim."""
        running, good = self.scale >= 1, (loss.abs() <= self.largest) & norm.isfinite()
        self._last.copy_(torch.where(running, torch.stack([torch.full_like(norm, step), loss, norm]), self._last))
        self._good.copy_(torch.where(good, self._good + 1, 0))
        grown = good & (self._good >= GROWTH_INTERVAL) & self._dynamic
        self._good.masked_fill_(grown, 0)
        self.scale.mul_(torch.where(good, torch.where(grown, 2.0, 1.0), torch.where(running, 0.5, 1.0)))

    def check(self) -> None:
        """Wait for the device. Raises NonFiniteError, once, if the run has failed."""
        scale, step, loss, norm = torch.cat([self.scale[None], self._last]).tolist()
        if scale >= 1:
            return
        self.scale.fill_(1)
        what, value = ("norm of the gradient", norm) if abs(loss) <= self.largest else ("loss", loss)
        raise NonFiniteError(
            f"the {what} became {value:g} at step {step:.0f}, so the run stopped there and the last good checkpoint is "
            "kept; start again with a lower --lr or with --precision fp32",
            int(step) - 1,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The scale and the good steps since it changed."""
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.scale.copy_(state["scale"])
        self._good.copy_(state["good"])
