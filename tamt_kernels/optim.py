"""AdamW for all score matrices at once, which leaves exact masks and the masked weights that the next forward uses."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from tamt_kernels.backend import checks
from tamt_kernels.nn import MaskedEmbedding, masked_modules
from tamt_kernels.ops.mask_adamw import gradient_norm, mask_adamw
from tamt_kernels.reference import NO_GRADIENT, NO_MOMENTS, group_offsets


class MaskAdamW(Optimizer):
    """One step for every masked module of a model: gradient, clipping, AdamW, thresholds, masked weights.

    From its making on, the modules' forward uses a masked weight that ``step`` writes, in place of masking the
    weight at every call; the backward collects d(W ⊙ m), and ``step`` multiplies it by W once (eq. 4), however
    many backward passes went before. The scores themselves get no ``grad``. After every step each mask has
    exactly ``keep`` ones (section 3.4.2). A module that is copied or moved leaves the optimizer and masks its
    weight at every call again.

    AdamW is torch's (decoupled weight decay, bias correction), with the state ``step``, ``exp_avg`` and
    ``exp_avg_sq`` of each score; learning rate schedules and ``state_dict`` work as with any optimizer. A step with
    a gradient that is not finite changes nothing, and is not counted. Nothing waits for a GPU, so a step can be
    captured in a CUDA graph, after one that was not.

    The gradients are those of masked weights, which no parameter of the model is: the optimizer's ``zero_grad``
    forgets them and the model's does not, and a loss is scaled by ``step(scale=...)``, not by a ``GradScaler``;
    ``torch.nn.utils.clip_grad_norm_`` of the model's parameters finds none of them: give ``max_norm`` instead.

    On a CPU the gradient of an embedding is sparse, as that of ``nn.Embedding(sparse=True)``: it holds the rows that
    were looked up, and rows that never were take no time but for their part in the threshold. On a GPU the number of
    these rows would have to be waited for.

    Args:
        modules: a model, or modules of which those with a mask are taken; all on one device, of one ranking.
        others: further parameters to train, such as a head; in the second of the two ``param_groups``.
        lr: learning rate; a 0-dim tensor on the device where a CUDA graph is to follow a schedule, as a graph holds
            a number as it was when captured.
        betas, eps, weight_decay: AdamW's, but eps may not be 0 in float32; the paper's are the defaults.
        max_norm: the norm of the gradients of all scores and ``others`` together is clipped at this; None for no
            clipping.
        dtype: of the masked weights, that in which the forward computes: autocast's where that is on. By default
            that of the first module's weight.
        overwrite: whether the backward of a linear layer writes d(W ⊙ m) over W ⊙ m, which ``step`` writes anew: the
            gradients take no memory of their own, 0.34 GB less for BERT-base in float32. Then a step takes one backward
            pass, and always renews. An embedding on a CPU keeps no W ⊙ m either, 0.09 GB, but masks the rows that it
            looks up. Linear layers then compute in ``dtype``, whatever autocast's is. Without effect on a layer called
            several times in a forward pass, on an embedding on a GPU, and on a linear layer under ``torch.compile``.
            With activation checkpointing a checkpoint is made once more for each layer in it that follows a GELU.

    Raises:
        ValueError: there is no masked module, or they differ in device or ranking, or a number is out of range.
        TypeError: ``dtype`` is none that the kernels know.
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
        _check(self.modules, lr, betas, eps, weight_decay, max_norm)
        checks.result_dtype("MaskAdamW", dtype)
        groups: list[dict[str, Any]] = [{"params": [module.score for module in self.modules]}]
        if others := list(others):
            groups.append({"params": others})
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        first = self.modules[0]
        # Before the first forward: on a CPU, moments made after it take the memory that it gave back, and the next one
        # takes anew, 0.1 GB in all at BERT-base's 4 x 128 tokens.
        self._score_state(self.param_groups[0])
        self._weights = [module.weight.detach() for module in self.modules]
        for module in self.modules:
            module.overwrite = overwrite
            module.sparse = isinstance(module, MaskedEmbedding) and first.weight.device.type == "cpu"
        sizes = [0 if module.made_at_lookup else module.weight.numel() for module in self.modules]
        masked = _memories(sizes, dtype or first.weight.dtype, first.weight.device)
        with torch.no_grad():
            for module, memory in zip(self.modules, masked, strict=True):
                if module.made_at_lookup:
                    # To which all rows can be added without a change of theirs, even to -0.
                    module.made = memory.new_tensor(-0.0).expand(module.weight.shape).requires_grad_()
                    continue
                made = memory.view(module.weight.shape)
                made.copy_(module.masked_weight(made.dtype))
                # Not by detach: the views of one memory share a version, and autograd would take the gradient of one
                # for a change of all.
                module.made = made.data.requires_grad_()
        self._rows = self._rows_with_moments()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, scale: Tensor | None = None, renew: bool = True
    ) -> Tensor:
        """Take a step.

        Args:
            closure: not supported, and must be None.
            scale: what the loss was multiplied by, 0-dim float32 on the device, for float16.
            renew: whether to renew the masks; without, ``update_masks`` has to, some steps later.

        Returns:
            The norm of the gradient before clipping, float32 0-dim, not waited for. Where it is not finite the
            step changed nothing.

        Raises:
            RuntimeError: no backward pass went before, a module was copied or moved, or ``renew`` is false and
                masked weights are overwritten.
            TypeError: there is a closure.
        """
        if closure is not None:
            raise TypeError(
                f"MaskAdamW: closure is a {type(closure).__name__} but must be None; call backward, then step"
            )
        scores, others = self.param_groups[0], self.param_groups[1] if len(self.param_groups) > 1 else None
        made, grads, weights, places = self._made_and_gradients()
        if not renew and any(module.overwritten for module in self.modules):
            raise RuntimeError(
                "MaskAdamW: renew is False but must be True, as overwritten masked weights are made anew"
            )
        norm = gradient_norm(grads, weights)
        trained = [p for p in others["params"] if p.grad is not None] if others else []
        if trained:
            # In float32, as float16 cannot hold the squares.
            norms = torch._foreach_norm([p.grad for p in trained], 2, torch.float32)
            norm = torch.linalg.vector_norm(torch.stack([norm, *norms]))
        unscale = torch.ones_like(norm) if scale is None else 1 / scale
        norm = norm * unscale
        # As torch.nn.utils.clip_grad_norm_ clips; what is not finite stays so, and stops the kernel.
        clip = unscale if self.max_norm is None else unscale * (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        finite = norm.isfinite()
        factor = clip.masked_fill(~finite, torch.nan)

        means, squares, step = self._score_state(scores)
        step += finite
        beta1, beta2 = scores["betas"]
        count = step.double()
        rates = torch.stack(
            [
                factor.double(),
                scores["lr"] / (1 - beta1**count),
                (1 - beta2**count).sqrt(),
                torch.ones_like(count) - scores["lr"] * scores["weight_decay"],
            ]
        ).float()
        # Those of the modules, as update_masks may have renewed them.
        thresholds = [module.value for module in self.modules], [module.cut for module in self.modules]
        values, cuts = torch.stack(thresholds[0]), torch.stack(thresholds[1])
        mask_adamw(
            grads, self._weights, scores["params"], means, squares, made, values, cuts,
            [module.keep for module in self.modules], rates, beta1, beta2, scores["eps"],
            renew, self.modules[0].ranking == "abs", places,
        )  # fmt: skip
        if renew:
            torch._foreach_copy_(thresholds[0], list(values.unbind()))
            torch._foreach_copy_(thresholds[1], list(cuts.unbind()))
        for module in self.modules:
            module.uses = 0
            if module.made is not None and module.overwritten:
                module.made.grad = None
        if others and trained:
            self._step_others(others, trained, clip, finite)
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients collected, of the masked weights and of the other parameters."""
        super().zero_grad(set_to_none)
        for module in self.modules:
            if module.made is not None:
                module.uses = 0
                if module.overwritten:
                    with torch.no_grad():
                        module.made.copy_(module.masked_weight(module.made.dtype))
                module.made.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimizer is made, as its groups are two: scores and ``others``. Raises a RuntimeError."""
        if hasattr(self, "_weights"):
            raise RuntimeError("MaskAdamW: a group cannot be added; give its parameters as others when making it")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("MaskAdamW: it cannot be copied or pickled, as it belongs to its modules; use its state_dict")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state that ``state_dict`` gave; scores are loaded apart, and ``update_masks`` called then."""
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
        self._rows = self._rows_with_moments()

    def _rows_with_moments(self) -> list[Tensor]:
        """Whether the rows of each matrix with sparse gradients have moments, as ``places`` of a step without any."""
        means, squares, _ = self._score_state(self.param_groups[0])
        found = []
        for module, mean, square in zip(self.modules, means, squares, strict=True):
            rows = torch.empty(0, dtype=torch.int32, device=module.weight.device)
            if module.sparse:
                moving = (mean != 0).any(1) | (square != 0).any(1)
                rows = torch.where(moving, NO_GRADIENT, NO_MOMENTS).to(torch.int32)
            found.append(rows)
        return found

    def _made_and_gradients(self) -> tuple[list[Tensor], ...]:
        """W ⊙ m of every matrix, empty where it is made at look-up, and what ``_gradient`` gives of it."""
        if left := [i for i, module in enumerate(self.modules) if module.made is None]:
            raise RuntimeError(
                f"MaskAdamW: masked module {left[0]} was moved after the optimizer was made; make it after .to()"
            )
        made = [module.made for module in self.modules if module.made is not None]
        if all(each.grad is None for each in made):
            raise RuntimeError("MaskAdamW: step found no gradient; call backward before it")
        sparse = [module.sparse for module in self.modules]
        found = [self._gradient(*each) for each in zip(made, self._weights, sparse, self._rows, strict=True)]
        written = [
            each.detach()[:0] if module.made_at_lookup else each.detach()
            for module, each in zip(self.modules, made, strict=True)
        ]
        return written, *(list(each) for each in zip(*found, strict=True))

    @staticmethod
    def _gradient(made: Tensor, weight: Tensor, sparse: bool, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d(W ⊙ m) of a matrix, or its rows that were looked up; the same rows of W; and their ``places``.

        Zeros where no gradient arrived, of a layer that was left out.
        """
        grad = made.grad
        if not sparse or not (grad is None or grad.is_sparse):
            rows.fill_(NO_GRADIENT)
            return torch.zeros_like(made) if grad is None else grad, weight, rows[:0]
        if grad is None:
            nowhere = torch.empty(1, 0, dtype=torch.int64)
            grad = torch.sparse_coo_tensor(nowhere, made.detach()[:0], made.shape, check_invariants=False)
        grad = grad.coalesce()
        looked_up, grad = grad.indices()[0], grad.values()
        places = rows.index_copy(0, looked_up, torch.arange(len(looked_up), dtype=rows.dtype))
        rows[looked_up] = NO_GRADIENT
        return grad, weight[looked_up], places

    def _score_state(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The moments of all scores, made where there are none yet, and the count of steps, which they share."""
        states = [self.state[score] for score in group["params"]]
        if not states[0]:
            step = torch.zeros((), dtype=torch.float32, device=group["params"][0].device)
            for score, state in zip(group["params"], states, strict=True):
                state.update(step=step, exp_avg=torch.zeros_like(score), exp_avg_sq=torch.zeros_like(score))
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], states[0]["step"]

    def _step_others(self, group: dict[str, Any], trained: list[Tensor], clip: Tensor, finite: Tensor) -> None:
        for parameter in trained:
            if not self.state[parameter]:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter].update(step=step, **moments)
        grads = [parameter.grad for parameter in trained if parameter.grad is not None]
        torch._foreach_mul_(grads, clip)
        lr = group["lr"]
        states = [self.state[parameter] for parameter in trained]
        adamw(
            trained,
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
            lr=lr.float() if isinstance(lr, Tensor) else lr,  # on a GPU it may be of no other type
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _check(
    modules: list[Any],
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_norm: float | None,
) -> None:
    if not modules:
        raise ValueError("MaskAdamW: modules has no MaskedLinear or MaskedEmbedding but must have one or more")
    for i, module in enumerate(modules):
        checks.device("MaskAdamW", f"masked module {i}", module.score, modules[0].score.device, "masked module 0")
        if module.ranking != modules[0].ranking:
            raise ValueError(
                f"MaskAdamW: masked module {i} has ranking {module.ranking!r} but must have {modules[0].ranking!r}, "
                "as masked module 0 has"
            )
    for name, value, fits in (
        ("lr", lr, getattr(lr, "ndim", 0) == 0 and lr >= 0),
        ("betas[0]", betas[0], 0 <= betas[0] < 1),
        ("betas[1]", betas[1], 0 <= betas[1] < 1),
        # 0 would make NaN, 0 / 0, of the score of a weight that no input reaches.
        ("eps", eps, eps >= torch.finfo(torch.float32).tiny),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("max_norm", max_norm, max_norm is None or max_norm > 0),
    ):
        if not fits:
            raise ValueError(f"MaskAdamW: {name} is {value}, which is out of range")


def _memories(sizes: list[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Memory for tensors of so many entries: one after the other on a GPU, where a kernel takes all of them at once.

    On a CPU each has its own, so that `overwrite_linear_backward_weight` can replace it.
    """
    if device.type == "cpu":
        return [torch.empty(size, dtype=dtype) for size in sizes]
    offsets, total = group_offsets(sizes)
    memory = torch.empty(total, dtype=dtype, device=device)
    return [memory[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
