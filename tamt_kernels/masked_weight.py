"""The masked weight of one layer, which ``MaskAdamW`` writes once per step."""

import torch
from torch import Tensor

from tamt_kernels.reference import NO_GRADIENT, NO_MOMENTS


def sums_of_rows(grad: Tensor) -> Tensor:
    """A sparse gradient, any float type, with each row once, in float32: in bfloat16 the sum of many stops growing."""
    rows = torch.sparse_coo_tensor(grad._indices(), grad._values().float(), grad.shape, check_invariants=False)
    return rows.coalesce()


class MaskedWeight:
    """W ⊙ m of one layer under ``MaskAdamW``, which owns it; the layer refers to it as ``masked``.

    The forward uses ``tensor``, and the backward collects d(W ⊙ m) in its ``grad``.

    Args:
        weight: W, any shape.
        tensor: W ⊙ m, a leaf of W's shape, in the dtype in which the forward computes.
        sparse: whether the gradient holds only the rows that were looked up (an embedding on a CPU).
        overwrite: ``MaskAdamW(overwrite=True)``: the backward of a linear layer writes d(W ⊙ m) over W ⊙ m; an
            embedding with a sparse gradient keeps no W ⊙ m but masks each row when it is looked up, and ``tensor`` is
            only the place where its gradient arrives.

    ``forwards`` counts the forward passes since the last step. ``row_states`` (int32, one entry per row; none unless
    ``sparse``) says which rows have moments, in the values that ``reference.whole_gradient`` defines.
    """

    def __init__(self, weight: Tensor, tensor: Tensor, sparse: bool, overwrite: bool) -> None:
        self.weight, self.tensor = weight.detach(), tensor
        self.sparse, self.overwrite = sparse, overwrite
        self.forwards = 0
        self.row_states = torch.empty(0, dtype=torch.int32, device=weight.device)

    @property
    def at_lookup(self) -> bool:
        """Whether the rows of W ⊙ m are masked when they are looked up, so that there is no W ⊙ m to write."""
        return self.sparse and self.overwrite

    @property
    def holds_gradient(self) -> bool:
        """Whether d(W ⊙ m) lies where W ⊙ m was, until the next step."""
        grad = self.tensor.grad
        if grad is None or grad.is_sparse or grad.numel() == 0:  # all empty tensors have the same address
            return False
        return grad.data_ptr() == self.tensor.data_ptr()

    @property
    def written(self) -> Tensor:
        """W ⊙ m for a step to write, without autograd; empty if there is none to write."""
        return self.tensor.detach()[:0] if self.at_lookup else self.tensor.detach()

    def gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of ``mask_adamw`` for this matrix: d(W ⊙ m), W and the ``grad_rows``.

        A sparse gradient gives only the rows that were looked up, added up in float32, and the same rows of W. A layer
        without a gradient, because no forward used it, gives zeros.
        """
        grad = self.tensor.grad
        if not self.sparse or not (grad is None or grad.is_sparse):
            self.row_states.fill_(NO_GRADIENT)
            return torch.zeros_like(self.tensor) if grad is None else grad, self.weight, self.row_states[:0]
        if grad is None:
            no_rows = torch.empty(1, 0, dtype=torch.int64)
            grad = torch.sparse_coo_tensor(no_rows, self.tensor.detach()[:0], self.tensor.shape, check_invariants=False)
        rows = sums_of_rows(grad)
        looked_up, grad = rows.indices()[0], rows.values()
        numbers = torch.arange(len(looked_up), dtype=torch.int32)
        grad_rows = self.row_states.index_copy(0, looked_up, numbers)
        self.row_states[looked_up] = NO_GRADIENT
        return grad, self.weight[looked_up], grad_rows

    def find_rows_with_moments(self, mean: Tensor, square: Tensor) -> None:
        """Set ``row_states`` from the moments of the score: rows that never had a gradient have none."""
        if self.sparse:
            moving = (mean != 0).any(1) | (square != 0).any(1)
            self.row_states = torch.where(moving, NO_GRADIENT, NO_MOMENTS).to(torch.int32)
