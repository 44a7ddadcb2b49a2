"""What a run of the kernel benchmarks measures: where, at which sizes, against which kinds of contenders."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch import config as functorch

from benchmarks import scores

OURS, EAGER, COMPILED, FLOAT_MASK = "tamt_kernels", "eager", "torch.compile", "float mask"
DENSE, COPY, READ = "dense", "copy of the same bytes", "one read of S"
NEW_COPY = "the same into new memory"


class Setting(NamedTuple):
    """``quick`` stands for tiny matrices and no torch.compile: enough to see that everything runs."""

    device: torch.device
    quick: bool = False

    @property
    def shapes(self) -> list[scores.Shape]:
        """The prunable matrices of the model."""
        if self.quick:
            return scores.bert_shapes(hidden=32, intermediate=64, vocabulary=300, layers=1)
        return scores.bert_shapes()

    @property
    def up_projection(self) -> scores.Shape:
        """The FFN's first matrix, [out, in]."""
        return self.shapes[5]

    @property
    def dtype(self) -> torch.dtype:
        """The type that a training step computes in."""
        if self.device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any] | None:
        """``function`` under torch.compile, or None in a quick run."""
        if self.quick:
            return None
        # A graph may then be walked twice, as it is where a backward pass is timed alone.
        functorch.donated_buffer = False
        return torch.compile(function)

    def copy(self, moved: int) -> Callable[[], Tensor]:
        """Reads and writes that many bytes, and nothing else: no kernel that moves them is faster."""
        source = self._half(moved)
        destination = torch.empty_like(source)
        return lambda: destination.copy_(source)

    def new_copy(self, moved: int) -> Callable[[], Tensor]:
        """The same, into memory that is allocated each time, as that of a result is."""
        return self._half(moved).clone

    def _half(self, moved: int) -> Tensor:
        return torch.ones(moved // 2, dtype=torch.uint8, device=self.device)
