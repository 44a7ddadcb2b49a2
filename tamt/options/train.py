"""The options of `tamt train`."""

from dataclasses import dataclass
from pathlib import Path

from tamt.methods import METHODS, STAGES, Method, MethodName, find_method, last_step, objective_of, variant_options
from tamt.options.base import Options
from tamt.recipes import Recipe
from tamt.runtime.choices import (
    CHECK_EVERY,
    KEEP,
    Precision,
    Ranking,
    Scope,
    Scores,
    Tracker,
    check_initial,
    resolve_tracker,
)
from tamt.runtime.errors import UserError


@dataclass(frozen=True)
class TrainOptions(Options):
    """Search a winning ticket: find the mask of a subnetwork of a pre-trained model.

    Args:
        method: mask training on MLM, KD, both, or any --objective; iterative magnitude pruning; one-shot pruning by
            magnitude or by magnitude times activation; random.
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
        output: new folder for the run: mask.safetensors, config.yaml, metrics.jsonl, results.json. If the default is
            taken, a number is added.
        corpus: wikitext-103 (from the hub), demo, or text files, one paragraph per line; omp and rand need none.
        dev_corpus: text for the dev losses; by default WikiText's validation split or the last 5 % of the files.
        sparsity: share of zeros in each mask, between 0 and 1.
        steps: optimizer steps of the linear decay; by default the paper's 27,920, of which TAMT takes those of its
            Table 2 and IMP those up to the last pruning.
        seed: of the order of the text, the masked tokens, dropout, and the random mask.
        batch_size: blocks of text per batch, in each process.
        accumulation: batches per optimizer step.
        max_length: tokens per block; 512, or what the model or its tokenizer takes at most if that is less.
        lr: peak learning rate; by default the paper's, raised for mask training that is too short for it.
        precision: arithmetic of the model; auto is bf16 where the device has instructions for it, else fp16 on
            a GPU and fp32 on a CPU. Scores and thresholds are always fp32.
        objective: what tamt trains for, a weighted sum such as kd:1,attention:1,mlm:0.5 of mlm, kd, attention (KD of
            the last layer's attention), logits (KD of the MLM head's logits) and contrastive (SimCSE).
        scores: scores that mask training starts from: proportional to |W|, to |W| times the norm of its input, or two
            values, as in the paper; activation, or two-valued if --initial is given.
        initial: mask that mask training starts from: omp, random or a mask file; by default the mask that keeps what
            ranks highest by the scores, which is OMP's for magnitude and two-valued scores.
        recipe: where no scores or lr are given: short, the rules above; paper, those of the paper.
        scope: which weights wanda ranks together: those of a matrix, or those of each output row, as its authors do; by
            default matrix.
        ranking: rank the scores by value or by absolute value.
        threshold_every: steps between two renewals of the masks.
        prune_pooler: mask the pooler too, by the one-shot method, as it gets no gradient.
        dense_embedding: leave the word embedding out of the masks, so that it stays dense.
        compile: compile the encoder and the KD teacher with torch.compile, at the first step; off, as it is slower on a
            CPU, and on an H100, where a step took 17 ms instead of 20, a gain only after some 6,000 steps.
        no_cuda_graphs: start the kernels of a step one by one. On a GPU, in one process, each step of mask training,
            compiled or not, and of IMP is else started as one CUDA graph, on an H100 20 ms instead of 45.
        activation_checkpointing: keep only the inputs of layers, and compute the rest again in the backward pass, for
            the same result in less memory and more time; on a GPU with --no-cuda-graphs.
        head: head.safetensors of an earlier run, instead of a warm-up.
        head_warmup_steps: a fresh MLM head is trained alone first, until its dev loss stops falling, for at most this
            many steps.
        save_at: steps at which the mask is saved along the way, such as 100,200.
        log_every: steps between two lines of metrics.
        track: tracker that shows the metrics too, as accelerate names it; auto is TensorBoard, in the folder of the
            run, if it is installed, else none.
        eval_every: steps between two measurements of the dev losses; by default only at the end.
        eval_blocks: measure the dev losses on the first so many blocks only.
        save_every: steps between two checkpoints.
        keep: checkpoints to keep, the newest ones; should one be damaged, --resume falls back on the one before it.
        processes_of_step: an optimizer step takes the batches of so many processes, however many share them; by default
            of those that were started, and on --resume of those that the run began with.
        check_every: steps between two checks that all processes hold the same scores.
        resume: continue the interrupted run in the output folder.
    """

    method: MethodName
    model: str
    output: Path = Path("runs/MODEL-METHOD-SPARSITY-DATE")
    corpus: list[str] | None = None
    dev_corpus: list[str] | None = None
    sparsity: float = 0.7
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
    recipe: Recipe = "short"
    scope: Scope | None = None
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

    def last_step(self) -> int:
        """The optimizer step after which the search has its mask."""
        return last_step(self.method, self.sparsity, self.steps)

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded. Raises UserError."""
        check_initial(self.initial)
        resolve_tracker(self.track)
        if self.resume and self.output == type(self).output:
            raise UserError("--resume needs the --output of the run to continue; give its folder")
        if not 0 < self.sparsity < 1:
            raise UserError(f"--sparsity {self.sparsity:g} is not between 0 and 1; give 0.7 for 70 % zeros, say")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"--lr {self.lr:g} must be more than 0; raise it or leave it out")
        self._check_method(find_method(self.method))
        self._check_save_at(find_method(self.method))

    def _check_method(self, method: Method) -> None:
        if method.needs_text and not self.corpus:
            raise UserError(f"{method.name} needs text; give --corpus wikitext-103, demo or text files")
        if self.compile and not method.trains_scores:
            raise UserError(f"--compile is for mask training, not {method.name}; leave it out")
        if self.activation_checkpointing and method.one_shot:
            raise UserError(f"--activation-checkpointing is for methods that train, not {method.name}; leave it out")
        if self.activation_checkpointing and self.compile:
            raise UserError("--compile chooses what to compute again; leave it or --activation-checkpointing out")
        for option in variant_options():
            if getattr(self, option) is not None and option not in method.variants:
                having = ", ".join(other.name for other in METHODS.values() if option in other.variants)
                raise UserError(f"--{option} is not for {method.name} but for {having}; leave it out")
        self.weights()
        if method.trains == "weights" and self.steps is not None and self.steps < STAGES:
            raise UserError(f"--steps {self.steps} is too few for IMP's {STAGES} prunings; give at least {STAGES}")

    def _check_save_at(self, method: Method) -> None:
        if self.save_at and not method.trains_scores:
            raise UserError(
                f"--save-at is for mask training, not {method.name}; "
                "IMP saves a mask at every pruning without being asked"
            )
        for step in self.save_at or []:
            if step < 1:
                raise UserError("--save-at must list steps from 1 on; leave out the others")
            if step > self.last_step():
                raise UserError(f"--save-at {step} lies after the last step, {self.last_step()}; ask for earlier steps")
