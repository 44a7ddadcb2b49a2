"""One search, ready to run: what every method works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from tamt.masks.file import MASK_FILE, MaskInfo, save_masks
from tamt.masks.gates import put_gates
from tamt.masks.groups import find_groups
from tamt.masks.masking import (
    Masks,
    Sparsity,
    apply_masks,
    magnitude_masks,
    prunable_weights,
    random_masks,
    sparsity_from,
    sparsity_of,
)
from tamt.methods import find_method
from tamt.models.language_model import MaskedLanguageModel
from tamt.options.train import TrainOptions
from tamt.runtime import processes
from tamt.runtime.choices import Scores
from tamt.runtime.files import write_atomically
from tamt.runtime.structure import Structure
from tamt.runtime.tensor_files import reproducible
from tamt.search.group_scores import omp_masks
from tamt.search.text import Text
from tamt.training.compute import Compute
from tamt.training.dev_losses import dev_losses
from tamt.training.run_folder import RunFolder

HEAD_FILE = "head.safetensors"


@dataclass
class Plan:
    """What `tamt train` decides where its options leave it open.

    Attributes:
        steps: optimizer steps to take.
        schedule_steps: steps over which the learning rate falls to 0; at least `steps`.
        lr: peak learning rate.
        scores: kind of scores that mask training starts from.
        cuda_graphs: whether steps start from CUDA graphs, see `tamt.training.step_graph`.
    """

    steps: int
    schedule_steps: int
    lr: float
    scores: Scores
    cuda_graphs: bool = False


@dataclass
class Search:
    """One search, ready to run.

    Attributes:
        options: of `tamt train`.
        plan: what the options leave open.
        folder: of the run.
        compute: device, precision and loss scale.
        student: the model whose masks are searched for, with its MLM head.
        teacher: the dense encoder, for KD and for the KD dev loss.
        text: for training and for the dev losses.
        pooler: the pooler's weight, if it is pruned too. It gets no gradient, so its mask is that of a one-shot method.
    """

    options: TrainOptions
    plan: Plan
    folder: RunFolder
    compute: Compute
    student: MaskedLanguageModel
    teacher: PreTrainedModel | None
    text: Text
    pooler: Tensor | None = None

    @property
    def sparsity(self) -> Sparsity:
        """How much the masks prune: a share of each matrix, a pattern, or a structure."""
        options = self.options
        return sparsity_from(options.pattern, options.structure, options.share())

    def weights(self) -> dict[str, Tensor]:
        """The matrices of the student that masks are searched for; see `prunable_weights`."""
        return prunable_weights(self.student.model, embedding=not self.options.dense_embedding)

    def digest(self) -> str:
        """Digest of what the search reads: its text, and its matrices and MLM head as they are now."""
        read = [*self.weights().values(), *self.student.head_parameters().values()]
        return f"{self.text.digest()} {processes.digest(read)}"

    def magnitude_masks(self) -> Masks:
        """The masks of the largest |W| (OMP, paper 3.2), or of the groups of largest norm."""
        return omp_masks(self.student.encoder, self.sparsity, self.weights())

    def random_masks(self) -> Masks:
        """Masks that keep random weights or groups, by the seed of the search."""
        weights, sparsity = self.weights(), self.sparsity
        if isinstance(sparsity, Structure):
            sizes = find_groups(self.student.encoder, sparsity.kinds).sizes
            weights = {name: torch.empty(size, device=self.compute.device) for name, size in sizes.items()}
        return random_masks(weights, sparsity, self.options.seed)

    def apply(self, masks: Masks) -> None:
        """Make the student the subnetwork of these masks, in place."""
        if isinstance(self.sparsity, Structure):
            put_gates(self.student.model, masks)
        else:
            apply_masks(self.student.model, masks)

    def dev_losses(self) -> dict[str, float]:
        """The student's losses on the dev text; empty without dev text. The generators do not change."""
        if self.text.dev is None or self.teacher is None:
            return {}
        self.compute.loss_scale.check()
        text = self.text
        return dev_losses(self.compute, self.student, self.teacher, self.text.dev, text.masking, text.batch_size)

    def log_dev_losses(self, step: int, **figures: float) -> dict[str, float]:
        """Measure the dev losses, log them beside other figures, and return them."""
        losses = self.dev_losses()
        if figures := figures | {f"dev_{name}": value for name, value in losses.items()}:
            self.folder.log(step, **figures)
        return losses

    def evaluation_due(self, step: int) -> bool:
        """Whether the dev losses are to be measured after `step`; at the end they always are."""
        every = self.options.eval_every
        return every is not None and step % every == 0 and step != self.plan.steps

    def save(self, masks: Masks, step: int, name: str, sparsity: Sparsity | None = None) -> Path:
        """Write a mask file into the run folder, with the pooler's mask if the pooler is pruned.

        Args:
            masks: each `is_exact`.
            step: the optimizer step that they belong to.
            name: of the file.
            sparsity: of the masks; the search's by default.
        """
        self.compute.loss_scale.check()
        options, path = self.options, self.folder.path / name
        target = self.sparsity if sparsity is None else sparsity
        if self.pooler is not None:
            weights = {"pooler.dense.weight": self.pooler}
            drawn = find_method(options.method).random
            one_shot = random_masks(weights, target, options.seed) if drawn else magnitude_masks(weights, target)
            masks = {**masks, **one_shot}
        if processes.first():
            info = MaskInfo.of(options.model, options.method, target, options.seed, step)
            save_masks(path, masks, info, exact=True)
        return path

    def save_head(self, name: str = HEAD_FILE) -> None:
        """Write the trained MLM head into the run folder."""
        head = {name: p.detach().cpu() for name, p in self.student.head_parameters().items()}
        content = reproducible(save(head, {"format": "tamt-head", "model": self.options.model}))
        if processes.first():
            write_atomically(self.folder.path / name, content)

    def result(self, masks: Masks, step: int, seconds: float, losses: Mapping[str, float]) -> dict:
        """The row of results for a mask."""
        options = self.options
        return {
            "method": options.method,
            "model": options.model,
            "sparsity": round(sparsity_of(masks), 6),
            "seed": options.seed,
            "step": step,
            "mlm_loss": losses.get("mlm_loss"),
            "kd_loss": losses.get("kd_loss"),
            "seconds": round(seconds, 1),
            "mask": str(self.folder.path / MASK_FILE),
            **({"structure": str(self.sparsity)} if options.structure else {}),
        }
