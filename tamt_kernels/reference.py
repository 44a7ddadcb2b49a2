"""Every operation in plain torch: the definition, the oracle of the tests, and the kernel if there is no faster one.

While a mask is trained it is never stored. It follows from the score S and two numbers, the threshold ``value`` φ and
the tie ``cut``: an entry is kept if S > φ, or if S = φ and its flat (row-major) index is below the cut. Millions of
scores may tie, and the cut gives every mask exactly ``keep`` ones all the same.

With ``absolute`` entries rank by |S| instead of S. Half-precision scores are compared exactly, as float32. Nothing here
checks its arguments; the public functions do.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Thresholds(NamedTuple):
    """The thresholds of M matrices, which separate kept entries from pruned ones.

    ``values`` (float32, [M]) has φ of each matrix, ``cuts`` (int64, [M]) its tie cut. Both are on the scores' device.
    """

    values: Tensor
    cuts: Tensor


class Pattern(NamedTuple):
    """Masks that keep ``n`` of each ``m`` neighbours along the last dimension, the input of a linear layer; 2:4, say.

    1 ≤ n < m ≤ 16.
    """

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def ranks(score: Tensor, absolute: bool = False) -> Tensor:
    """The numbers by which entries rank, as float32, in which both half types are exact."""
    score = score.to(torch.float32)
    return score.abs() if absolute else score


def topk_threshold(scores: list[Tensor], keep: list[int], absolute: bool = False) -> Thresholds:
    """φ is the keep-th largest score; the cut is the index after the last tie that is kept (eq. 3)."""
    device = scores[0].device if scores else None
    values = torch.full((len(scores),), torch.inf, dtype=torch.float32, device=device)
    cuts = torch.zeros(len(scores), dtype=torch.int64, device=device)
    for i, (score, count) in enumerate(zip(scores, keep, strict=True)):
        flat = ranks(score.reshape(-1), absolute)
        if flat.isnan().any():
            raise ValueError(f"topk_threshold: scores[{i}] has NaN entries; a score must be a number or infinite")
        if count == 0:
            continue
        value = flat.kthvalue(flat.numel() - count + 1).values
        value = torch.where(value == 0, 0.0, value)  # -0 and +0 tie; the threshold is always +0
        ties = (flat == value).nonzero().reshape(-1)
        ties_kept = count - (flat > value).sum()
        values[i] = value
        cuts[i] = ties[ties_kept - 1] + 1
    return Thresholds(values, cuts)


def topk_threshold_unchecked(
    scores: list[Tensor],
    keep: list[int],
    last: Tensor | None = None,
    absolute: bool = False,
    *,
    topk_threshold: Callable[..., tuple[Tensor, Tensor]] = topk_threshold,
) -> tuple[Tensor, Tensor, Tensor]:
    """``topk_threshold`` without an error for NaN: a matrix with NaN entries gets value NaN and cut 0.

    The third tensor (bool, [M]) says which matrices have NaN entries. ``last`` (float32, [M]), thresholds that may be
    near, does not change the result.
    """
    device = scores[0].device if scores else None
    has_nan = torch.tensor([bool(score.isnan().any()) for score in scores], dtype=torch.bool, device=device)
    numbers = [score.masked_fill(score.isnan(), 0.0) for score in scores]
    values, cuts = topk_threshold(numbers, keep, absolute)
    return values.masked_fill(has_nan, torch.nan), cuts.masked_fill(has_nan, 0), has_nan


def binarize(score: Tensor, value: Tensor, cut: Tensor, absolute: bool = False) -> Tensor:
    """The mask: m = 1 where the score ranks among the ``keep`` largest of its matrix (eq. 3)."""
    rank = ranks(score, absolute)
    index = torch.arange(score.numel(), device=score.device).reshape(score.shape)
    return ((rank > value) | ((rank == value) & (index < cut))).contiguous()


def pattern_mask(score: Tensor, n: int, m: int, absolute: bool = False) -> Tensor:
    """The mask that keeps the ``n`` largest of each ``m`` neighbours in the last dimension, ties by lower index.

    There is no threshold: each group's mask follows from its own scores. A score that is NaN ranks like -inf, so that
    every group keeps exactly ``n`` entries whatever the scores are.
    """
    rank = ranks(score, absolute) + 0.0  # -0 and +0 tie
    rank = torch.where(rank.isnan(), -torch.inf, rank)
    order = rank.reshape(-1, m).argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return mask.reshape(score.shape)


def pattern_weight(
    weight: Tensor,
    score: Tensor,
    n: int,
    m: int,
    dtype: torch.dtype | None = None,
    absolute: bool = False,
    *,
    pattern_mask: Callable[..., Tensor] = pattern_mask,
) -> Tensor:
    """W ⊙ m of ``pattern_mask``, cast; a pruned entry is exactly +0."""
    mask = pattern_mask(score, n, m, absolute)
    return torch.where(mask, weight, 0.0).to(dtype or weight.dtype).contiguous()


def pack_mask(mask: Tensor) -> Tensor:
    """One bit per entry: entry i is bit i % 8 of byte i // 8, from the least significant on. Padding bits are 0."""
    bits = F.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).reshape(-1, 8)
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits * powers).sum(dim=1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, shape: list[int]) -> Tensor:
    """The mask that ``pack_mask`` packed."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> shifts) & 1
    return bits.reshape(-1)[: torch.Size(shape).numel()].to(torch.bool).reshape(shape)


def prune_(tensors: list[Tensor], packed: list[Tensor]) -> None:
    """Zero the entries of each tensor that its packed mask prunes."""
    for tensor, bits in zip(tensors, packed, strict=True):
        tensor.masked_fill_(~unpack_mask(bits, list(tensor.shape)), 0)


def mask_weight(
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    dtype: torch.dtype | None = None,
    absolute: bool = False,
) -> Tensor:
    """W ⊙ m, cast. A pruned entry is exactly +0; a product would give -0, or NaN for an infinite weight."""
    mask = binarize(score, value, cut, absolute)
    return torch.where(mask, weight, 0.0).to(dtype or weight.dtype).contiguous()


def group_offsets(sizes: list[int]) -> tuple[list[int], int]:
    """The offsets of several matrices in one flat tensor, multiples of 16 entries, and the length of that tensor."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += size + -size % 16
    return offsets, end


def ungrouped(flat: Tensor, matrices: list[Tensor]) -> list[Tensor]:
    """The parts of a flat tensor at the ``group_offsets`` of matrices, each in its matrix's shape."""
    offsets, _total = group_offsets([matrix.numel() for matrix in matrices])
    parts = zip(matrices, offsets, strict=True)
    return [flat[offset : offset + matrix.numel()].reshape(matrix.shape) for matrix, offset in parts]


def mask_weights(
    weights: list[Tensor],
    scores: list[Tensor],
    values: Tensor,
    cuts: Tensor,
    dtype: torch.dtype,
    pack: bool = False,
    absolute: bool = False,
    *,
    mask_weight: Callable[..., Tensor] = mask_weight,
    binarize: Callable[..., Tensor] = binarize,
    pack_mask: Callable[..., Tensor] = pack_mask,
) -> tuple[Tensor, Tensor]:
    """W ⊙ m of every matrix in one flat tensor at ``group_offsets``, with zeros between them.

    With ``pack`` also the bits of the masks, at an eighth of these offsets.
    """
    offsets, total = group_offsets([weight.numel() for weight in weights])
    masked = torch.zeros(total, dtype=dtype, device=values.device)
    bits = torch.zeros(total // 8 if pack else 0, dtype=torch.uint8, device=values.device)
    for i, (weight, score, offset) in enumerate(zip(weights, scores, offsets, strict=True)):
        end = offset + weight.numel()
        masked[offset:end] = mask_weight(weight, score, values[i], cuts[i], dtype, absolute).reshape(-1)
        if pack:
            packed = pack_mask(binarize(score, values[i], cuts[i], absolute))
            bits[offset // 8 : offset // 8 + packed.numel()] = packed
    return masked, bits


def ste_backward(grad_masked_weight: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """dS = d(W ⊙ m) ⊙ W (eq. 4), multiplied in float32 and rounded once."""
    dtype = dtype or torch.promote_types(grad_masked_weight.dtype, weight.dtype)
    return (grad_masked_weight.to(torch.float32) * weight.to(torch.float32)).to(dtype).contiguous()


def ste_backward_all(
    grads: list[Tensor],
    weights: list[Tensor],
    dtype: torch.dtype,
    *,
    ste_backward: Callable[..., Tensor] = ste_backward,
) -> Tensor:
    """``ste_backward`` of every matrix in one flat tensor at ``group_offsets``, with zeros between them."""
    _offsets, total = group_offsets([weight.numel() for weight in weights])
    products = torch.zeros(total, dtype=dtype, device=weights[0].device)
    for grad, weight, product in zip(grads, weights, ungrouped(products, weights), strict=True):
        product.copy_(ste_backward(grad, weight, dtype))
    return products


def gradient_norm(grads: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The norm of all scores' gradients together, √Σ(d(W ⊙ m) ⊙ W)², products in float32 and their sum in float64."""
    squares = [
        (grad.to(torch.float32) * weight.to(torch.float32)).to(torch.float64).square().sum()
        for grad, weight in zip(grads, weights, strict=True)
    ]
    return torch.stack(squares).sum().sqrt().to(torch.float32)


NO_GRADIENT, NO_MOMENTS = -1, -2


def whole_gradient(grad: Tensor, weight: Tensor, grad_rows: Tensor) -> Tensor:
    """The gradient of a matrix, of which ``grad`` may hold only some rows.

    ``grad_rows`` (int32, one entry per row of the matrix) gives the number of its row in ``grad``. It is
    ``NO_GRADIENT`` for a row whose gradient is zero, and ``NO_MOMENTS`` for a row that never had a gradient: its
    moments are zero as well, so AdamW without weight decay does not change its scores. If ``grad_rows`` is empty,
    ``grad`` is whole.
    """
    if grad_rows.numel() == 0:
        return grad
    if grad.shape[0] == 0:
        return grad.new_zeros(weight.shape)
    return torch.where(grad_rows[:, None] >= 0, grad[grad_rows.clamp(min=0)], 0)


def adamw(
    grads: list[Tensor],
    weights: list[Tensor],
    scores: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    grad_rows: list[Tensor] | None,
) -> None:
    """A step of AdamW for all scores, in place, with the arguments of ``mask_adamw``."""
    factor, step_size, root, decay = rates.tolist()
    if grad_rows is not None:
        grads = [whole_gradient(*parts) for parts in zip(grads, weights, grad_rows, strict=True)]
    for grad, weight, score, mean, square in zip(grads, weights, scores, means, squares, strict=True):
        gradient = grad.to(torch.float32) * weight.to(torch.float32) * factor
        mean.lerp_(gradient, 1 - beta1)  # fma(1 − β₁, gradient − mean, mean)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)  # fma((1 − β₂) gradient, gradient, β₂ square)
        score.mul_(decay).addcdiv_(mean, (square.sqrt() / root).add_(eps), value=-step_size)


def mask_adamw(
    grads: list[Tensor],
    weights: list[Tensor],
    scores: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masked: list[Tensor],
    values: Tensor,
    cuts: Tensor,
    keep: list[int],
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    renew: bool = True,
    absolute: bool = False,
    grad_rows: list[Tensor] | None = None,
    *,
    topk_threshold_unchecked: Callable[..., tuple[Tensor, Tensor, Tensor]] = topk_threshold_unchecked,
    mask_weight: Callable[..., Tensor] = mask_weight,
) -> None:
    """A step of AdamW for all scores; then, with ``renew``, their thresholds and masked weights. All in place.

    The gradient of a score is d(W ⊙ m) ⊙ W (eq. 4) times the first of ``rates`` (float32 [4]), which clips it. The
    others are the step size lr / (1 − β₁ᵗ), the root √(1 − β₂ᵗ), and the factor 1 − lr · decay by which weight decay
    shrinks a score. The update has the bits of torch's AdamW on a CPU, with its two fused multiply-adds, because scores
    with equal updates would otherwise differ in their last bits and no longer tie. If the first of ``rates`` is not
    finite, nothing changes.

    With ``MaskAdamW(overwrite=True)`` a gradient lies where its masked weight was, in the same memory. That masked
    weight is then written in any case, and ``renew`` must be true.

    A gradient may hold only some rows of its matrix, see ``whole_gradient``; ``grad_rows`` then has a tensor for each
    matrix. Such a gradient must not lie in the memory of its masked weight. If a tensor of ``masked`` is empty, no
    masked weight is written for that matrix.
    """
    if not math.isfinite(rates[0]):
        for i, (weight, score, target) in enumerate(zip(weights, scores, masked, strict=True)):
            if target.numel() > 0 and grads[i].data_ptr() == target.data_ptr():
                target.copy_(mask_weight(weight, score, values[i], cuts[i], target.dtype, absolute))
        return
    adamw(grads, weights, scores, means, squares, rates, beta1, beta2, eps, grad_rows)
    if not renew:
        return
    new_values, new_cuts, _ = topk_threshold_unchecked(scores, keep, values.clone(), absolute)
    values.copy_(new_values)
    cuts.copy_(new_cuts)
    for i, (weight, score, target) in enumerate(zip(weights, scores, masked, strict=True)):
        if target.numel() > 0:
            target.copy_(mask_weight(weight, score, values[i], cuts[i], target.dtype, absolute))


def pattern_adamw(
    grads: list[Tensor],
    weights: list[Tensor],
    scores: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masked: list[Tensor],
    n: int,
    m: int,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    absolute: bool = False,
    grad_rows: list[Tensor] | None = None,
    *,
    pattern_weight: Callable[..., Tensor] = pattern_weight,
) -> None:
    """``mask_adamw`` for masks of ``n`` of each ``m`` neighbours, which need no thresholds and are always renewed."""
    stepped = math.isfinite(rates[0])
    if stepped:
        adamw(grads, weights, scores, means, squares, rates, beta1, beta2, eps, grad_rows)
    for grad, weight, score, target in zip(grads, weights, scores, masked, strict=True):
        if target.numel() > 0 and (stepped or grad.data_ptr() == target.data_ptr()):
            target.copy_(pattern_weight(weight, score, n, m, target.dtype, absolute))


def ste_backward_into(
    grad_score: Tensor, grad_masked_weight: Tensor, weight: Tensor, add: bool = True, square: bool = False
) -> Tensor:
    """``ste_backward`` written to an existing dS or, with ``add``, added to it: computed in float32 and rounded once.

    With ``square`` it returns the sum of the squares of dS after that, summed in float64 and rounded once to float32;
    otherwise an empty tensor.
    """
    product = grad_masked_weight.to(torch.float32) * weight.to(torch.float32)
    grad_score.copy_(grad_score.to(torch.float32) + product if add else product)
    if square:
        return grad_score.to(torch.float64).square().sum().to(torch.float32)
    return torch.empty(0, dtype=torch.float32, device=weight.device)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = X Wᵀ + b."""
    return F.linear(x, weight, bias)


def linear_backward_x(grad_output: Tensor, weight: Tensor) -> Tensor:
    """dX = dY W."""
    return grad_output @ weight


def linear_backward_weight(grad_output: Tensor, x: Tensor) -> Tensor:
    """dW = dYᵀ X, summed over all rows."""
    return grad_output.flatten(0, -2).t() @ x.flatten(0, -2)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None = None,
    absolute: bool = False,
) -> Tensor:
    """Y = X (W ⊙ m)ᵀ + b."""
    return F.linear(x, mask_weight(weight, score, value, cut, absolute=absolute), bias)


def masked_matmul(
    x: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    bias: Tensor | None = None,
    absolute: bool = False,
    *,
    mask_weight: Callable[..., Tensor] = mask_weight,
) -> Tensor:
    """``masked_linear`` in the dtype of x, to which W ⊙ m is cast."""
    return F.linear(x, mask_weight(weight, score, value, cut, x.dtype, absolute), bias)


def masked_matmul_backward_x(
    grad_output: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    absolute: bool = False,
    *,
    mask_weight: Callable[..., Tensor] = mask_weight,
) -> Tensor:
    """dX = dY (W ⊙ m)."""
    return grad_output @ mask_weight(weight, score, value, cut, grad_output.dtype, absolute)


def masked_matmul_backward_score(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    *,
    ste_backward: Callable[..., Tensor] = ste_backward,
) -> Tensor:
    """dS = (dYᵀ X) ⊙ W (eq. 4), summed and multiplied in float32 and rounded once."""
    rows = math.prod(grad_output.shape[:-1])
    flat_grad = grad_output.reshape(rows, weight.shape[0]).to(torch.float32)
    flat_x = x.reshape(rows, weight.shape[1]).to(torch.float32)
    return ste_backward(flat_grad.t() @ flat_x, weight, dtype)


def masked_embedding(
    ids: Tensor,
    weight: Tensor,
    score: Tensor,
    value: Tensor,
    cut: Tensor,
    padding_idx: int | None = None,
    absolute: bool = False,
) -> Tensor:
    """The rows ``ids`` of W ⊙ m, without touching other rows. ``padding_idx`` matters only for the gradient."""
    rank = ranks(F.embedding(ids, score), absolute)
    columns = torch.arange(weight.shape[1], device=ids.device)
    index = ids.to(torch.int64)[..., None] * weight.shape[1] + columns
    mask = (rank > value) | ((rank == value) & (index < cut))
    return torch.where(mask, F.embedding(ids, weight), 0.0).contiguous()


def masked_embedding_backward(
    grad_output: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    """dS of ``masked_embedding``, dense: (Σ grad_output) ⊙ W in the rows looked up; 0 in other rows and padding's."""
    ids = ids.reshape(-1).to(torch.int64)
    grad_output = grad_output.reshape(ids.numel(), weight.shape[1]).to(torch.float32)
    if padding_idx is not None:
        grad_output = grad_output[ids != padding_idx]
        ids = ids[ids != padding_idx]
    rows, position = ids.unique(return_inverse=True)
    row_sums = torch.zeros(rows.numel(), weight.shape[1], device=weight.device).index_add_(0, position, grad_output)
    grad_score = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    grad_score[rows] = ste_backward(row_sums, weight[rows], dtype)
    return grad_score


SMALLEST_NORM = 1e-8  # smaller norms are replaced by this one, as in torch.nn.functional.cosine_similarity


def cosine(constant: Tensor, trained: Tensor) -> Tensor:
    """The cosine over the last dimension, in float32."""
    constant, trained = constant.float(), trained.float()
    norms = [torch.linalg.vector_norm(rows, dim=-1).clamp(min=SMALLEST_NORM) for rows in (constant, trained)]
    return torch.linalg.vecdot(constant, trained) / (norms[0] * norms[1])


def cosine_backward(grad_cosine: Tensor, constant: Tensor, trained: Tensor) -> Tensor:
    """The gradient of the trained tensor, g (c / (‖c‖ ‖t‖) − cos t / ‖t‖²).

    If ‖t‖ is replaced by ``SMALLEST_NORM`` it is a constant, and the gradient is the first term only.
    """
    constant, wide = constant.float(), trained.float()
    norms = [torch.linalg.vector_norm(rows, dim=-1).clamp(min=SMALLEST_NORM) for rows in (constant, wide)]
    towards = grad_cosine / (norms[0] * norms[1])
    along = towards * torch.linalg.vecdot(constant, wide) / norms[1].square()
    along = along.masked_fill(norms[1] <= SMALLEST_NORM, 0)
    grad = constant * towards.unsqueeze(-1)
    return grad.addcmul_(wide, along.unsqueeze(-1), value=-1).to(trained.dtype)


SPARSE_CELL = 128  # rows and columns: a column's number in its cell is a byte
SPARSE_LAYOUT = 1  # another number when sparse_pattern changes: checkpoints hold moments in its order


def sparse_pattern(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the kept entries of a mask [rows, columns] are, as kernels read them: columns, order, counts and starts.

    The matrix is cut into cells of 128 × 128, P × B of them. The order (uint8 [P, B, 128]) has a cell's rows, those
    with the most entries first, and counts (uint8 [P, B, 128]) their entries; starts (int64 [P · B + 1]) is where a
    cell's entries begin. Entries are those of cell after cell, in it of row after row in that order, from left to
    right; their columns (uint8 [n]) count from the cell's first.
    """
    rows, columns = mask.shape
    whole = F.pad(mask, (0, -columns % SPARSE_CELL, 0, -rows % SPARSE_CELL))
    cells = whole.view(-(-rows // SPARSE_CELL), SPARSE_CELL, -1, SPARSE_CELL).transpose(1, 2)
    counts, order = cells.sum(-1).sort(dim=-1, descending=True, stable=True)
    kept = cells.gather(2, order.unsqueeze(-1).expand(cells.shape))
    column = torch.arange(SPARSE_CELL, dtype=torch.uint8, device=mask.device).expand(kept.shape)[kept]
    return column, order.to(torch.uint8), counts.to(torch.uint8), sparse_starts(counts)


def sparse_starts(counts: Tensor) -> Tensor:
    """Where the entries of each cell begin, and the last ones end: int64 [cells + 1], for counts [P, B, 128]."""
    return F.pad(counts.sum(-1).flatten().cumsum(0), (1, 0))


def sparse_positions(columns: Tensor, order: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and the columns of the entries of a pattern, int64 [n]."""
    panels, blocks, _ = counts.shape
    panel, block = (torch.arange(each, device=counts.device) * SPARSE_CELL for each in (panels, blocks))
    rows, firsts = panel[:, None, None] + order, block[:, None].expand(counts.shape)
    lengths = counts.flatten().to(torch.int64)
    spread = (each.flatten().repeat_interleave(lengths, output_size=columns.numel()) for each in (rows, firsts))
    row, first = spread
    return row, first + columns


def sparse_dense(values: Tensor, columns: Tensor, order: Tensor, counts: Tensor, rows: int, width: int) -> Tensor:
    """The matrix [rows, width] of these entries and zeros."""
    dense = values.new_zeros(rows, width)
    dense[sparse_positions(columns, order, counts)] = values
    return dense


def sparse_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Y = X Wᵀ + b of a W [rows, …] of which the kept entries are given: x in the type of the values, sums in float32,
    Y in the type of x.
    """
    weight = sparse_dense(values, columns, order, counts, rows, x.shape[-1]).to(torch.float32)
    added = None if bias is None else bias.to(torch.float32)
    return F.linear(x.to(values.dtype).to(torch.float32), weight, added).to(x.dtype)


def sparse_linear_backward_x(
    grad_output: Tensor, values: Tensor, columns: Tensor, order: Tensor, counts: Tensor, starts: Tensor, width: int
) -> Tensor:
    """dX = dY W, [..., width], of the types of ``sparse_linear``."""
    weight = sparse_dense(values, columns, order, counts, grad_output.shape[-1], width).to(torch.float32)
    return (grad_output.to(values.dtype).to(torch.float32) @ weight).to(grad_output.dtype)


def sparse_linear_backward_values(
    grad_output: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """dW = dYᵀ X at the kept entries, [n], summed in float32 and rounded once."""
    tokens = math.prod(x.shape[:-1])
    grad = grad_output.reshape(tokens, grad_output.shape[-1]).to(torch.float32)
    whole = grad.t() @ x.reshape(tokens, x.shape[-1]).to(torch.float32)
    return whole[sparse_positions(columns, order, counts)].to(dtype)


def sparse_embedding(
    ids: Tensor,
    values: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    width: int,
    padding_idx: int | None = None,
) -> Tensor:
    """The rows ``ids`` of the matrix [rows, width] of these entries and zeros. ``padding_idx`` matters to the gradient
    only.
    """
    return F.embedding(ids, sparse_dense(values, columns, order, counts, rows, width))


def sparse_embedding_backward(
    grad_output: Tensor,
    ids: Tensor,
    columns: Tensor,
    order: Tensor,
    counts: Tensor,
    starts: Tensor,
    rows: int,
    padding_idx: int | None,
) -> Tensor:
    """dW at the kept entries, [n]: of each row the sum over its look-ups, 0 for padding, in float32, rounded once."""
    ids = ids.reshape(-1).to(torch.int64)
    grad = grad_output.reshape(ids.numel(), grad_output.shape[-1]).to(torch.float32)
    if padding_idx is not None:
        grad = grad.masked_fill((ids == padding_idx)[:, None], 0)
    sums = torch.zeros(rows, grad.shape[1], device=grad.device).index_add_(0, ids, grad)
    return sums[sparse_positions(columns, order, counts)].to(grad_output.dtype)
