"""Pruned weights that stay zero however a model is trained."""

from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.masking import check_shapes_fit, encoder_of, prunable_weights
from tamt.runtime.errors import UserError
from tamt_kernels.backend.checks import FLOAT_TYPES


class _Zeros:
    """Hooks of an encoder that clear the gradients of pruned weights, and the weights where they came back.

    A weight whose gradient is exactly zero stays zero under weight decay, momentum and moments. The gradient is cleared
    as soon as it is accumulated, which is before DistributedDataParallel and optimizers read it.
    """

    def __init__(self, packed: Mapping[str, Tensor]) -> None:
        """`packed`: the mask of each weight by the weight's name in the encoder, as `tk.pack_mask` packs it."""
        self.packed = dict(packed)
        self._watched: dict[str, tuple[ReferenceType[Tensor], RemovableHandle | None]] = {}  # None: frozen
        self._frozen: set[str] = set()  # of them; apart, as compiled code would check all of `_watched` at each call

    def __getstate__(self) -> dict[str, Any]:
        # A copied or unpickled model has parameters of its own, which get hooks at its next forward pass.
        return {"packed": self.packed, "_watched": {}, "_frozen": set()}

    def install(self, encoder: torch.nn.Module) -> None:
        """Zero the pruned weights and keep them zero from now on."""
        encoder.register_forward_pre_hook(self.before_forward)
        encoder.register_load_state_dict_post_hook(self.after_load)
        self.watch(encoder)

    def remove(self, encoder: torch.nn.Module) -> None:
        """Take all hooks off. Those of the encoder are found by their owner, as a copied encoder has no handles."""
        for _, handle in self._watched.values():
            if handle is not None:
                handle.remove()
        for hooks in (encoder._forward_pre_hooks, encoder._load_state_dict_post_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
        self._watched, self._frozen = {}, set()

    def before_forward(self, encoder: torch.nn.Module, arguments: Any) -> None:
        """Watch parameters that took the place of others, as in a copy of the model, and those that train from now on.

        Not where the weights are other tensors for a while, as with `torch.func.functional_call` and in the replicas of
        DataParallel: their gradients go to the parameters, which are watched. Compiled code comes here only if there is
        something new.
        """
        if torch.compiler.is_exporting():
            return
        thawed = any(getattr(_weight(encoder, name), "requires_grad", False) for name in self._frozen)
        if thawed or not self._watched or not torch.compiler.is_compiling():
            self._watch_again(encoder)

    @torch.compiler.disable
    def _watch_again(self, encoder: torch.nn.Module) -> None:
        self.watch(encoder)

    def after_load(self, encoder: torch.nn.Module, keys: Any) -> None:
        """Zero what `load_state_dict` brought back."""
        self._prune(self._parameters(encoder))
        self.watch(encoder)  # with assign=True the parameters are others

    def watch(self, encoder: torch.nn.Module) -> None:
        """Zero the pruned entries of each weight that is new here, and of its gradient; hook it once it trains."""
        fresh = {}
        for name, weight in self._parameters(encoder).items():
            known, handle = self._watched.get(name, (None, None))
            if known is None or known() is not weight or (handle is None and weight.requires_grad):
                fresh[name] = weight
        self._prune(fresh)
        for name, weight in fresh.items():
            handle = None
            if weight.requires_grad:
                handle = weight.register_post_accumulate_grad_hook(lambda weight, name=name: self._clear(weight, name))
                self._clear(weight, name)
            self._watched[name] = ref(weight), handle
        self._frozen = {name for name, (_, handle) in self._watched.items() if handle is None}

    def _parameters(self, encoder: torch.nn.Module) -> dict[str, Tensor]:
        """The weights with a mask, without what stands in for one: a tensor for a while, or a matrix that runs sparse,
        which holds no pruned entry."""
        weights = {name: _weight(encoder, name) for name in self.packed}
        return {name: weight for name, weight in weights.items() if isinstance(weight, torch.nn.Parameter)}

    def _prune(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._zero(tensor.detach(), name)

    def _zero(self, tensor: Tensor, name: str) -> None:
        """Set the pruned entries of a weight, or of its gradient, to zero. Raises UserError if it was resized."""
        packed = self.packed[name]
        if len(packed) != -(-tensor.numel() // 8):
            raise UserError(
                f"{name} has {list(tensor.shape)} entries, other than its mask, as it was resized after the ticket was "
                "applied; resize the model first, and apply a ticket that was found in that model"
            )
        if packed.device != tensor.device:
            packed = self.packed[name] = packed.to(tensor.device)
        if tensor.is_sparse:  # the rows of an embedding that were looked up
            tensor.values().masked_fill_(~tk.unpack_mask(packed, tuple(tensor.shape))[tensor.indices()[0]], 0)
        elif tensor.dtype in FLOAT_TYPES:
            tk.prune_([tensor], [packed])
        else:
            tensor.masked_fill_(~tk.unpack_mask(packed, tuple(tensor.shape)), 0)

    def _clear(self, weight: Tensor, name: str) -> None:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.coalesce()
        if weight.grad is not None:
            self._zero(weight.grad, name)


def keep_zeros(model: PreTrainedModel, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set the pruned weights of `model` to zero, and keep them zero while it trains from now on.

    This covers gradient accumulation, weight decay, momentum, loss scaling, DistributedDataParallel, `torch.compile`,
    `model.to()`, `load_state_dict` and `copy.deepcopy`. It does not cover an optimizer that changes weights whose
    gradient is zero: one that adds noise or mixes the entries of a matrix (Muon), or one that took steps before and
    has moments of them.

    Args:
        model: with any head, or none.
        packed: the mask of each prunable matrix as `tk.pack_mask` packs it, by the names of `prunable_weights`.
        shapes: the shape of each of these masks.

    Raises:
        UserError: the masks are for another model, or the model has masks already.
    """
    if holds_zeros(model):
        raise UserError("the model has a ticket already; remove that first, or load the model again")
    check_shapes_fit(shapes, model)
    _Zeros(_masks_for(model, packed)).install(model.base_model)


def free_zeros(model: PreTrainedModel) -> None:
    """Let the pruned weights of `model` train again, from zero. Raises UserError if nothing holds them."""
    zeros = _zeros_of(model)
    if zeros is None:
        raise UserError("the model has no ticket; nothing holds its weights at zero")
    zeros.remove(model.base_model)


def holds_zeros(model: PreTrainedModel) -> bool:
    """Whether `keep_zeros` was called for `model`, or for the one that it is a copy of."""
    return _zeros_of(model) is not None


def holds_zeros_of(model: PreTrainedModel, packed: Mapping[str, Tensor]) -> bool:
    """Whether the zeros of these very masks are kept in `model`. `packed` as of `keep_zeros`."""
    zeros = _zeros_of(model)
    wanted = _masks_for(model, packed)
    if zeros is None or zeros.packed.keys() != wanted.keys():
        return False
    return all(torch.equal(mask.cpu(), wanted[name].cpu()) for name, mask in zeros.packed.items())


def revived(
    model: PreTrainedModel, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """How many pruned weights are not zero, for each matrix of `model` that has any. Arguments as of `keep_zeros`."""
    counts = {}
    for name, weight in prunable_weights(model, pooler=True).items():
        if name in packed:
            kept = tk.unpack_mask(packed[name].to(weight.device), shapes[name])
            counts[name] = int((weight.detach().masked_fill(kept, 0) != 0).sum())
    return {name: count for name, count in counts.items() if count}


def _masks_for(model: PreTrainedModel, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of matrices that `model` has: a pooler may be missing."""
    known = prunable_weights(model, pooler=True)
    return {name: mask for name, mask in packed.items() if name in known}


def _weight(encoder: torch.nn.Module, name: str) -> Any:
    """The weight of that name, or what stands in for it."""
    module, _, last = name.rpartition(".")
    return getattr(encoder.get_submodule(module), last)


def _zeros_of(model: PreTrainedModel) -> _Zeros | None:
    hooks = encoder_of(model)._forward_pre_hooks.values()
    return next((owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), _Zeros)), None)
