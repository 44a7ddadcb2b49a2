"""Layers that store and multiply only the kept entries of a weight, for ``nn.Linear`` and ``nn.Embedding``."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tamt_kernels.backend import checks, choices
from tamt_kernels.ops.linear import Linear
from tamt_kernels.ops.pack import pack_mask, unpack_mask
from tamt_kernels.ops.pack_sparse import VALUE_TYPES, SparseWeight, check_kept, check_sparse, pack_sparse
from tamt_kernels.ops.sparse_embedding import sparse_embedding
from tamt_kernels.ops.sparse_linear import sparse_linear

# The sparsity from which a product of 32 and more tokens takes less time than the dense one of the same type, measured
# on AVX-512 CPUs (benchmarks/results), by the type of the values.
BREAK_EVEN = {torch.float32: 0.35, torch.bfloat16: 0.45}

_PATTERN = ("columns", "order", "counts", "starts")
"""The buffers of a layer that hold its weight's pattern, in the order of ``SparseWeight.pattern``."""


def least_sparsity(values: torch.dtype) -> float:
    """The sparsity below which a layer stays dense: what ``autotune`` measured on this machine, else ``BREAK_EVEN``.

    Args:
        values: the type of the kept entries, float32 or bfloat16.
    """
    return choices.of(torch.device("cpu")).break_even.get(choices.type_name(values), BREAK_EVEN[values])


class _SparseModule(nn.Module):
    """A layer whose weight is a ``SparseWeight``: a parameter, the values, and the buffers of their pattern.

    Its state holds what any program can read: ``mask``, the bits of ``pack_mask``, and ``values``, the kept entries in
    row-major order. Loading a state takes over its mask. The parameter stays the same, with another length if the mask
    keeps another number of entries, so that an optimizer and tied layers still have it.
    """

    values: nn.Parameter
    columns: Tensor
    order: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(self, weight: SparseWeight, trainable: bool = True) -> None:
        super().__init__()
        self._shape = weight.shape
        values = weight.values
        if not isinstance(values, nn.Parameter):  # otherwise the parameter of another layer of the same weight
            values = nn.Parameter(values, requires_grad=trainable)
        self.values = values
        self._set_pattern(weight)

    def _set_pattern(self, weight: SparseWeight) -> None:
        for name, part in zip(_PATTERN, weight.pattern, strict=True):
            self.register_buffer(name, part, persistent=False)

    @property
    def weight(self) -> SparseWeight:
        """W, with this layer's very tensors."""
        return SparseWeight(self._shape, self.values, self.columns, self.order, self.counts, self.starts)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        mask, values = self.weight.kept()
        destination[f"{prefix}values"] = values if keep_vars else values.detach()
        destination[f"{prefix}mask"] = pack_mask(mask)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state = dict(state_dict)
        missing, _, errors = rest[-3:]
        packed, values = state.pop(f"{prefix}mask", None), state.get(f"{prefix}values")
        if packed is None:
            missing.append(f"{prefix}mask")
        elif values is not None:
            try:
                mask = unpack_mask(packed, self._shape).to(self.values.device)
                new = SparseWeight.from_kept(mask, values.detach().to(self.values))
                if not all(map(torch.equal, new.pattern, (getattr(self, name) for name in _PATTERN))):
                    self.values.data = new.values  # the same parameter, so that tied layers stay tied
                    self._set_pattern(new)
                state[f"{prefix}values"] = new.values
            except (TypeError, ValueError) as error:
                errors.append(f"{prefix.rstrip('.')}: {error}")
                return
        super()._load_from_state_dict(state, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if (dtype := fn(self.values.detach()[:0]).dtype) not in VALUE_TYPES:
            raise TypeError(
                f"{type(self).__name__}: {str(dtype).removeprefix('torch.')} values are not supported; they must be "
                "float32 or bfloat16"
            )
        return super()._apply(fn, recurse)

    def _described(self) -> str:
        weight = self.weight
        return f"{str(weight.dtype).removeprefix('torch.')}, sparsity={weight.sparsity:.4f}"


class SparseLinear(_SparseModule):
    """``nn.Linear`` that stores and multiplies only the kept entries of its weight, by ``sparse_linear``.

    Made with every entry pruned, to load a state into; ``from_linear`` and ``from_weight`` make it of a weight.

    Args:
        in_features, out_features, bias: as of ``nn.Linear``.
        values: the type of the kept entries, float32 or bfloat16; of the bias, too.
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, values: torch.dtype = torch.float32
    ) -> None:
        super().__init__(pack_sparse(torch.zeros(out_features, in_features), values=values))
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, dtype=values)) if bias else None)

    @classmethod
    def from_weight(cls, weight: SparseWeight, bias: Tensor | None = None, *, trainable: bool = True) -> "SparseLinear":
        """A layer of a weight and a bias, whose tensors are taken, not copied.

        Args:
            weight: W [out, in].
            bias: [out], or None.
            trainable: whether the values, and a bias that is no parameter yet, get gradients.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        check_sparse("SparseLinear", weight)
        layer = cls.__new__(cls)
        _SparseModule.__init__(layer, weight, trainable)
        layer.out_features, layer.in_features = weight.shape
        if bias is not None:
            checks.matrix("SparseLinear", "bias", bias)
            checks.shape("SparseLinear", "bias", bias, (weight.shape[0],), "an entry for each row of weight")
            checks.device("SparseLinear", "bias", bias, weight.device, "weight")
            bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach(), requires_grad=trainable)
        layer.register_parameter("bias", bias)
        return layer

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, mask: Tensor | None = None, *, values: torch.dtype | None = None
    ) -> "SparseLinear":
        """A layer of the kept entries of another's weight, which are copied, and of its bias, which is taken.

        Args:
            linear: the layer.
            mask, values: as of ``pack_sparse``.

        Raises:
            TypeError, ValueError: as ``pack_sparse`` does, or the layer is no ``nn.Linear``.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"SparseLinear: linear is a {type(linear).__name__} but must be an nn.Linear")
        weight = pack_sparse(linear.weight, mask, values=values)
        layer = cls.from_weight(weight, linear.bias, trainable=linear.weight.requires_grad)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        return sparse_linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            + self._described()
        )


class SparseEmbedding(_SparseModule):
    """``nn.Embedding`` that stores only the kept entries of its weight; the rows looked up are expanded.

    Made with every entry pruned, to load a state into; ``from_embedding`` and ``from_weight`` make it of a weight.

    Args:
        num_embeddings, embedding_dim, padding_idx: as of ``nn.Embedding``.
        values: the type of the kept entries, float32 or bfloat16, which is that of the result.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        values: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(pack_sparse(torch.zeros(num_embeddings, embedding_dim), values=values))
        self._set(padding_idx)

    def _set(self, padding_idx: int | None) -> None:
        self.num_embeddings, self.embedding_dim = self._shape
        if padding_idx is not None:
            checks.row("SparseEmbedding", "padding_idx", padding_idx, tuple(self._shape))
            padding_idx %= self.num_embeddings
        self.padding_idx = padding_idx

    @classmethod
    def from_weight(
        cls, weight: SparseWeight, padding_idx: int | None = None, *, trainable: bool = True
    ) -> "SparseEmbedding":
        """A layer of a weight [rows, columns], whose tensors are taken, not copied.

        Raises:
            TypeError, ValueError: an argument has the wrong type, or ``padding_idx`` is out of range.
        """
        check_sparse("SparseEmbedding", weight)
        layer = cls.__new__(cls)
        _SparseModule.__init__(layer, weight, trainable)
        layer._set(padding_idx)
        return layer

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, mask: Tensor | None = None, *, values: torch.dtype | None = None
    ) -> "SparseEmbedding":
        """A layer of the kept entries of another's weight, which are copied.

        Args:
            embedding: the layer.
            mask, values: as of ``pack_sparse``.

        Raises:
            TypeError, ValueError: as ``pack_sparse`` does, or the layer is no ``nn.Embedding`` or uses ``max_norm``,
                ``scale_grad_by_freq`` or ``sparse``.
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"SparseEmbedding: embedding is a {type(embedding).__name__} but must be an nn.Embedding")
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(embedding, option):
                raise ValueError(f"SparseEmbedding: embedding has {option} set but must not, it is not supported")
        weight = pack_sparse(embedding.weight, mask, values=values)
        layer = cls.from_weight(weight, embedding.padding_idx, trainable=embedding.weight.requires_grad)
        return layer.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        return sparse_embedding(ids, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f"padding_idx={self.padding_idx}, "
        return f"{self.num_embeddings}, {self.embedding_dim}, {padding}{self._described()}"


Users = list[tuple[nn.Module, str]]  # the layers that use one weight, by their parents and their names there


def sparsify(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    values: torch.dtype | None = None,
    at_least: float | None = None,
) -> None:
    """Replace the ``nn.Linear`` and ``nn.Embedding`` layers of a model by sparse ones, in place.

    Names and biases are kept; layers that share a weight share it afterwards. A weight whose sparsity is below
    ``at_least`` stays dense, because the dense product is faster there: its mask is applied, and a warning names it.
    ``save_pretrained`` of a model with sparse layers raises RuntimeError, because nothing could open what it writes.

    Args:
        model: the model; if it is a layer itself, it cannot be replaced.
        masks: the masks, bool, by the names of the weights in ``model.named_parameters()``. By default the entries
            that are not 0, of every such layer.
        values: as of ``pack_sparse``.
        at_least: the least sparsity; by default ``least_sparsity`` of the type of the values.

    Raises:
        KeyError: a mask names no weight of such a layer.
        TypeError, ValueError: a mask has the wrong dtype, shape or device, or the weight is used by a module of another
            kind, too. Nothing is replaced then.
    """
    weights, users = _layers("sparsify", model)
    if masks is None:
        masks, named = {name: weight.detach() != 0 for name, weight in weights.items()}, False
    else:
        named = True
    for name in masks:
        if name not in weights:
            prefix = next((weight.removesuffix(name) for weight in weights if weight.endswith(f".{name}")), None)
            remedy = f"; put {prefix!r} before the names, as the model has it" if prefix else ""
            raise KeyError(
                f"sparsify: masks has {name!r}, but no nn.Linear or nn.Embedding of the model has it{remedy}"
            )
    types = {name: check_kept(weights[name], mask, values) for name, mask in masks.items()}
    dense: dict[str, float] = {}
    for name, mask in masks.items():
        weight, sparsity = weights[name], 1 - int(mask.count_nonzero()) / mask.numel()
        if sparsity < (least_sparsity(types[name]) if at_least is None else at_least):
            dense[name] = sparsity
            weight.data.masked_fill_(~mask, 0)
        else:
            _replace(model, users[weight], pack_sparse(weight, mask, values=values))
    if dense and named:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(dense.items())[:3])
        more = ", …" if len(dense) > 3 else ""
        warnings.warn(
            f"sparsify: {len(dense)} of {len(masks)} weights stay dense, whose product is faster at their sparsity "
            f"({shares}{more})",
            stacklevel=2,
        )


def set_sparse(model: nn.Module, name: str, weight: SparseWeight) -> None:
    """Replace the ``nn.Linear`` and ``nn.Embedding`` layers that use one weight by sparse ones of another, in place.

    Args:
        model: the model.
        name: of the weight, in ``model.named_parameters()``; its entries are not read.
        weight: of the same shape; its tensors are taken, not copied.

    Raises:
        KeyError: there is no weight of such a layer with this name.
        ValueError: the shapes differ, or the weight is used by a module of another kind, too.
    """
    weights, users = _layers("set_sparse", model)
    if name not in weights:
        raise KeyError(f"set_sparse: name is {name!r}, but no nn.Linear or nn.Embedding of the model has such a weight")
    if weights[name].shape != weight.shape:
        raise ValueError(
            f"set_sparse: weight has shape {tuple(weight.shape)} but must have {tuple(weights[name].shape)}, as {name} "
            "has"
        )
    _replace(model, users[weights[name]], weight)


def _layers(operation: str, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, Users]]:
    """The weights of a model's layers that can be sparse, by name, and the layers that use each."""
    users: dict[nn.Parameter, Users] = {}
    others: dict[nn.Parameter, str] = {}
    for path, parent in model.named_modules():
        for name, module in parent._modules.items():  # named_children() names a module only once
            # Of no subclass: it may use its weight otherwise, as that of nn.MultiheadAttention does.
            if module is None:
                continue
            if type(module) in (nn.Linear, Linear, nn.Embedding):
                users.setdefault(module.weight, []).append((parent, name))
            else:
                inside = f"{path}.{name}".lstrip(".")
                others.update((parameter, inside) for parameter in module.parameters(recurse=False))
    if shared := users.keys() & others.keys():
        raise ValueError(
            f"{operation}: {others[shared.pop()]} shares the weight of an nn.Linear or nn.Embedding but is neither; "
            "untie it first"
        )
    return {name: weight for name, weight in model.named_parameters() if weight in users}, users


def _replace(model: nn.Module, users: Users, weight: SparseWeight) -> None:
    """Put sparse layers of one weight into the places of dense ones. `model` can then not be saved as a dense one."""
    new: dict[nn.Module, SparseLinear | SparseEmbedding] = {}
    for parent, name in users:
        old = parent.get_submodule(name)
        assert isinstance(old, nn.Linear | nn.Embedding)
        if old not in new:
            trainable = old.weight.requires_grad
            if isinstance(old, nn.Embedding):
                new[old] = SparseEmbedding.from_weight(weight, old.padding_idx, trainable=trainable)
            else:
                new[old] = SparseLinear.from_weight(weight, old.bias, trainable=trainable)
            new[old].train(old.training)
            weight = new[old].weight  # whose values are a parameter now: the next layer takes the same
        setattr(parent, name, new[old])
    for module in model.modules():
        if hasattr(module, "save_pretrained"):
            module.save_pretrained = _refuse_to_save  # type: ignore[assignment]


def _refuse_to_save(*_: Any, **__: Any) -> None:
    """Stands for ``save_pretrained``, which would write a folder that transformers fills with random matrices."""
    raise RuntimeError(
        "save_pretrained: the model runs sparse, and transformers would open what it writes with random matrices; save "
        "the dense model instead, which tamt export --format dense writes of a sparse file"
    )
