"""What every search works with: the model, the text, the folder, and the figures that it reports."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from tamt.data.corpora import Blocks, train_batches
from tamt.data.token_masking import COUNTS, TokenMasking, prepare
from tamt.masks.file import MASK_FILE, MaskInfo, save_masks
from tamt.masks.masking import Masks, magnitude_masks, prunable_weights, random_masks, sparsity_of
from tamt.methods import find_method
from tamt.models.loading import MaskedLanguageModel
from tamt.runtime import processes
from tamt.runtime.choices import Ranking
from tamt.runtime.files import write_atomically
from tamt.terms import Weights
from tamt.training.dev_losses import dev_losses
from tamt.training.run_folder import RunFolder

HEAD_FILE = "head.safetensors"


@dataclass
class Search:
    """One search, ready to run. Fields that need no words are the options of `tamt train`."""

    folder: RunFolder
    accelerator: Accelerator
    student: MaskedLanguageModel
    masking: TokenMasking
    model: str
    method: str
    sparsity: float
    seed: int
    batch_size: int
    """Blocks that go through the model at once, at most."""
    step_blocks: int
    """Blocks of an optimizer step, over all processes."""
    check_every: int
    steps: int
    """Optimizer steps to take."""
    schedule_steps: int
    """Steps over which the learning rate falls to 0; at least `steps`."""
    lr: float
    log_every: int
    eval_every: int | None
    save_every: int
    save_at: list[int]
    teacher: PreTrainedModel | None = None
    """The dense encoder, for KD and for the KD dev loss."""
    train_blocks: Blocks | None = None
    dev_blocks: Blocks | None = None
    objective: Weights = field(default_factory=dict)
    """The weight of each term of the loss of mask training."""
    scores: str | None = None
    """The kind of scores that mask training starts from, see `tamt.search.scores`."""
    initial: str | None = None
    """The mask that mask training starts from: omp, random or a mask file; None for that of the scores' criterion."""
    scope: str | None = None
    """Which weights Wanda ranks together, see `tamt.search.wanda`; None for those of a matrix."""
    ranking: Ranking = "signed"
    threshold_every: int = 1
    pooler: Tensor | None = None
    """The pooler's weight, if it is to be pruned: it gets no gradient, so its mask is that of the one-shot method."""
    dense_embedding: bool = False
    """Whether the word embedding is left out of the masks."""
    compile: bool = False
    """Whether mask training compiles the encoder and the teacher; other methods do not."""
    cuda_graphs: bool = False
    """Whether mask training and IMP start their steps from CUDA graphs, see `tamt.training.step_graph`."""
    activation_checkpointing: bool = False
    """Whether the student's layers compute their activations again in the backward pass."""
    results: list[dict] = field(default_factory=list)

    def weights(self) -> dict[str, Tensor]:
        """The matrices of the student that masks are searched for; see `prunable_weights`."""
        return prunable_weights(self.student.model, embedding=not self.dense_embedding)

    def batches(self, first: int, masking: TokenMasking | None) -> Iterator[dict[str, Tensor]]:
        """This process's training batches from optimizer step `first` (from 1) on, prepared, on the CPU.

        Those of one step know the tokens of all of them, the other processes' too, so that their losses add up to that
        of one large batch. Every process masks all blocks of a step, which spares it a message.
        """
        assert self.train_blocks is not None
        parts = processes.share(self.step_blocks, self.accelerator.gradient_accumulation_steps)
        for step in train_batches(self.train_blocks, self.step_blocks, self.seed, first - 1, masking):
            whole = prepare(step)
            totals = {name: whole[name] for name in COUNTS if name in whole}
            for part in parts:
                batch = {name: tensor[part.start : part.stop] for name, tensor in step.items()}
                places = masking.most(batch["input_ids"].numel()) if masking and self.cuda_graphs else 0
                yield {**prepare(batch, places), **totals}

    def dev_losses(self) -> dict[str, float]:
        """The student's losses on the dev text, none if there is no dev text. The generators are left as they were."""
        if self.dev_blocks is None or self.teacher is None:
            return {}
        self.accelerator.scaler.check()
        return dev_losses(self.accelerator, self.student, self.teacher, self.dev_blocks, self.masking, self.batch_size)

    def evaluation_due(self, step: int) -> bool:
        """Whether the dev losses are to be measured after `step`."""
        return bool(self.eval_every) and step % (self.eval_every or 1) == 0 and step != self.steps

    def save(self, masks: Masks, step: int, name: str, sparsity: float | None = None) -> Path:
        """Write a mask file into the run folder; the pooler's mask is added if asked for."""
        self.accelerator.scaler.check()
        target = self.sparsity if sparsity is None else sparsity
        if self.pooler is not None:
            weights = {"pooler.dense.weight": self.pooler}
            one_shot = (
                random_masks(weights, target, self.seed)
                if find_method(self.method).random
                else magnitude_masks(weights, target)
            )
            masks = {**masks, **one_shot}
        path = self.folder.path / name
        if processes.first():
            save_masks(path, masks, MaskInfo(self.model, self.method, target, self.seed, step), exact=True)
        return path

    def save_head(self, name: str = HEAD_FILE) -> None:
        """Write the MLM head, which trained, into the run folder."""
        head = {name: p.detach().cpu() for name, p in self.student.head_parameters().items()}
        content = save(head, {"format": "tamt-head", "model": self.model})
        if processes.first():
            write_atomically(self.folder.path / name, content)

    def result(self, masks: Masks, step: int, seconds: float, losses: Mapping[str, float]) -> dict:
        """The row of results for a mask."""
        return {
            "method": self.method,
            "model": self.model,
            "sparsity": round(sparsity_of(masks), 6),
            "seed": self.seed,
            "step": step,
            "mlm_loss": losses.get("mlm_loss"),
            "kd_loss": losses.get("kd_loss"),
            "seconds": round(seconds, 1),
            "mask": str(self.folder.path / MASK_FILE),
        }
