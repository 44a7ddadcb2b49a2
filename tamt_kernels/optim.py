"""AdamW for all score matrices at once, which leaves exact masks and the masked weights of the next forward."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from tamt_kernels.backend import checks
from tamt_kernels.masked_weight import MaskedWeight
from tamt_kernels.nn import MaskedEmbedding, masked_modules
from tamt_kernels.ops.gradient_norm import gradient_norm
from tamt_kernels.ops.mask_adamw import mask_adamw
from tamt_kernels.ops.pattern_adamw import pattern_adamw
from tamt_kernels.reference import group_offsets


class MaskAdamW(Optimizer):
    """One step for every masked module of a model: gradient, clipping, AdamW, thresholds, masked weights.

    Once the optimizer is made, the modules' forward uses a masked weight that ``step`` writes, instead of masking the
    weight at every call. The backward collects d(W ⊙ m), and ``step`` multiplies it by W once (eq. 4), however many
    backward passes there were. The scores themselves get no ``grad``. After every step each mask has exactly ``keep``
    ones (section 3.4.2), or exactly the ones of its pattern; a pattern needs no thresholds, so that such a step is
    faster.

    Move the model to its device and dtype first. A later ``.to()`` that changes neither is fine. After one that does,
    and in a copy of the model, the modules mask their weight at every call again; ``step`` then raises an error.

    AdamW is torch's (decoupled weight decay, bias correction), with the state ``step``, ``exp_avg`` and
    ``exp_avg_sq`` for each score; learning rate schedules and ``state_dict`` work as with any optimizer. A step with
    a gradient that is not finite changes nothing and is not counted. Nothing waits for a GPU, so a CUDA graph can
    capture a step after one step outside of a graph.

    The gradients belong to the masked weights, which are not parameters of the model. So use the optimizer's
    ``zero_grad``, not the model's; scale a loss by ``step(scale=...)``, not by a ``GradScaler``; and clip by
    ``max_norm``, not by ``torch.nn.utils.clip_grad_norm_``.

    On a CPU the gradient of an embedding is sparse, as with ``nn.Embedding(sparse=True)``: it holds the rows that were
    looked up. Rows that never were cost no time except in the threshold. On a GPU it is dense, because to know the
    number of these rows would mean to wait for the GPU.

    Args:
        modules: a model, or modules; those without a mask are skipped. All on one device, with one ranking,
            and with one pattern if they have one.
        others: further parameters to train, such as a head; they form the second of the two ``param_groups``.
        lr: learning rate. Give a 0-dim tensor on the device if a CUDA graph must follow a schedule: a graph keeps a
            number as it was when it was captured.
        betas, eps, weight_decay: AdamW's; the defaults are the paper's. ``eps`` must not be 0 in float32.
        max_norm: clip the norm of the gradients of all scores and ``others`` together at this; None for no clipping.
        dtype: dtype of the masked weights, in which the forward computes: autocast's if that is on. The default is that
            of the first module's weight.
        overwrite: whether the backward of a linear layer writes d(W ⊙ m) over W ⊙ m, which ``step`` writes anew.
            Gradients then take no memory of their own, 0.34 GB less for BERT-base in float32. Each step then allows one
            backward pass and always renews the masks. An embedding on a CPU keeps no W ⊙ m either (0.09 GB less), but
            masks the rows that it looks up. Linear layers then compute in ``dtype``, whatever autocast's is. It has no
            effect on a layer that is called several times in a forward pass, on an embedding on a GPU, or on a linear
            layer under ``torch.compile``. Activation checkpointing recomputes a checkpoint once more for each layer in
            it that follows a GELU.

    Raises:
        ValueError: there is no masked module; one has a frozen score; they differ in device, ranking or pattern; or a
            number is out of range.
        TypeError: ``dtype`` is not float32, float16 or bfloat16.
    """

    def __init__(
        self,
        modules: nn.Module | Iterable[nn.Module],
        others: Iterable[Tensor] = (),
        *,
        lr: float | Tensor = 5e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float | None = 1.0,
        dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> None:
        self.modules = masked_modules(modules)
        self.max_norm = max_norm
        _check_modules(self.modules)
        _check_numbers(lr, betas, eps, weight_decay, max_norm)
        checks.result_dtype("MaskAdamW", dtype)
        groups: list[dict[str, Any]] = [{"params": [module.score for module in self.modules]}]
        if others := list(others):
            groups.append({"params": others})
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        # Before the first forward: on a CPU, moments that are allocated after it take the memory that it freed, and the
        # next forward allocates that again, 0.1 GB for BERT-base at 4 x 128 tokens.
        self._score_state()
        self.masked_weights = self._make_masked_weights(dtype or self.modules[0].weight.dtype, overwrite)
        self._find_rows_with_moments()

    @torch.no_grad()
    def _make_masked_weights(self, dtype: torch.dtype, overwrite: bool) -> list[MaskedWeight]:
        """Mask every weight, and let the modules use the results."""
        device = self.modules[0].weight.device
        sparse = [isinstance(module, MaskedEmbedding) and device.type == "cpu" for module in self.modules]
        at_lookup = [overwrite and is_sparse for is_sparse in sparse]
        sizes = [0 if at else module.weight.numel() for module, at in zip(self.modules, at_lookup, strict=True)]
        masked_weights = []
        for i, memory in enumerate(_allocate(sizes, dtype, device)):
            module = self.modules[i]
            if at_lookup[i]:
                # All rows can be added to -0 without a change, even a row with a -0.
                tensor = memory.new_tensor(-0.0).expand(module.weight.shape)
            else:
                view = memory.view(module.weight.shape)
                view.copy_(module.masked_weight(dtype))
                # Not detach(): views of one memory share a version counter, and autograd would take the gradient of one
                # for a change of all.
                tensor = view.data
            module.masked = MaskedWeight(module.weight, tensor.requires_grad_(), sparse[i], overwrite)
            masked_weights.append(module.masked)
        return masked_weights

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, scale: float | Tensor | None = None, renew: bool = True
    ) -> Tensor:
        """Take a step.

        Args:
            closure: not supported, must be None.
            scale: the factor by which the loss was multiplied, for float16: a number, or 0-dim float32 on the device.
            renew: whether to renew the masks. If not, call ``update_masks`` some steps later. It must be true for
                masks of a pattern.

        Returns:
            The norm of the gradient before clipping, float32 0-dim, without waiting for it. If it is not finite the
            step changed nothing.

        Raises:
            RuntimeError: there was no backward pass; a module was moved, converted or given to another optimizer; or
                ``renew`` is false and masked weights hold their gradients, or masks have a pattern.
            TypeError: there is a closure.
        """
        if closure is not None:
            raise TypeError(
                f"MaskAdamW: closure is a {type(closure).__name__} but must be None; call backward, then step"
            )
        self._check_step(renew)
        parts = [masked.gradient() for masked in self.masked_weights]
        grads, weights, grad_rows = (list(part) for part in zip(*parts, strict=True))
        others = self._others_with_gradient()
        unscale = (
            1 / scale
            if isinstance(scale, Tensor)
            else torch.full((), 1.0 if scale is None else 1 / scale, dtype=torch.float32, device=weights[0].device)
        )
        norm = self._norm(grads, weights, others) * unscale
        # As torch.nn.utils.clip_grad_norm_ clips. A factor that is not finite stays so, and stops the kernel.
        clip = unscale if self.max_norm is None else unscale * (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        finite = norm.isfinite()
        self._step_scores(grads, weights, grad_rows, clip, finite, renew)
        for masked in self.masked_weights:
            increment_version(masked.tensor)  # a graph that saved the old W ⊙ m must not go on
            masked.forwards = 0
            if masked.holds_gradient:
                masked.tensor.grad = None
        if others:
            self._step_others(others, clip, finite)
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the masked weights and of the other parameters."""
        super().zero_grad(set_to_none)
        for module, masked in zip(self.modules, self.masked_weights, strict=True):
            masked.forwards = 0
            if masked.holds_gradient:
                with torch.no_grad():
                    masked.tensor.copy_(module.masked_weight(masked.tensor.dtype))
            masked.tensor.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused, because the optimizer has exactly two groups: scores and ``others``. Raises a RuntimeError."""
        if hasattr(self, "masked_weights"):
            raise RuntimeError("MaskAdamW: a group cannot be added; give its parameters as others when making it")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("MaskAdamW: it cannot be copied or pickled, as it belongs to its modules; use its state_dict")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state that ``state_dict`` gave. Load the scores separately, and call ``update_masks`` after that."""
        super().load_state_dict(state_dict)
        # torch leaves counts, and learning rates that are tensors, on the device on which they were saved.
        for parameter, state in self.state.items():
            state["step"] = state["step"].to(parameter.device, torch.float32)
        scores = self.param_groups[0]["params"]
        for score in scores if scores[0] in self.state else ():
            self.state[score]["step"] = self.state[scores[0]]["step"]
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].to(scores[0].device)
        self._find_rows_with_moments()

    def _find_rows_with_moments(self) -> None:
        means, squares, _ = self._score_state()
        for masked, mean, square in zip(self.masked_weights, means, squares, strict=True):
            masked.find_rows_with_moments(mean, square)

    def _check_step(self, renew: bool) -> None:
        for i, (module, masked) in enumerate(zip(self.modules, self.masked_weights, strict=True)):
            if module.masked is not masked:
                raise RuntimeError(
                    f"MaskAdamW: masked module {i} was moved, converted or given to another MaskAdamW after the "
                    "optimizer was made; call .to() first, and then make the optimizer"
                )
        if all(masked.tensor.grad is None for masked in self.masked_weights):
            raise RuntimeError("MaskAdamW: step found no gradient; call backward before it")
        if not renew and any(masked.holds_gradient for masked in self.masked_weights):
            raise RuntimeError(
                "MaskAdamW: renew is False but must be True, because gradients lie where the masked weights were"
            )

        if not renew and self.modules[0].pattern is not None:
            raise RuntimeError("MaskAdamW: renew is False but must be True for masks of a pattern")

    @staticmethod
    def _norm(grads: list[Tensor], weights: list[Tensor], others: list[Tensor]) -> Tensor:
        """The norm of all gradients together, of scores and of ``others``."""
        norm: Tensor = gradient_norm(grads, weights)
        if others:
            # In float32, as float16 cannot hold the squares.
            present = [parameter.grad for parameter in others if parameter.grad is not None]
            norms = torch._foreach_norm(present, 2, torch.float32)
            norm = torch.linalg.vector_norm(torch.stack([norm, *norms]))
        return norm

    def _score_state(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The moments of all scores, created if there are none yet, and the count of steps, which they share."""
        scores = self.param_groups[0]["params"]
        states = [self.state[score] for score in scores]
        if not states[0]:
            step = torch.zeros((), dtype=torch.float32, device=scores[0].device)
            for score, state in zip(scores, states, strict=True):
                state.update(step=step, exp_avg=torch.zeros_like(score), exp_avg_sq=torch.zeros_like(score))
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], states[0]["step"]

    def _step_scores(
        self,
        grads: list[Tensor],
        weights: list[Tensor],
        grad_rows: list[Tensor],
        clip: Tensor,
        finite: Tensor,
        renew: bool,
    ) -> None:
        group = self.param_groups[0]
        means, squares, step = self._score_state()
        step += finite
        beta1, beta2 = group["betas"]
        count = step.double()
        rates = torch.stack(
            [
                clip.masked_fill(~finite, torch.nan).double(),
                group["lr"] / (1 - beta1**count),
                (1 - beta2**count).sqrt(),
                torch.ones_like(count) - group["lr"] * group["weight_decay"],
            ]
        ).float()
        tensors = [
            grads, [masked.weight for masked in self.masked_weights], group["params"], means, squares,
            [masked.written for masked in self.masked_weights],
        ]  # fmt: skip
        pattern, absolute = self.modules[0].pattern, self.modules[0].ranking == "abs"
        if pattern is not None:
            pattern_adamw(*tensors, *pattern, rates, beta1, beta2, group["eps"], absolute, grad_rows)
            return
        # The modules' thresholds, because update_masks may have renewed them.
        values, cuts = [module.value for module in self.modules], [module.cut for module in self.modules]
        new_values, new_cuts = torch.stack(values), torch.stack(cuts)
        keep = [module.keep for module in self.modules]
        mask_adamw(*tensors, new_values, new_cuts, keep, rates, beta1, beta2, group["eps"], renew, absolute, grad_rows)
        if renew:
            torch._foreach_copy_(values, list(new_values.unbind()))
            torch._foreach_copy_(cuts, list(new_cuts.unbind()))

    def _others_with_gradient(self) -> list[Tensor]:
        return [
            parameter for group in self.param_groups[1:] for parameter in group["params"] if parameter.grad is not None
        ]

    def _step_others(self, parameters: list[Tensor], clip: Tensor, finite: Tensor) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter].update(step=step, **moments)
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(grads, clip)
        group = self.param_groups[1]
        lr = group["lr"]
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=True,
            found_inf=(~finite).float(),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr.float() if isinstance(lr, Tensor) else lr,  # on a GPU it must be float32
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _check_modules(modules: list[Any]) -> None:
    if not modules:
        raise ValueError("MaskAdamW: modules has no MaskedLinear or MaskedEmbedding but must have one or more")
    for i, module in enumerate(modules):
        if not module.score.requires_grad:
            raise ValueError(
                f"MaskAdamW: the score of masked module {i} is frozen; leave that module out, or let its score train"
            )
        checks.device("MaskAdamW", f"masked module {i}", module.score, modules[0].score.device, "masked module 0")
        if module.ranking != modules[0].ranking:
            raise ValueError(
                f"MaskAdamW: masked module {i} has ranking {module.ranking!r} but must have {modules[0].ranking!r}, "
                "as masked module 0 has"
            )
        if module.pattern != modules[0].pattern:
            raise ValueError(
                f"MaskAdamW: masked module {i} has the pattern {module.pattern} but must have {modules[0].pattern}, "
                "as masked module 0 has"
            )


def _check_numbers(
    lr: float | Tensor, betas: tuple[float, float], eps: float, weight_decay: float, max_norm: float | None
) -> None:
    for name, value, fits in (
        ("lr", lr, getattr(lr, "ndim", 0) == 0 and lr >= 0),
        ("betas[0]", betas[0], 0 <= betas[0] < 1),
        ("betas[1]", betas[1], 0 <= betas[1] < 1),
        # With 0 the score of a weight that no input reaches would become NaN, 0 / 0.
        ("eps", eps, eps >= torch.finfo(torch.float32).tiny),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("max_norm", max_norm, max_norm is None or max_norm > 0),
    ):
        if not fits:
            raise ValueError(f"MaskAdamW: {name} is {value}, which is out of range")


def _allocate(sizes: list[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Uninitialised tensors with these numbers of entries.

    On a GPU they follow each other in one memory, as a kernel that takes all of them at once needs. On a CPU each has
    its own memory, so that ``overwrite_linear_backward_weight`` can replace it.
    """
    if device.type == "cpu":
        return [torch.empty(size, dtype=dtype) for size in sizes]
    offsets, total = group_offsets(sizes)
    memory = torch.empty(total, dtype=dtype, device=device)
    return [memory[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
