"""Layers with a frozen weight, a trained score and an exact mask, for ``nn.Linear`` and ``nn.Embedding``."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tamt_kernels.backend import checks
from tamt_kernels.masked_weight import MaskedWeight
from tamt_kernels.ops.binarize import binarize
from tamt_kernels.ops.linear import linear
from tamt_kernels.ops.mask_weight import mask_weight
from tamt_kernels.ops.mask_weights import mask_weights
from tamt_kernels.ops.masked_embedding import masked_embedding
from tamt_kernels.ops.masked_linear import masked_linear
from tamt_kernels.ops.overwriting_linear import overwriting_linear
from tamt_kernels.ops.pattern import pattern_mask, pattern_weight
from tamt_kernels.ops.threshold import topk_threshold
from tamt_kernels.reference import Pattern, Thresholds

# φ₀ and α of eq. 5 (section 4.1.3): a kept entry starts at α φ₀ = 0.02 and a pruned one at 0. A score must move by 0.01
# to change the mask, which takes 200 steps at the paper's learning rate of 5e-5.
INITIAL_THRESHOLD = 0.01
INITIAL_SCALE = 2.0


def _parameter(name: str, argument: str, value: object) -> None:
    if not isinstance(value, nn.Parameter):
        raise TypeError(f"{name}: {argument} is a {type(value).__name__} but must be an nn.Parameter")
    checks.matrix(name, argument, value)


class _MaskedLayer(nn.Module):
    """A frozen weight W and a trained score S, of which the largest entries make the mask.

    These are the ``keep`` largest of the matrix, those above a threshold; or with a ``pattern`` the ``n`` largest of
    each ``m`` neighbours, without a threshold: ``value`` and ``cut`` are then missing.
    """

    weight: Tensor
    score: nn.Parameter
    value: Tensor
    cut: Tensor
    # Set and owned by ``MaskAdamW``. Without that optimizer there is none, and each forward masks the weight.
    masked: MaskedWeight | None = None

    def __init__(
        self, weight: Tensor, keep: int | Pattern, mask: Tensor | None = None, ranking: checks.Ranking = "signed"
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checks.absolute(name, ranking)
        _parameter(name, "weight", weight)
        checks.dimensions(name, "weight", weight, 2)
        self.pattern = keep if isinstance(keep, Pattern) else None
        self.ranking: checks.Ranking = ranking
        if isinstance(keep, Pattern):
            checks.pattern(name, "weight", weight, keep)
            self.keep = weight.numel() // keep.m * keep.n
        else:
            checks.keep(name, "keep", keep, "weight", weight)
            self.keep = keep
        if mask is None:
            if weight.isnan().any():
                raise ValueError(f"{name}: weight has NaN entries but must have none, as they rank nowhere")
            mask = self._largest(weight.detach())
        _check_mask(name, mask, weight, keep)
        self.weight = weight
        self.weight.requires_grad_(False)
        self.score = nn.Parameter(mask.to(torch.float32).contiguous() * (INITIAL_SCALE * INITIAL_THRESHOLD))
        if self.pattern is None:
            values, cuts = topk_threshold([self.score], [self.keep], ranking=ranking)
            self.register_buffer("value", values[0].clone())
            self.register_buffer("cut", cuts[0].clone())

    def _largest(self, weight: Tensor) -> Tensor:
        """The mask of the largest |W|."""
        if self.pattern is not None:
            return pattern_mask(weight, self.pattern, ranking="abs")
        thresholds = topk_threshold([weight], [self.keep], ranking="abs")
        return binarize(weight, thresholds.values[0], thresholds.cuts[0], ranking="abs")

    @property
    def mask(self) -> Tensor:
        """The mask, bool, with exactly ``keep`` ones after every ``update_masks``; with a pattern, always."""
        if self.pattern is not None:
            return pattern_mask(self.score, self.pattern, ranking=self.ranking)
        return binarize(self.score, self.value, self.cut, ranking=self.ranking)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the mask."""
        return 1 - self.keep / max(self.weight.numel(), 1)

    def masked_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """W ⊙ m, differentiable in the score."""
        if self.pattern is not None:
            return pattern_weight(self.weight, self.score, self.pattern, dtype, ranking=self.ranking)
        return mask_weight(self.weight, self.score, self.value, self.cut, dtype, ranking=self.ranking)

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to no optimizer that would keep its masked weight up to date.
        return {name: value for name, value in self.__dict__.items() if name != "masked"}

    def get_extra_state(self) -> Tensor:
        """``keep``, which belongs to the score, int64, 0-dim; or the pattern's ``n`` and ``m``, int64 [2]."""
        return torch.tensor(self.pattern or self.keep)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a state's masks are of the same kind as this one. Raises ValueError if not."""
        own = self.get_extra_state().tolist()
        if state.tolist() != own:
            raise ValueError(
                f"{type(self).__name__}: the state's keep is {state.tolist()} but must be {own}, the layer's; "
                "make the layer with the state's keep"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())  # older states have none
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self._memory() if self.masked is not None else []
        # .half() and the like must not round the score and its threshold: different scores would tie, and the mask
        # would change. They move to other devices but stay float32.
        score, grad = self.score.data, self.score.grad
        value = self.value if self.pattern is None else None
        grad = None if grad is None else grad.detach()  # because the gradient itself is converted in place
        super()._apply(fn, recurse)
        if self.score.dtype != torch.float32:
            self.score.data = score.to(self.score.device)
            self.score.grad = None if grad is None else grad.to(self.score.device)
            if value is not None:
                self.value = value.to(self.score.device)
        # Trainer and Accelerate call a .to() that moves nothing, after which the masked weight still holds. After one
        # that moves, the forward masks the weight again, and the optimizer's step raises an error.
        if self.masked is not None and self._memory() != before:
            self.masked = None
        return self

    def _memory(self) -> list[tuple[Any, ...]]:
        """Where and as what the weight and the score lie."""
        return [(tensor.device, tensor.dtype, tensor.data_ptr()) for tensor in (self.weight, self.score)]

    def extra_repr(self) -> str:
        kept = f"keep={self.keep}" if self.pattern is None else f"pattern={self.pattern}"
        return f"{tuple(self.weight.shape)}, {kept}, sparsity={self.sparsity:.4f}, {self.ranking}"


def _check_mask(name: str, mask: Tensor, weight: Tensor, keep: int | Pattern) -> None:
    """Must be a mask of a weight with ``keep`` ones, or of the pattern."""
    checks.tensor(name, "mask", mask)
    checks.dtype(name, "mask", mask, (torch.bool,))
    checks.shape(name, "mask", mask, tuple(weight.shape), "the shape of weight")
    checks.device(name, "mask", mask, weight.device, "weight")
    if isinstance(keep, Pattern):
        ones = mask.reshape(-1, keep.m).sum(1)
        if not bool((ones == keep.n).all()):
            group = int((ones != keep.n).nonzero()[0])
            raise ValueError(f"{name}: mask keeps {int(ones[group])} entries of group {group} but must keep {keep}")
    elif (ones := mask.sum()) != keep:
        raise ValueError(f"{name}: mask has {int(ones)} ones but must have {keep}, which is keep")


class MaskedLinear(_MaskedLayer):
    """``nn.Linear`` over W ⊙ m.

    ``score`` [out, in] is a float32 parameter, the only one that trains. ``value`` (float32) and ``cut`` (int64) are
    buffers that hold the threshold; ``update_masks`` renews them. With a pattern there are none, and the mask always
    follows from the score.

    Args:
        weight: W [out, in], a parameter, which gets frozen; float32, float16 or bfloat16.
        bias: a parameter [out], which gets frozen, or None.
        keep, mask, ranking: as in ``from_linear``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or number of ones, or is out of
            range; or no mask is given and the weight has NaN entries.
    """

    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        keep: int | Pattern,
        mask: Tensor | None = None,
        ranking: checks.Ranking = "signed",
    ) -> None:
        super().__init__(weight, keep, mask, ranking)
        if bias is not None:
            _parameter("MaskedLinear", "bias", bias)
            checks.shape("MaskedLinear", "bias", bias, (weight.shape[0],), "an entry for each row of weight")
            checks.device("MaskedLinear", "bias", bias, weight.device, "weight")
            bias.requires_grad_(False)
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, keep: int | Pattern, mask: Tensor | None = None, ranking: checks.Ranking = "signed"
    ) -> "MaskedLinear":
        """Wrap a layer. Its parameters are shared, not copied, and frozen.

        Args:
            linear: the layer.
            keep: number of ones in the mask, from 0 to the number of entries of the weight; or ``Pattern(n, m)``, to
                keep ``n`` of each ``m`` neighbours along the input, the weight's last dimension.
            mask: the first mask, bool, of the weight's shape, with ``keep`` ones or of the pattern. The default keeps
                the entries of largest |W| (one-shot magnitude pruning). The score starts at 0.02 where the mask is true
                and at 0 elsewhere (eq. 5).
            ranking: whether entries rank by the score ("signed") or by its absolute value ("abs").

        Raises:
            TypeError, ValueError: the layer is not an ``nn.Linear``, or the class refuses an argument.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"MaskedLinear: linear is a {type(linear).__name__} but must be an nn.Linear")
        return cls(linear.weight, linear.bias, keep, mask, ranking)

    def forward(self, x: Tensor) -> Tensor:
        if self.masked is not None:
            # A compiled backward cannot overwrite. It returns an ordinary gradient, which the optimizer takes as well.
            if self.masked.overwrite and not torch.compiler.is_compiling():
                return overwriting_linear(x, self.masked, self.bias)
            return linear(x, self.masked.tensor, self.bias)
        if self.pattern is not None:
            autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
            dtype = torch.get_autocast_dtype(x.device.type) if autocast else None
            return linear(x, self.masked_weight(dtype), self.bias)
        return masked_linear(x, self.weight, self.score, self.value, self.cut, self.bias, ranking=self.ranking)


class MaskedEmbedding(_MaskedLayer):
    """``nn.Embedding`` over W ⊙ m. It has the parameters and buffers of ``MaskedLinear`` but no bias.

    Args:
        weight: W [rows, columns], a parameter, which gets frozen; float32, float16 or bfloat16.
        padding_idx: a row whose score gets no gradient, as in ``masked_embedding``.
        keep, mask, ranking: as in ``MaskedLinear.from_linear``.

    Raises:
        TypeError, ValueError: as ``MaskedLinear`` does.
    """

    def __init__(
        self,
        weight: Tensor,
        keep: int | Pattern,
        mask: Tensor | None = None,
        padding_idx: int | None = None,
        ranking: checks.Ranking = "signed",
    ) -> None:
        super().__init__(weight, keep, mask, ranking)
        if padding_idx is not None:
            checks.row("MaskedEmbedding", "padding_idx", padding_idx, tuple(weight.shape))
        self.padding_idx = padding_idx
        self.num_embeddings, self.embedding_dim = weight.shape

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        keep: int | Pattern,
        mask: Tensor | None = None,
        ranking: checks.Ranking = "signed",
    ) -> "MaskedEmbedding":
        """Wrap a layer, as ``MaskedLinear.from_linear`` does.

        Raises:
            TypeError, ValueError: as there, or the embedding uses ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"MaskedEmbedding: embedding is a {type(embedding).__name__} but must be an nn.Embedding")
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(embedding, option):
                raise ValueError(f"MaskedEmbedding: embedding has {option} set, which is not supported")
        return cls(embedding.weight, keep, mask, embedding.padding_idx, ranking)

    def forward(self, ids: Tensor) -> Tensor:
        if self.masked is not None:
            # torch.compile does not support sparse gradients.
            sparse = self.masked.sparse and not torch.compiler.is_compiling()
            rows = F.embedding(ids, self.masked.tensor, self.padding_idx, sparse=sparse)
            return rows + self._rows(ids, self.score.detach()).to(rows.dtype) if self.masked.at_lookup else rows
        return self._rows(ids, self.score)

    def _rows(self, ids: Tensor, score: Tensor) -> Tensor:
        if self.pattern is not None:  # no group is in two rows
            scores = F.embedding(ids, score, self.padding_idx)
            return pattern_weight(F.embedding(ids, self.weight), scores, self.pattern, ranking=self.ranking)
        return masked_embedding(ids, self.weight, score, self.value, self.cut, self.padding_idx, ranking=self.ranking)


def masked_modules(modules: nn.Module | Iterable[nn.Module]) -> list["MaskedLinear | MaskedEmbedding"]:
    """The masked layers of a model, or among several modules."""
    modules = modules.modules() if isinstance(modules, nn.Module) else modules
    return [module for module in modules if isinstance(module, MaskedLinear | MaskedEmbedding)]


@torch.no_grad()
def update_masks(modules: nn.Module | Iterable[nn.Module]) -> None:
    """Renew every mask, so that each has exactly ``keep`` ones (section 3.4.2) or its pattern.

    Call it after every step of an optimizer other than ``MaskAdamW``, and after scores were changed or loaded. It runs
    one ``topk_threshold`` over all scores (one per device, ranking and dtype of masked weights, if these differ) and
    writes the thresholds, and the masked weights of ``MaskAdamW``, in place. It does not wait for a GPU: there, a
    matrix with a NaN score gets a mask of zeros.

    Args:
        modules: a model, or modules; those without a mask are skipped.

    Raises:
        ValueError: a score on a CPU has NaN entries.
        RuntimeError: a gradient of ``MaskAdamW(overwrite=True)`` waits for its step.
    """
    layers = masked_modules(modules)
    if any(layer.masked is not None and layer.masked.holds_gradient for layer in layers):
        raise RuntimeError(
            "update_masks: a masked weight holds its gradient; take the optimizer's step, or call its zero_grad, first"
        )
    groups: dict[tuple[Any, ...], list[MaskedLinear | MaskedEmbedding]] = {}
    for layer in layers:
        if layer.pattern is not None:
            if layer.masked is not None and not layer.masked.at_lookup:
                layer.masked.tensor.copy_(layer.masked_weight(layer.masked.tensor.dtype))
            continue
        dtype = None if layer.masked is None or layer.masked.at_lookup else layer.masked.tensor.dtype
        groups.setdefault((layer.score.device, layer.ranking, dtype), []).append(layer)
    for (_device, ranking, dtype), group in groups.items():
        scores, values, cuts = zip(*((layer.score, layer.value, layer.cut) for layer in group), strict=True)
        last = Thresholds(torch.stack(values), torch.stack(cuts))
        keep = [layer.keep for layer in group]
        thresholds = topk_threshold(scores, keep, ranking=ranking, last=last, check_nan=False)
        torch._foreach_copy_(values, list(thresholds.values.unbind()))
        torch._foreach_copy_(cuts, list(thresholds.cuts.unbind()))
        if dtype is not None:
            weights = [layer.weight for layer in group]
            masked_weights, _ = mask_weights(weights, scores, thresholds, dtype, ranking=ranking)
            torch._foreach_copy_([layer.masked.tensor for layer in group if layer.masked is not None], masked_weights)
