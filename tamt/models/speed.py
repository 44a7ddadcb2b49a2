"""Changes to the speed or the memory of a model that do not change what it computes."""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.models.attention import use_fast_attention
from tamt.models.dropout import use_fast_dropout
from tamt.models.shared_cast import share_casts
from tamt.runtime.errors import UserError


def speed_up(model: PreTrainedModel) -> None:
    """Make a model run faster, in place; it computes the same.

    See `tamt.models.attention`, `tamt.models.dropout`, `tamt.models.shared_cast` and `tk.linear`.
    """
    tk.use_fast_products(model)
    use_fast_attention(model)
    use_fast_dropout(model)
    share_casts(model)


def checkpoint_activations(model: PreTrainedModel, name: str) -> None:
    """Let each layer keep only its input in training, and compute the rest again in the backward pass.

    This is transformers' own activation checkpointing, not the re-entrant kind. Dropout is drawn again from the same
    state of the generators, so that losses and gradients are the same bit for bit.

    Args:
        model: changed in place.
        name: what a message calls it.

    Raises:
        UserError: transformers cannot do so with this model.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"{name} ({type(model).__name__}) cannot compute its activations again, as transformers has it; leave "
            "--activation-checkpointing out"
        ) from error
    model.disable_input_require_grads()  # only the re-entrant kind needs them, and their hooks cannot be copied


def dense_twin(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A second, dense model that shares the parameters: the KD teacher, frozen and in eval mode.

    Call it before masks are put on `model`. The paper's published code left the teacher's dropout on; here it is off.

    Args:
        model: any model.
        dtype: the type that autocast computes in. In half precision the twin's linear layers hold copies of this type,
            which autocast would otherwise make in every forward pass.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, memo=dict(shared)).eval()
    for module in twin.modules() if dtype != torch.float32 else ():
        if isinstance(module, nn.Linear):
            for name, parameter in module.named_parameters():
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    return twin
