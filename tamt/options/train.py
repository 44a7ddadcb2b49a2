"""The options of `tamt train`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamt.methods import METHODS, STAGES, Method, MethodName, find_method, last_step, objective_of, variant_options
from tamt.options.base import Options
from tamt.recipes import Recipe, search_recipe
from tamt.runtime.choices import (
    CHECK_EVERY,
    KEEP,
    Drop,
    Dropout,
    Precision,
    Ranking,
    Scope,
    Scores,
    Tracker,
    check_initial,
    resolve_tracker,
    share_pruned,
)
from tamt.runtime.errors import UserError, check_sparsity
from tamt.runtime.structure import structure_of
from tamt.terms import needs_dropout

SPARSITY = 0.7
OF_MASK_TRAINING = ("compile", "dropout", "ranking", "threshold_every")
"""Options that change the result of mask training only."""
OF_TRAINING = ("accumulation", "lr", "head_warmup_steps", "activation_checkpointing")
"""Options that only methods that train have. One-shot ones take `steps` too, so that all can share it."""


@dataclass(frozen=True)
class TrainOptions(Options):
    """Search a winning ticket: find the mask of a subnetwork of a pre-trained model.

    Args:
        method: the search: mask training on MLM, on KD, on both, or on any --objective; iterative magnitude pruning
            (imp); one-shot pruning by magnitude (omp) or by magnitude times activation (wanda); a random mask (rand);
            or layers left out by their place (drop).
        model: the pre-trained model: a hub name, a folder, "demo" or "demo-base".
        output: a new folder for the run: mask.safetensors, config.yaml, metrics.jsonl, results.json. A number is
            added to the default if that is taken.
        corpus: the training text: wikitext-103 (from the hub), demo, or text files with one paragraph per line; omp,
            rand and drop need none.
        dev_corpus: the text for the dev losses; by default WikiText's validation split, or the last 5 % of the files'
            blocks.
        sparsity: the share of zeros in each mask, between 0 and 1; by default 0.7, or what the pattern gives.
        pattern: keep N of each M neighbours along the input instead, such as 2:4, for which GPUs from Ampere on have
            instructions; N < M, M at most 16.
        structure: prune whole groups instead, each kind by its own sparsity, such as ffn:0.5 or heads:0.5,hidden:0.5:
            ffn (intermediate neurons) and heads in each layer, layers, and hidden (entries of the hidden states).
            tamt export --shrink makes a smaller model of the ticket.
        steps: the optimizer steps over which the learning rate decays; by default the paper's 27,920, of which mask
            training runs the steps of the paper's Table 2, and IMP those up to its last pruning.
        seed: the seed of the order of the text, the masked tokens, dropout, and the random mask.
        batch_size: the blocks of text per batch and process.
        accumulation: the batches per optimizer step.
        max_length: the tokens per block; by default 512, or the longest input of the model if that is less.
        lr: the peak learning rate; by default the paper's, and a higher one for short mask training.
        precision: the precision of the model; auto is bf16 if the device has instructions for it, else fp16 on a GPU
            and fp32 on a CPU. Scores and thresholds are always fp32.
        objective: the loss that --method tamt trains on: a weighted sum such as kd:1,attention:1,mlm:0.5 of the terms
            mlm, kd, attention (KD of the last layer's attention), logits (KD of the MLM head's logits) and
            contrastive (SimCSE).
        scores: the scores from which mask training starts: proportional to |W|, to |W| times the norm of its input, or
            two values as in the paper; by default activation, or two-valued with --initial.
        initial: the mask from which mask training starts: omp, random, a mask file or a run folder; by default
            the mask of the highest initial scores.
        dropout: the dropout of the student in mask training: none, or that of the model's configuration; by default
            none, and the model's with a contrastive term or --recipe paper.
        recipe: how scores, lr and dropout are chosen if they are not given: short by the rules above, paper as in the
            paper.
        scope: the weights that wanda ranks together: those of a matrix (default), or of each output row, as its authors
            do.
        drop: the layers that the method drop takes away: the last (default), the first, or alternate ones.
        ranking: whether scores are ranked by value (signed) or by absolute value (abs).
        threshold_every: the steps between two updates of the masks.
        prune_pooler: also prune the pooler, by the one-shot method, because it gets no gradient.
        dense_embedding: leave the word embedding dense.
        compile: compile the encoder and the KD teacher with torch.compile. Slower on a CPU; on an H100 a step takes
            17 ms instead of 20, which pays off after about 6,000 steps.
        no_cuda_graphs: start the kernels of a step one by one. By default, one process on a GPU starts each step of
            mask training and IMP as one CUDA graph (20 ms instead of 45 on an H100).
        activation_checkpointing: keep only the inputs of layers and recompute the rest in the backward pass: less
            memory, more time, the same result. On a GPU it needs --no-cuda-graphs.
        head: the head.safetensors of an earlier run, instead of a warm-up.
        head_warmup_steps: the most steps of the head warm-up. It trains a new MLM head for checkpoints without one,
            until its dev loss stops falling.
        save_at: the steps after which the mask is saved on the way, such as 100,200.
        log_every: the steps between two lines of metrics.
        track: a tracker that shows the metrics too, by its name in accelerate; auto is TensorBoard, in the folder of
            the run, if it is installed, else none.
        eval_every: the steps between two evaluations on the dev text; by default only at the end.
        eval_blocks: the number of blocks of dev text to evaluate on; by default all.
        save_every: the steps between two checkpoints.
        keep: the number of checkpoints to keep; if the newest is damaged, --resume takes the one before it.
        processes_of_step: the number of processes whose batches make one optimizer step, however many really run; by
            default the number that run, and with --resume that of the interrupted run.
        check_every: the steps between two checks that all processes have the same scores.
        resume: continue the interrupted run in the output folder.
    """

    method: MethodName
    model: str
    output: Path = Path("runs/MODEL-METHOD-SPARSITY-DATE")
    corpus: list[str] | None = None
    dev_corpus: list[str] | None = None
    sparsity: float | None = None
    pattern: str | None = None
    structure: str | None = None
    steps: int | None = None
    seed: int = 0
    batch_size: int = 16
    accumulation: int = 1
    max_length: int | None = None
    lr: float | None = None
    precision: Precision = "auto"
    objective: str | None = None
    scores: Scores | None = None
    initial: str | None = None
    dropout: Dropout | None = None
    recipe: Recipe = "short"
    scope: Scope | None = None
    drop: Drop | None = None
    ranking: Ranking = "signed"
    threshold_every: int = 1
    prune_pooler: bool = False
    dense_embedding: bool = False
    compile: bool = False
    no_cuda_graphs: bool = False
    activation_checkpointing: bool = False
    head: Path | None = None
    head_warmup_steps: int = 1000
    save_at: list[int] | None = None
    log_every: int = 10
    track: Tracker = "auto"
    eval_every: int | None = None
    eval_blocks: int | None = None
    save_every: int = 500
    keep: int = KEEP
    processes_of_step: int | None = None
    check_every: int = CHECK_EVERY
    resume: bool = False

    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss; see `objective_of`."""
        return objective_of(find_method(self.method), self.objective)

    def drops_out(self) -> bool:
        """Whether the student trains with the dropout of its configuration, as IMP always does."""
        method = find_method(self.method)
        if not method.trains_scores:
            return True
        asked = self.dropout or search_recipe(self.recipe, method).get("dropout")
        return needs_dropout(self.weights()) if asked is None else asked == "model"

    def last_step(self) -> int:
        """The optimizer step after which the search ends."""
        return last_step(self.method, self.share(), self.steps)

    def share(self) -> float:
        """The share of zeros in each mask; the highest of a structure."""
        if self.pattern is not None:
            return share_pruned(self.pattern)
        if structure := structure_of(self.structure):
            return structure.most
        return SPARSITY if self.sparsity is None else self.sparsity

    def settings(self) -> dict[str, Any]:
        """See `Options.settings`. The sparsity is always a number; pattern and structure are only named if given."""
        settings = super().settings() | {"sparsity": self.share()}
        absent = [name for name in ("pattern", "structure") if settings[name] is None]
        return {name: value for name, value in settings.items() if name not in absent}

    def check(self) -> None:
        """Check the options together. Raises UserError if they cannot work."""
        check_initial(self.initial)
        resolve_tracker(self.track)
        if self.resume and self.output == type(self).output:
            raise UserError("--resume needs the --output of the run to continue; give its folder")
        self._check_pattern()
        self._check_structure()
        check_sparsity("--sparsity", self.share())
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"--lr {self.lr:g} must be more than 0 and finite; correct it or leave it out")
        self._check_method(find_method(self.method))
        self._check_save_at(find_method(self.method))

    def _check_pattern(self) -> None:
        if self.pattern is None:
            return
        if self.sparsity not in (None, self.share()):
            raise UserError(
                f"--pattern {self.pattern} has a sparsity of {self.share():g}, not {self.sparsity:g}; leave --sparsity "
                "out"
            )
        if self.threshold_every != 1:
            raise UserError(
                "--threshold-every is for masks with a threshold, which --pattern has not; leave one of them out"
            )
        if self.scope is not None:
            raise UserError("--scope and --pattern exclude each other, as a pattern ranks groups; leave one out")

    def _check_structure(self) -> None:
        method, structure = find_method(self.method), structure_of(self.structure)
        if structure is None:
            if method.structures == "layers":
                raise UserError(f"{method.name} drops whole layers; give --structure layers:0.5, say")
            return
        if not method.can_prune(structure.kinds):
            of = "layers only" if method.structures == "layers" else "single weights only"
            raise UserError(f"{method.name} prunes {of}, not the --structure {structure}; choose another method")
        of_weights = {
            "sparsity": self.sparsity not in (None, self.share()),
            "pattern": self.pattern is not None,
            "threshold-every": self.threshold_every != 1,
            "ranking": self.ranking != "signed",
            "prune-pooler": self.prune_pooler,
            "dense-embedding": self.dense_embedding,
        }
        for flag, given in of_weights.items():
            if given:
                raise UserError(
                    f"--{flag} is for masks of single weights, and --structure {structure} prunes groups; leave one of "
                    "them out"
                )

    def _check_method(self, method: Method) -> None:
        if method.needs_text and not self.corpus:
            raise UserError(f"{method.name} needs text; give --corpus wikitext-103, demo or text files")
        self._check_unused(OF_MASK_TRAINING, method.trains_scores, f"mask training, not {method.name}")
        self._check_unused(OF_TRAINING, not method.one_shot, f"methods that train, not {method.name}")
        if self.activation_checkpointing and self.compile:
            raise UserError("--compile and --activation-checkpointing exclude each other; leave one out")
        for option in variant_options():
            if getattr(self, option) is not None and option not in method.variants:
                having = ", ".join(other.name for other in METHODS.values() if option in other.variants)
                raise UserError(f"--{option} is for {having}, not {method.name}; leave it out")
        if needs_dropout(self.weights()) and not self.drops_out():
            raise UserError(
                "--dropout none leaves the contrastive term nothing to compare, as its two views differ by dropout "
                "alone; leave --dropout out"
            )
        if method.trains == "weights" and self.steps is not None and self.steps < STAGES:
            raise UserError(f"--steps {self.steps} is too few for IMP's {STAGES} prunings; give at least {STAGES}")

    def _check_unused(self, options: Iterable[str], used: bool, by: str) -> None:
        for name in options:
            if not used and getattr(self, name) != getattr(TrainOptions, name):
                raise UserError(f"--{name.replace('_', '-')} is for {by}; leave it out")

    def _check_save_at(self, method: Method) -> None:
        if self.save_at and not method.trains_scores:
            raise UserError(
                f"--save-at is for mask training, not {method.name}; IMP saves a mask at every pruning anyway"
            )
        for step in self.save_at or []:
            if step < 1:
                raise UserError(f"--save-at {step} is below 1; give steps from 1 on")
            if step > self.last_step():
                raise UserError(f"--save-at {step} is after the last step, {self.last_step()}; give earlier steps")
