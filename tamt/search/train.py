"""`tamt train`: from a model and a text to a mask file."""

import copy
from functools import partial
from pathlib import Path
from typing import Literal

from tamt import processes
from tamt.console import say
from tamt.data.corpora import load_corpus, load_held_out
from tamt.errors import UserError, check_positive, check_seed
from tamt.evaluate import block_length, check_encoder_runs, read_head
from tamt.masking import Ranking
from tamt.models import dense_twin, load_masked_language_model, load_pooler, load_tokenizer
from tamt.objectives import Objective, TokenMasking
from tamt.run_folder import CHECKPOINTS, KEEP, RunFolder, check_output, processes_of_run
from tamt.search.head import warm_up_head
from tamt.search.imp import STAGES, iterative_pruning, steps_to
from tamt.search.mask_training import Initial, train_masks
from tamt.search.oneshot import oneshot
from tamt.search.setting import HEAD_FILE, Search
from tamt.step_graph import starts_from_graphs
from tamt.training import CHECK_EVERY, Precision, compute_dtype, make_accelerator

Method = Literal["tamt-mlm", "tamt-kd", "tamt-mlm+kd", "imp", "omp", "rand"]

OBJECTIVES: dict[str, Objective] = {"tamt-mlm": "mlm", "tamt-kd": "kd", "tamt-mlm+kd": "mlm+kd"}
LEARNING_RATES = {"tamt-mlm": 5e-5, "tamt-kd": 2e-5, "tamt-mlm+kd": 5e-5, "imp": 5e-5}
"""The paper's (Table 1)."""
SCORE_TRAVEL = 0.045
"""lr × steps. Under linear decay a score travels at most half of it, and needs about 0.01 to change a mask entry. So
much is best for short runs: on a 6-layer MiniLM 150 steps at 3e-4 took the KD loss from 0.312 to 0.172."""
SCHEDULE_STEPS = 27_920
"""Two epochs of WikiText-103 in batches of 16 blocks of 512 (paper B.2)."""
PAPER_STEPS = {0.2: 3000, 0.3: 6000, 0.4: 8000, 0.5: 11000, 0.6: 14000, 0.7: 17000, 0.8: 20000, 0.9: 22000}
"""Steps after which the paper takes the TAMT mask of a sparsity (Table 2)."""


def train(
    method: Method,
    model: str,
    output: Path,
    corpus: list[str] | None = None,
    dev_corpus: list[str] | None = None,
    sparsity: float = 0.7,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    accumulation: int = 1,
    max_length: int | None = None,
    lr: float | None = None,
    precision: Precision = "fp32",
    initial: Initial = "omp",
    ranking: Ranking = "signed",
    kd_weight: float = 1.0,
    threshold_every: int = 1,
    prune_pooler: bool = False,
    dense_embedding: bool = False,
    compile: bool = False,
    no_cuda_graphs: bool = False,
    head: Path | None = None,
    head_warmup_steps: int = 200,
    save_at: list[int] | None = None,
    log_every: int = 10,
    eval_every: int | None = None,
    eval_blocks: int | None = None,
    save_every: int = 500,
    keep: int = KEEP,
    processes_of_step: int | None = None,
    check_every: int = CHECK_EVERY,
    resume: bool = False,
) -> dict:
    """Search a winning ticket: find the mask of a subnetwork of a pre-trained model.

    Args:
        method: mask training on MLM, KD or both; iterative magnitude pruning; one-shot magnitude pruning; random.
        model: hub name or folder of the pre-trained model, or "demo".
        output: new folder for the run: mask.safetensors, config.yaml, metrics.jsonl, results.json, TensorBoard.
        corpus: wikitext-103 (from the hub), demo, or text files, one paragraph a line; omp and rand need none.
        dev_corpus: text for the dev losses; by default WikiText's validation split or the last 5 % of the files.
        sparsity: share of zeros in each mask, between 0 and 1.
        steps: optimizer steps of the linear decay; by default the paper's 27,920, of which TAMT takes those of its
            Table 2 and IMP those up to the last pruning.
        seed: of the order of the text, the masked tokens, dropout, and the random mask.
        batch_size: blocks of text a batch, in each process.
        accumulation: batches an optimizer step.
        max_length: tokens of a block; 512, or what the model or its tokenizer takes at most if that is less.
        lr: peak learning rate; by default the paper's, raised for short runs to 0.045 / steps (scores only).
        precision: arithmetic of the model; scores and thresholds are always fp32.
        initial: first mask of the mask training.
        ranking: rank the scores by value or by absolute value.
        kd_weight: weight of the KD loss beside MLM's 1 in tamt-mlm+kd.
        threshold_every: steps between two renewals of the masks.
        prune_pooler: mask the pooler too, by the one-shot method, as it gets no gradient.
        dense_embedding: leave the word embedding out of the masks, so that it stays dense.
        compile: compile the encoder and the KD teacher with torch.compile, at the first step; off, as it is slower on a
            CPU, and on an H100, where a step took 17 ms in place of 20, a gain only after some 6,000 steps.
        no_cuda_graphs: start the kernels of a step one by one. On a GPU, in one process, each step of mask training,
            compiled or not, and of IMP is else started as one CUDA graph, on an H100 20 ms in place of 45.
        head: head.safetensors of an earlier run, in place of a warm-up.
        head_warmup_steps: steps for which a fresh MLM head is trained alone first.
        save_at: steps at which the mask is saved along the way, such as 100,200.
        log_every: steps between two lines of metrics.
        eval_every: steps between two measurements of the dev losses; by default only at the end.
        eval_blocks: measure the dev losses on the first so many blocks only.
        save_every: steps between two checkpoints.
        keep: checkpoints to keep, the newest ones; should one be damaged, --resume falls back on the one before it.
        processes_of_step: an optimizer step takes the batches of so many processes, however many share them; by default
            of those that were started, and on --resume of those that the run began with.
        check_every: steps between two checks that all processes hold the same scores.
        resume: go on with the interrupted run in the output folder.
    """
    settings = {name: value for name, value in locals().items() if name not in {"resume", "check_every"}}
    _check({**settings, "check_every": check_every})
    processes.join()
    processes.by_first(partial(check_output, output, resume))
    settings["processes_of_step"] = processes.by_first(partial(processes_of_run, output, processes_of_step, resume))
    step_blocks = batch_size * accumulation * (settings["processes_of_step"] or 1)
    run_steps = last_step(method, sparsity, steps)
    if late := [step for step in save_at or [] if step > run_steps]:
        raise UserError(f"--save-at {late[0]} lies after the last step, {run_steps}; ask for earlier steps")
    if lr is None and method in LEARNING_RATES:
        lr = LEARNING_RATES[method]
        if method in OBJECTIVES:
            lr = max(lr, SCORE_TRAVEL / run_steps)

    accelerator = make_accelerator(precision, processes.parts_of_step(step_blocks, batch_size), seed)
    with processes.one_first():
        with_mlm = method not in {"omp", "rand", "tamt-kd"} or head is not None
        student = load_masked_language_model(model, need_head=with_mlm)
        if head is not None:
            student.load_head(read_head(head), head)
        pooler = load_pooler(model) if prune_pooler else None
        tokenizer = load_tokenizer(model)
        length = block_length(max_length, student.model, tokenizer)
        train_blocks = dev_blocks = None
        if corpus and method not in {"omp", "rand"}:
            train_blocks, dev_blocks = load_corpus(corpus, dev_corpus, tokenizer, length)
        elif corpus or dev_corpus:
            dev_blocks = load_held_out(corpus or [], dev_corpus, tokenizer, length)
    if dev_blocks is not None and eval_blocks is not None:
        dev_blocks, _ = dev_blocks.split(eval_blocks)
    student.model.to(accelerator.device)
    if text := train_blocks or dev_blocks:
        check_encoder_runs(student, model, accelerator, text)
    in_place = method not in OBJECTIVES  # these cut the student's own weights, so the teacher needs its own
    teacher = copy.deepcopy(student.encoder) if in_place else dense_twin(student.encoder, compute_dtype(accelerator))
    cuda_graphs = method not in {"omp", "rand"} and starts_from_graphs(no_cuda_graphs)

    with RunFolder.start(output, settings, resume, keep) as folder:
        search = Search(
            folder=folder,
            accelerator=accelerator,
            student=student,
            masking=TokenMasking.of(tokenizer, student.model),
            model=model,
            method=method,
            sparsity=sparsity,
            seed=seed,
            batch_size=batch_size,
            step_blocks=step_blocks,
            check_every=check_every,
            steps=run_steps,
            schedule_steps=steps or SCHEDULE_STEPS,
            lr=lr or 0.0,
            log_every=log_every,
            eval_every=eval_every,
            save_every=save_every,
            save_at=save_at or [],
            teacher=teacher,
            train_blocks=train_blocks,
            dev_blocks=dev_blocks,
            pooler=pooler,
            dense_embedding=dense_embedding,
            compile=compile,
            cuda_graphs=cuda_graphs,
        )
        if student.fresh_head and method in {"imp", "tamt-mlm", "tamt-mlm+kd"}:
            warmed_up = f"{CHECKPOINTS}/{HEAD_FILE}"  # θ0 of IMP's head, which a resumed run needs
            if folder.resumed:
                student.load_head(read_head(output / warmed_up), output / warmed_up)
            else:
                warm_up_head(search, head_warmup_steps)
                search.save_head(warmed_up)
        processes.own_dropout()
        if method in OBJECTIVES:
            results = train_masks(search, OBJECTIVES[method], kd_weight, initial, ranking, threshold_every)
        elif method == "imp":
            results = iterative_pruning(search)
        else:
            results = oneshot(search)
        folder.finish({"results": results})
    say(f"the mask is in {results[-1]['mask']}")
    return {"results": results}


def last_step(method: Method, sparsity: float, steps: int | None) -> int:
    """The optimizer step after which a search has its mask, for `steps` of schedule, the paper's if None."""
    if method == "imp":
        return steps_to(sparsity, steps or SCHEDULE_STEPS)
    return steps or min(PAPER_STEPS.items(), key=lambda item: abs(item[0] - sparsity))[1]


def _check(settings: dict) -> None:
    """Refuse what cannot work, before anything is loaded."""
    method = settings["method"]
    if not 0 < settings["sparsity"] < 1:
        raise UserError(f"--sparsity {settings['sparsity']:g} is not between 0 and 1; give 0.7 for 70 % zeros, say")
    positive = ["steps", "batch_size", "accumulation", "max_length", "threshold_every", "head_warmup_steps"]
    positive += ["log_every", "eval_every", "eval_blocks", "save_every", "keep", "processes_of_step", "check_every"]
    check_positive(**{name: settings[name] for name in positive})
    check_seed(settings["seed"])
    if settings["lr"] is not None and not settings["lr"] > 0:
        raise UserError(f"--lr {settings['lr']:g} must be more than 0; raise it or leave it out")
    if not settings["kd_weight"] >= 0:
        raise UserError(f"--kd-weight {settings['kd_weight']:g} must not be negative; raise it or leave it out")
    if method not in {"omp", "rand"} and not settings["corpus"]:
        raise UserError(f"{method} needs text to train on; give --corpus wikitext-103, demo or text files")
    if settings["compile"] and method not in OBJECTIVES:
        raise UserError(f"--compile is for mask training, not {method}; leave it out")
    if settings["save_at"] and method not in OBJECTIVES:
        raise UserError(
            f"--save-at is for mask training, not {method}; IMP saves a mask at every pruning without being asked"
        )
    if any(step < 1 for step in settings["save_at"] or []):
        raise UserError("--save-at must list steps from 1 on; leave out the others")
    if method == "imp" and settings["steps"] is not None and settings["steps"] < STAGES:
        raise UserError(f"--steps {settings['steps']} is too few for IMP's {STAGES} prunings; give at least {STAGES}")
