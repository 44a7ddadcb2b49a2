"""`tamt finetune`: from a model, a mask and a task to a score and a fine-tuned model."""

import json
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from tamt.data.glue import labels_found, load_rows
from tamt.data.rows import Rows, subset
from tamt.data.squad import Question, load_questions
from tamt.data.tasks import Task
from tamt.finetuning.classification import Classification, encode, encode_dev
from tamt.finetuning.loop import MODEL_FOLDER, SPARE_MEMORY, Job, drop_former_models, predictions_file, train_subnetwork
from tamt.finetuning.metrics import UNDEFINED, score_in_words, scores_in_words
from tamt.finetuning.plots import draw_predictions
from tamt.finetuning.question_answering import MAX_ANSWER_LENGTH, N_BEST, QuestionAnswering, make_windows
from tamt.finetuning.rates import best_rate, default_rate
from tamt.finetuning.sparse import check_sparse, choose_sparse
from tamt.masks.file import MaskInfo, load_masks, mask_file, mask_in_row
from tamt.masks.masking import Masks, apply_masks, sparsity_of
from tamt.masks.origin import say_if_of_another
from tamt.methods import FULL
from tamt.models.shrink import as_subnetwork
from tamt.models.speed import checkpoint_activations, speed_up
from tamt.models.task_models import load_classifier, load_question_answerer
from tamt.models.tokenizer import input_length, load_tokenizer
from tamt.options.base import command
from tamt.options.finetune import FinetuneOptions
from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.training.compute import Compute, report_compute, set_up
from tamt.training.half_precision import check_runs, or_in_fp32
from tamt.training.loss_scale import LARGEST_LOSS
from tamt.training.new_output import with_output
from tamt.training.precision import as_begun
from tamt.training.run_folder import CONFIG, RESULTS, RunFolder, check_output, finished_results, processes_of_run
from tamt.training.step_graph import starts_from_graphs

MakeJob = Callable[[FinetuneOptions, Compute, bool], Job]
"""Makes a job from the options of a run, its device and precision, and whether its steps start from CUDA graphs.

The rows are read once for all seeds."""


@command(FinetuneOptions)
def finetune(options: FinetuneOptions) -> dict:
    """Run `tamt finetune`."""
    processes.join()
    options = replace(options, mask=mask_file(options.mask))
    with with_output(options, partial(_name, options)) as settled:
        return _finetune(settled)


def _name(options: FinetuneOptions) -> list[str]:
    """The parts of the name of a run that has no output yet."""
    if options.mask is None:
        return [options.model, FULL, options.task]
    _, info = load_masks(options.mask)
    return [options.model, info.method, info.structure or f"{info.sparsity:g}", options.task]


def _finetune(options: FinetuneOptions) -> dict:
    task, rates = options.chosen_task(), options.rates()
    if options.seeds is not None or len(rates) > 1:
        processes.by_first(partial(_check_output_of_several, options))
    else:
        processes.by_first(partial(check_output, options.output, options.resume))
    make_job: MakeJob
    if task.kind == "question-answering":
        with processes.one_first():
            questions = load_questions(task, options.data_dir)
        make_job = partial(_question_answering, task, questions)
    else:
        with processes.one_first():
            task, rows = load_rows(task, options.data_dir, options.train_file, options.dev_file)
        make_job = partial(_classification, task, rows)
        if task.kind == "regression":
            options = replace(options, regression_start="mean" if options.starts_at_mean() else "zero")
    if len(rates) > 1:
        return {"results": [_run_rates(task, make_job, options)]}
    options = replace(options, lr=rates[0])
    if options.seeds is not None:
        return {"results": [_run_seeds(task, make_job, options, options.seeds)]}
    return {"results": [_run(task, make_job, options)]}


def _run_rates(task: Task, make_job: MakeJob, options: FinetuneOptions) -> dict:
    """Run the rates one after the other, each in its own folder, and write the result of the best one."""
    rates = options.rates()
    rows: dict[float | None, dict] = {}
    for rate in rates:
        own = replace(options, lr=rate, output=options.output / f"lr-{rate:g}")
        say(f"learning rate {rate:g}")
        if options.seeds is None:
            rows[rate] = _run_unless_finished(task, make_job, own)
        else:
            rows[rate] = _run_seeds(task, make_job, own, options.seeds)
    best = best_rate({rate: row["score"] for rate, row in rows.items()})
    kept = ("lr", "score", "score_std", "scores", "final_score", "final_score_std", "final_scores", "best_step")
    result = {
        **rows[best],
        "lr_choice": f"best of {len(rates)} rates",
        "rates": [{key: row[key] for key in kept if key in row} for row in rows.values()],
        "seconds": round(sum(row["seconds"] for row in rows.values()), 1),
        "output": str(options.output),
    }
    if processes.first():
        write_atomically(options.output / RESULTS, json.dumps({"results": [result]}, indent=2) + "\n")
    scores = ", ".join(f"{score_in_words(row['score'])} at {rate:g}" for rate, row in rows.items())
    say(f"{result['metric']} {scores}; the best of {len(rates)} rates is {best:g}")
    return result


def _run_unless_finished(task: Task, make_job: MakeJob, options: FinetuneOptions) -> dict:
    done = processes.by_first(partial(_finished, options))
    if done:
        say(f"the run in {options.output} is finished")
        return done[0]
    begun = processes.by_first(options.output.exists)
    return _run(task, make_job, replace(options, resume=options.resume and begun))


def _run_seeds(task: Task, make_job: MakeJob, options: FinetuneOptions, seeds: list[int]) -> dict:
    """Run the seeds one after the other, each in its own folder, and write mean and spread of their scores."""
    runs = []
    for seed in seeds:
        say(f"seed {seed}")
        own = replace(options, seed=seed, seeds=None, output=options.output / f"seed-{seed}")
        runs.append(_run_unless_finished(task, make_job, own))
    result = {**runs[0], "seed": None, "seeds": seeds, "output": str(options.output)}
    for key in ("score", "final_score"):
        values = [run[key] for run in runs]
        mean, spread = _mean_and_std(values)
        result |= {key: mean, f"{key}_std": spread, f"{key}s": values}
    result["best_step"] = result["final_step"] = None
    result["dev"] = {name: _mean_and_std([run["dev"][name] for run in runs])[0] for name in runs[0]["dev"]}
    result["seconds"] = round(sum(run["seconds"] for run in runs), 1)
    if processes.first():
        write_atomically(options.output / RESULTS, json.dumps({"results": [result]}, indent=2) + "\n")
    say(f"{result['metric']} of the seeds {', '.join(map(str, seeds))}: {_summary(result)}")
    return result


def _check_output_of_several(options: FinetuneOptions) -> None:
    """Check the output of several rates or seeds, and that what is resumed there are runs of these alone."""
    rates, seeds = options.rates(), [f"seed-{seed}" for seed in options.seeds or []]
    if len(rates) == 1:
        _check_folder(options.output, seeds, options.resume)
        return
    folders = [f"lr-{rate:g}" for rate in rates]
    _check_folder(options.output, folders, options.resume)
    for folder in folders if seeds else []:
        _check_folder(options.output / folder, seeds, options.resume)


def _check_folder(output: Path, runs: Collection[str], resume: bool) -> None:
    """Check a folder for runs of these names."""
    if output.exists() and not output.is_dir():
        raise UserError(f"the output {output} is a file; give a new folder")
    found = {path.name for path in output.iterdir() if not path.name.startswith(".")} if output.exists() else set()
    if CONFIG in found and resume:
        raise UserError(
            f"the output folder {output} holds one run, not several to resume; "
            "give a new --output, or leave --seeds and further rates out"
        )
    if found and not resume:
        raise UserError(
            f"the output folder {output} is not empty and nothing in it is overwritten; "
            "give a new --output, or --resume to continue interrupted --seeds or rates"
        )
    own = {*runs, RESULTS} if found & {*runs} else {*runs}
    if others := found - own:
        raise UserError(
            f"the output folder {output} holds {min(others)}, which is not of these --seeds and rates; "
            "give those of its runs too, or a new --output"
        )


def _finished(options: FinetuneOptions) -> list[dict] | None:
    output = options.output
    shared = processes_of_run(output, options.processes_of_step, resume=True)
    return finished_results(output, replace(options, processes_of_step=shared).settings())


def _summary(result: dict) -> str:
    """`0.812 ± 0.010 (0.802, 0.822)`."""
    if result["score"] is None:
        return "undefined in some"
    scores = ", ".join(map(score_in_words, result["scores"]))
    spread = "" if result["score_std"] is None else f" ± {result['score_std']:.4f}"
    return f"{result['score']:.4f}{spread} ({scores})"


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation. Both are None if a value is undefined, the latter also for one value."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return None, None
    return statistics.mean(defined), statistics.stdev(defined) if len(defined) > 1 else None


def _run(task: Task, make_job: MakeJob, options: FinetuneOptions) -> dict:
    """One fine-tuning; its result is also in its folder."""
    return or_in_fp32(partial(_run_once, task, make_job), options)


def _run_once(task: Task, make_job: MakeJob, options: FinetuneOptions) -> dict:
    output, asked = options.output, options.precision
    options = as_begun(options)
    compute = set_up(options.precision, options.seed, SPARE_MEMORY)
    check_sparse(options.sparse, compute)
    checkpointing = options.activation_checkpointing
    job = make_job(options, compute, starts_from_graphs(options.no_cuda_graphs, checkpointing))
    masks: Masks = {}
    info: MaskInfo | None = None
    if options.mask is not None:
        masks, info = load_masks(options.mask)
        say_if_of_another(masks, info.model, job.model)
    zeros = masks if info is None else _prune(job, masks, info)
    if options.sparse == "on" and not zeros:
        raise UserError("--sparse on is for tickets with zeros, and this one makes a smaller dense model; leave it out")
    if checkpointing:
        checkpoint_activations(job.model, options.model)
    check_runs(job.model, options.model, compute, partial(_read_two_rows, job))
    lr = _rate(task, options, job.model, zeros)
    tokens = next(job.batches(1))["input_ids"].numel()
    sparse, why = choose_sparse(options, compute, job.model, zeros, tokens)
    options = replace(options, sparse=sparse)
    with RunFolder(output, options.settings(), options.resume, options.keep, options.track) as folder:
        report_compute(compute, asked)
        if why:
            say(why)
        processes.own_dropout()
        outcome = train_subnetwork(job, folder, zeros, options, lr=lr)
        result = {
            "task": options.task,
            "model": options.model,
            **mask_in_row(options.mask, masks, info),
            "lr": lr,
            "metric": task.metrics[0],
            "score": outcome.best_score,
            "best_step": outcome.best_step,
            "final_score": outcome.final_score,
            "final_step": outcome.final_step,
            "dev": outcome.best_metrics,
            "seed": options.seed,
            "train_samples": job.train_samples,
            "seconds": round(outcome.seconds, 1),
            "output": str(output),
        }
        _finish(task, folder, result)
    return result


def _prune(job: Job, masks: Masks, info: MaskInfo) -> Masks:
    """Make the model of a job the subnetwork of a mask, smaller if that is structured; the masks of its zeros."""
    if info.structure is None:
        apply_masks(job.model, masks)
        return masks
    before = job.model
    job.model, zeros = as_subnetwork(before, masks)
    if job.model is not before:
        speed_up(job.model)
    return zeros


def _finish(task: Task, folder: RunFolder, result: dict) -> None:
    """Write the result of a run and a picture of its predictions, and log where they are."""
    if result["score"] is None:
        say(f"{task.metrics[0]} {UNDEFINED}, as in every evaluation; the score is null")
    folder.finish({"results": [result]})
    drop_former_models(folder)
    if processes.first():
        draw_predictions(task, folder.path)
    say(f"best at step {result['best_step']} of {result['final_step']}: {scores_in_words(result['dev'])}")
    model, predictions = folder.path / MODEL_FOLDER, folder.path / predictions_file("")
    say(f"the best model is in {model}, its predictions are in {predictions}")


def _step_rows(task: Task, options: FinetuneOptions) -> int:
    """Rows of an optimizer step, over all processes."""
    return task.batch_size * (options.processes_of_step or 1)


def _rate(task: Task, options: FinetuneOptions, model: PreTrainedModel, zeros: Masks) -> float:
    """The learning rate asked for, or the default; a shrunk model has no zeros, and counts as a full one."""
    (asked,) = options.rates()
    if asked is not None:
        return float(asked)
    if options.recipe == "paper":
        return task.lr
    return default_rate(model.config.hidden_size, sparsity_of(zeros) if zeros else 0.0)


def _read_two_rows(job: Job) -> None:
    """A forward pass of two rows of the first step."""
    batch = next(job.batches(1))
    names = job.tokenizer.model_input_names
    job.model(**{name: tensor[:2].to(job.compute.device) for name, tensor in batch.items() if name in names})


def _classification(
    task: Task, rows: dict[str, Rows], options: FinetuneOptions, compute: Compute, cuda_graphs: bool
) -> Classification:
    train, start = rows["train"], 0.0
    if samples := options.train_samples:
        strata = train.labels if task.kind == "classification" else None
        train = train.take(subset(strata, len(train), samples, options.seed))
    if task.kind == "regression":  # at the start its loss is about the mean square of the scores, or less
        compute.loss_scale.largest = LARGEST_LOSS * max(1.0, statistics.fmean(label**2 for label in train.labels))
        start = statistics.fmean(train.labels) if options.regression_start == "mean" else 0.0
    with processes.one_first():
        tokenizer = load_tokenizer(options.model, masking=False)
        model = load_classifier(options.model, task.label_names, start)
    if task.name == "classification":
        say(labels_found(task, rows["train"]))
    length = input_length(model, tokenizer, options.model, options.max_length, task.max_length)
    dev = {split: found for split, found in rows.items() if split != "train"}
    return Classification(
        task=task,
        model=model.to(compute.device),
        tokenizer=tokenizer,
        compute=compute,
        train=encode(train, tokenizer, model, length),
        dev=encode_dev(dev, tokenizer, model, length),
        batch_size=task.batch_size,
        step_rows=_step_rows(task, options),
        parts=processes.parts_of_step(_step_rows(task, options), task.batch_size),
        seed=options.seed,
        cuda_graphs=cuda_graphs,
    )


def _question_answering(
    task: Task,
    questions: dict[str, list[Question]],
    options: FinetuneOptions,
    compute: Compute,
    cuda_graphs: bool,
) -> QuestionAnswering:
    with processes.one_first():
        tokenizer = load_tokenizer(options.model, masking=False)
        model = load_question_answerer(options.model)
    length = input_length(model, tokenizer, options.model, options.max_length, task.max_length)
    train, dev = questions["train"], questions["dev"]
    if samples := options.train_samples:
        train = [train[i] for i in subset(None, len(train), samples, options.seed)]
    stride = length // 3 if options.stride is None else options.stride
    return QuestionAnswering(
        task=task,
        model=model.to(compute.device),
        tokenizer=tokenizer,
        compute=compute,
        train=make_windows(train, tokenizer, model, length, stride),
        dev=make_windows(dev, tokenizer, model, length, stride),
        questions=dev,
        batch_size=task.batch_size,
        step_rows=_step_rows(task, options),
        parts=processes.parts_of_step(_step_rows(task, options), task.batch_size),
        seed=options.seed,
        n_best=options.n_best or N_BEST,
        max_answer_length=options.max_answer_length or MAX_ANSWER_LENGTH,
        cuda_graphs=cuda_graphs,
    )
