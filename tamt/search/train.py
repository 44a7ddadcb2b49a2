"""`tamt train`: from a model and a text to a mask file."""

import copy
from functools import partial
from pathlib import Path
from typing import get_args

from tamt import processes
from tamt.console import say
from tamt.data.corpora import load_corpus, load_held_out
from tamt.errors import UserError, check_choice, check_positive, check_seed
from tamt.evaluate import block_length, check_encoder_runs, read_head
from tamt.masking import Ranking
from tamt.methods import METHODS, SCHEDULE_STEPS, Method, MethodName, find_method, paper_steps, variant_options
from tamt.models import checkpoint_activations, dense_twin, load_masked_language_model, load_pooler, load_tokenizer
from tamt.objectives import TokenMasking
from tamt.precision import Precision, choose_precision
from tamt.recipes import Recipe, search_recipe
from tamt.relations import projections_of
from tamt.run_folder import CHECKPOINTS, KEEP, RunFolder, check_output, processes_of_run
from tamt.search.head import warm_up_head
from tamt.search.imp import STAGES, steps_to
from tamt.search.learning_rate import default_rate
from tamt.search.scores import MASKS_BY_NAME, Scores, check_initial, read_initial, scores_of_start
from tamt.search.setting import HEAD_FILE, Search
from tamt.search.wanda import Scope
from tamt.step_graph import starts_from_graphs
from tamt.terms import needs_head, parse_objective
from tamt.training import (
    CHECK_EVERY,
    HalfPrecisionError,
    choose_fp32,
    compute_dtype,
    make_accelerator,
    report_arithmetic,
)


def train(
    method: MethodName,
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
    precision: Precision = "auto",
    objective: str | None = None,
    scores: Scores | None = None,
    initial: str | None = None,
    recipe: Recipe = "short",
    scope: Scope | None = None,
    ranking: Ranking = "signed",
    kd_weight: float = 1.0,
    threshold_every: int = 1,
    prune_pooler: bool = False,
    dense_embedding: bool = False,
    compile: bool = False,
    no_cuda_graphs: bool = False,
    activation_checkpointing: bool = False,
    head: Path | None = None,
    head_warmup_steps: int = 1000,
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
        method: mask training on MLM, KD, both, or any --objective; iterative magnitude pruning; one-shot pruning by
            magnitude or by magnitude times activation; random.
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
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
        kd_weight: weight of the KD loss beside MLM's 1 in tamt-mlm+kd.
        threshold_every: steps between two renewals of the masks.
        prune_pooler: mask the pooler too, by the one-shot method, as it gets no gradient.
        dense_embedding: leave the word embedding out of the masks, so that it stays dense.
        compile: compile the encoder and the KD teacher with torch.compile, at the first step; off, as it is slower on a
            CPU, and on an H100, where a step took 17 ms in place of 20, a gain only after some 6,000 steps.
        no_cuda_graphs: start the kernels of a step one by one. On a GPU, in one process, each step of mask training,
            compiled or not, and of IMP is else started as one CUDA graph, on an H100 20 ms in place of 45.
        activation_checkpointing: keep the inputs of layers alone, and compute the rest again in the backward pass, for
            the same result in less memory and more time; on a GPU with --no-cuda-graphs.
        head: head.safetensors of an earlier run, in place of a warm-up.
        head_warmup_steps: a fresh MLM head is trained alone first, until its dev loss stops falling, for at most this
            many steps.
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
    found = find_method(method)
    weights = objective_of(found, objective, kd_weight)
    of_recipe = search_recipe(recipe, found)
    lr = of_recipe.get("lr") if lr is None else lr
    kind = scores_of_start(scores or of_recipe.get("scores"), initial)
    if lr is None:
        lr = default_rate(found, kind, run_steps)

    settings["precision"] = choose_precision(precision, output, resume)
    accelerator = make_accelerator(settings["precision"], processes.parts_of_step(step_blocks, batch_size), seed)
    smallest = step_blocks // (accelerator.gradient_accumulation_steps * processes.count())
    if "contrastive" in weights and smallest < 2:
        raise UserError(
            f"the contrastive term compares the blocks of a batch with each other, and a batch has {smallest}; raise "
            "--batch-size"
        )
    with processes.one_first():
        student = load_masked_language_model(model, need_head=needs_head(weights) or head is not None)
        if head is not None:
            student.load_head(read_head(head), head)
        if "attention" in weights:
            projections_of(student.encoder)
        if initial is not None and initial not in MASKS_BY_NAME:
            read_initial(Path(initial), student.encoder, sparsity, not dense_embedding)
        pooler = load_pooler(model) if prune_pooler else None
        tokenizer = load_tokenizer(model)
        length = block_length(max_length, student.model, tokenizer)
        train_blocks = dev_blocks = None
        if corpus and found.needs_text:
            train_blocks, dev_blocks = load_corpus(corpus, dev_corpus, tokenizer, length)
        elif corpus or dev_corpus:
            dev_blocks = load_held_out(corpus or [], dev_corpus, tokenizer, length)
    if dev_blocks is not None and eval_blocks is not None:
        dev_blocks, _ = dev_blocks.split(eval_blocks)
    student.model.to(accelerator.device)
    try:
        if text := train_blocks or dev_blocks:
            check_encoder_runs(student, model, accelerator, text)
    except HalfPrecisionError as error:
        choose_fp32(precision, error)
        return train(**{**settings, "precision": "fp32"}, check_every=check_every, resume=resume)
    in_place = not found.trains_scores  # these cut the student's own weights, so the teacher needs its own
    teacher = copy.deepcopy(student.encoder) if in_place else dense_twin(student.encoder, compute_dtype(accelerator))
    cuda_graphs = not found.one_shot and starts_from_graphs(no_cuda_graphs, activation_checkpointing)
    if activation_checkpointing:
        checkpoint_activations(student.model, model)

    with RunFolder.start(output, settings, resume, keep) as folder:
        report_arithmetic(accelerator, precision)
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
            objective=weights,
            scores=kind,
            initial=initial,
            scope=scope,
            ranking=ranking,
            threshold_every=threshold_every,
            pooler=pooler,
            dense_embedding=dense_embedding,
            compile=compile,
            cuda_graphs=cuda_graphs,
            activation_checkpointing=activation_checkpointing,
        )
        if student.fresh_head and needs_head(weights):
            warmed_up = f"{CHECKPOINTS}/{HEAD_FILE}"  # θ0 of IMP's head, which a resumed run needs
            if folder.resumed:
                student.load_head(read_head(output / warmed_up), output / warmed_up)
            else:
                warm_up_head(search, head_warmup_steps)
                search.save_head(warmed_up)
        processes.own_dropout()
        results = found.function()(search)
        folder.finish({"results": results})
    say(f"the mask is in {results[-1]['mask']}")
    return {"results": results}


def objective_of(method: Method, objective: str | None, kd_weight: float = 1.0) -> dict[str, float]:
    """The weight of each term of the loss: the method's, with `kd_weight` beside MLM's 1, or those of `--objective`.

    Raises:
        UserError: the method has no objective of its own and none is given; see also `parse_objective`.
    """
    if "objective" in method.variants:
        if objective is None:
            raise UserError(f"{method.name} needs an objective; give one such as --objective kd:1,attention:1")
        return parse_objective(objective)
    both = {"mlm", "kd"} <= method.objective.keys()
    return {name: kd_weight if both and name == "kd" else weight for name, weight in method.objective.items()}


def last_step(method: str, sparsity: float, steps: int | None) -> int:
    """The optimizer step after which a search has its mask, for `steps` of schedule, the paper's if None.

    A one-shot method takes no step.
    """
    found = find_method(method)
    if found.trains == "weights":
        return steps_to(sparsity, steps or SCHEDULE_STEPS)
    return 0 if found.one_shot else steps or paper_steps(found, sparsity) or SCHEDULE_STEPS


def _check(settings: dict) -> None:
    """Refuse what cannot work, before anything is loaded."""
    method = find_method(settings["method"])
    for option, kind in {"ranking": Ranking, "precision": Precision}.items():
        check_choice(option, settings[option], get_args(kind))
    scores_of_start(settings["scores"], settings["initial"])
    check_initial(settings["initial"])
    search_recipe(settings["recipe"], method)
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
    if method.needs_text and not settings["corpus"]:
        raise UserError(f"{method.name} needs text; give --corpus wikitext-103, demo or text files")
    if settings["compile"] and not method.trains_scores:
        raise UserError(f"--compile is for mask training, not {method.name}; leave it out")
    if settings["activation_checkpointing"] and method.one_shot:
        raise UserError(f"--activation-checkpointing is for methods that train, not {method.name}; leave it out")
    if settings["activation_checkpointing"] and settings["compile"]:
        raise UserError("--compile decides itself what to compute again; leave it or --activation-checkpointing out")
    for option in variant_options():
        if settings[option] is not None and option not in method.variants:
            having = ", ".join(other.name for other in METHODS.values() if option in other.variants)
            raise UserError(f"--{option} is not for {method.name} but for {having}; leave it out")
    objective_of(method, settings["objective"])
    check_choice("scope", settings["scope"] or "matrix", get_args(Scope))
    if settings["save_at"] and not method.trains_scores:
        raise UserError(
            f"--save-at is for mask training, not {method.name}; IMP saves a mask at every pruning without being asked"
        )
    if any(step < 1 for step in settings["save_at"] or []):
        raise UserError("--save-at must list steps from 1 on; leave out the others")
    if method.trains == "weights" and settings["steps"] is not None and settings["steps"] < STAGES:
        raise UserError(f"--steps {settings['steps']} is too few for IMP's {STAGES} prunings; give at least {STAGES}")
