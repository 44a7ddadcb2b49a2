"""`tamt finetune`: from a model, a mask and a task to a score and a fine-tuned model."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel

from tamt import processes
from tamt.console import say
from tamt.data.glue import labels_found, load_rows
from tamt.data.rows import Rows, subset
from tamt.data.squad import Question, load_questions
from tamt.data.tasks import Task, find_task, with_columns
from tamt.errors import UserError, check_choice, check_positive
from tamt.files import write_atomically
from tamt.finetune.classification import Classification, encode, encode_dev
from tamt.finetune.loop import MODEL_FOLDER, SPARE_MEMORY, Job, drop_former_models, predictions_file, train_subnetwork
from tamt.finetune.metrics import UNDEFINED, score_in_words, scores_in_words
from tamt.finetune.plots import draw_predictions
from tamt.finetune.question_answering import MAX_ANSWER_LENGTH, N_BEST, QuestionAnswering, make_windows
from tamt.finetune.rates import best_rate, default_rate
from tamt.mask_file import MaskInfo, load_masks
from tamt.masking import Masks, apply_masks, sparsity_of
from tamt.methods import FULL
from tamt.models import checkpoint_activations, input_length, load_classifier, load_question_answerer, load_tokenizer
from tamt.precision import Precision, choose_precision
from tamt.recipes import RECIPES, Recipe
from tamt.run_folder import CONFIG, KEEP, RESULTS, RunFolder, check_output, finished_results, processes_of_run
from tamt.step_graph import starts_from_graphs
from tamt.training import (
    CHECK_EVERY,
    LARGEST_LOSS,
    HalfPrecisionError,
    check_runs,
    choose_fp32,
    make_accelerator,
    report_arithmetic,
)

MakeJob = Callable[[dict, Accelerator, bool], Job]
"""Makes a job from the settings of a run, its accelerator, and whether its steps start from CUDA graphs.

The rows are read once for all seeds."""


def finetune(
    task: str,
    model: str,
    output: Path,
    mask: Path | None = None,
    data_dir: Path | None = None,
    train_file: Path | None = None,
    dev_file: Path | None = None,
    text_column: list[str] | None = None,
    label_column: str | None = None,
    train_samples: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    lr: list[float] | float | None = None,
    recipe: Recipe = "short",
    weight_decay: float = 0.0,
    eval_every: int | None = None,
    early_stop: int | None = None,
    stride: int | None = None,
    n_best: int | None = None,
    max_answer_length: int | None = None,
    seed: int = 0,
    seeds: list[int] | None = None,
    precision: Precision = "auto",
    log_every: int = 10,
    save_every: int = 500,
    keep: int = KEEP,
    processes_of_step: int | None = None,
    check_every: int = CHECK_EVERY,
    no_cuda_graphs: bool = False,
    activation_checkpointing: bool = False,
    resume: bool = False,
) -> dict:
    """Fine-tune a subnetwork, or the full model, on a task; what the mask prunes stays exactly zero.

    Args:
        task: cola, sst2, rte, mnli, mrpc, stsb, qnli, qqp, wnli, squad or squad2; demo (the VADER movie snippets) or
            questions (TREC's), from the package index; or classification or regression, with files of your own.
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
        output: new folder for the run: results.json, metrics.jsonl, config.yaml, TensorBoard, the best model, its
            predictions on the dev rows and a picture of them.
        mask: mask file of the subnetwork; without it the full model is fine-tuned.
        data_dir: GLUE's glue_data folder, or the folder with SQuAD's train-v1.1.json and dev-v1.1.json (squad2:
            v2.0), in place of the hub.
        train_file: train rows of classification or regression: .tsv (unquoted, as GLUE's), .csv or .jsonl.
        dev_file: dev rows of classification or regression.
        text_column: the column with the text, or the two with a pair; sentence by default.
        label_column: the column with the label; label by default.
        train_samples: train on a seeded random subset of so many rows, stratified by label where there are labels.
        epochs: passes over the train rows; by default the paper's, 3 (2 for squad).
        batch_size: rows a batch, in each process; by default the paper's, 32 (16 for squad and demo).
        max_length: tokens of a row, more are cut off, or make another window for squad; by default the paper's, 128
            (384 for squad, 64 for demo), or the model's positions if fewer.
        lr: peak learning rate, which falls linearly to 0; by default 2e-5 * 768 / width * (1 + 10 * sparsity), with the
            width of the model and the sparsity of the mask. Several, with commas: each is run in OUTPUT/lr-RATE, and
            the one with the best score, or the best mean over the seeds, is the result.
        recipe: where no lr is given: short, the rule above; paper, the paper's 2e-5 (3e-5 for squad).
        weight_decay: AdamW's, of every parameter.
        eval_every: steps between two evaluations; by default the paper's, 50 (500 for mnli, qnli and qqp, 1000
            for squad, 200 for demo). The end is always evaluated.
        early_stop: end after so many evaluations in a row with no better score; by default never.
        stride: tokens that two windows over a long context of squad share; by default a third of the length, the
            paper's 128 of 384.
        n_best: starts and ends of an answer that are paired for squad; by default 20.
        max_answer_length: tokens of an answer for squad; by default 30.
        seed: of the head, the order of the rows, dropout, and the subset.
        seeds: in place of one seed several, with commas: one run after the other in OUTPUT/seed-N, and the mean and
            standard deviation of their scores.
        precision: arithmetic of the model; auto is bf16 where the device has instructions for it, else fp16 on
            a GPU and fp32 on a CPU. The weights and their updates are always fp32.
        log_every: steps between two lines of metrics.
        save_every: steps between two checkpoints.
        keep: checkpoints to keep, the newest ones; should one be damaged, --resume falls back on the one before it.
        processes_of_step: a training step takes the batches of so many processes, however many share them; by default
            of those that were started, and on --resume of those that the run began with.
        check_every: steps between two checks that all processes hold the same weights.
        no_cuda_graphs: start the kernels of a step one by one. On a GPU, in one process, each step is else started as
            one CUDA graph, and its batch padded to one of four lengths, on an H100 8 to 17 ms in place of 45.
        activation_checkpointing: keep the inputs of layers alone, and compute the rest again in the backward pass, for
            the same result in less memory and more time; on a GPU with --no-cuda-graphs.
        resume: go on with the interrupted run, or runs, in the output folder; what is finished is not done again.
    """
    settings = {name: value for name, value in locals().items() if name != "resume"}
    rates = lr if isinstance(lr, list) else [lr]
    chosen = _with_options(find_task(task), settings)
    _check(settings, rates)
    processes.join()
    seeds = settings.pop("seeds")
    several = seeds is not None or len(rates) > 1
    processes.by_first(partial(_check_output_of_several if several else check_output, output, resume))
    make_job: MakeJob
    if chosen.kind == "question-answering":
        with processes.one_first():
            questions = load_questions(chosen, data_dir)
        make_job = partial(_question_answering, chosen, questions)
    else:
        with processes.one_first():
            chosen, rows = load_rows(chosen, data_dir, train_file, dev_file)
        make_job = partial(_classification, chosen, rows)
    if len(rates) > 1:
        return {"results": [_run_rates(chosen, make_job, settings, rates, seeds, resume)]}
    settings["lr"] = rates[0]
    if seeds is not None:
        return {"results": [_run_seeds(chosen, make_job, settings, seeds, resume)]}
    return {"results": [_run(chosen, make_job, settings, resume)]}


def _run_rates(
    task: Task,
    make_job: MakeJob,
    settings: dict,
    rates: Sequence[float | None],
    seeds: list[int] | None,
    resume: bool,
) -> dict:
    """Run the rates one after the other, each in a folder of its own, and write the result of the best one."""
    output: Path = settings["output"]
    rows: dict[float | None, dict] = {}
    for rate in rates:
        own = {**settings, "lr": rate, "output": output / f"lr-{rate:g}"}
        say(f"learning rate {rate:g}")
        if seeds is None:
            rows[rate] = _run_unless_finished(task, make_job, own, resume)
        else:
            rows[rate] = _run_seeds(task, make_job, own, seeds, resume)
    best = best_rate({rate: row["score"] for rate, row in rows.items()})
    kept = ("lr", "score", "score_std", "scores", "final_score", "final_score_std", "final_scores", "best_step")
    result = {
        **rows[best],
        "lr_choice": f"best of {len(rates)} rates",
        "rates": [{key: row[key] for key in kept if key in row} for row in rows.values()],
        "seconds": round(sum(row["seconds"] for row in rows.values()), 1),
        "output": str(output),
    }
    if processes.first():
        write_atomically(output / RESULTS, json.dumps({"results": [result]}, indent=2) + "\n")
    scores = ", ".join(f"{score_in_words(row['score'])} at {rate:g}" for rate, row in rows.items())
    say(f"{result['metric']} {scores}; the best of {len(rates)} rates is {best:g}")
    return result


def _run_unless_finished(task: Task, make_job: MakeJob, settings: dict, resume: bool) -> dict:
    done = processes.by_first(partial(_finished, settings))
    if done:
        say(f"the run in {settings['output']} is finished")
    return done[0] if done else _run(task, make_job, settings, resume)


def _run_seeds(task: Task, make_job: MakeJob, settings: dict, seeds: list[int], resume: bool) -> dict:
    """Run the seeds one after the other, each in a folder of its own, and write their mean and spread."""
    output: Path = settings["output"]
    runs = []
    for seed in seeds:
        say(f"seed {seed}")
        own = {**settings, "seed": seed, "output": output / f"seed-{seed}"}
        runs.append(_run_unless_finished(task, make_job, own, resume))
    result = {**runs[0], "seed": None, "seeds": seeds, "output": str(output)}
    for key in ("score", "final_score"):
        values = [run[key] for run in runs]
        mean, spread = _mean_and_std(values)
        result |= {key: mean, f"{key}_std": spread, f"{key}s": values}
    result["best_step"] = result["final_step"] = None
    result["dev"] = {name: _mean_and_std([run["dev"][name] for run in runs])[0] for name in runs[0]["dev"]}
    result["seconds"] = round(sum(run["seconds"] for run in runs), 1)
    if processes.first():
        write_atomically(output / RESULTS, json.dumps({"results": [result]}, indent=2) + "\n")
    say(f"{result['metric']} of the seeds {', '.join(map(str, seeds))}: {_summary(result)}")
    return result


def _check_output_of_several(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"the output {output} is a file; give a new folder")
    if (output / CONFIG).is_file() or (not resume and output.exists() and any(output.iterdir())):
        raise UserError(
            f"the output folder {output} is not empty and nothing in it is overwritten; "
            "give a new --output, or --resume to continue interrupted --seeds or rates"
        )


def _finished(settings: dict) -> list[dict] | None:
    output, asked = settings["output"], settings["processes_of_step"]
    own = {**settings, "processes_of_step": processes_of_run(output, asked, resume=True)}
    return finished_results(output, {name: value for name, value in own.items() if name != "check_every"})


def _summary(result: dict) -> str:
    """`0.812 ± 0.010 (0.802, 0.822)`."""
    if result["score"] is None:
        return "undefined in some"
    scores = ", ".join(map(score_in_words, result["scores"]))
    spread = "" if result["score_std"] is None else f" ± {result['score_std']:.4f}"
    return f"{result['score']:.4f}{spread} ({scores})"


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation, which one value has none of; None where a value is undefined."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return None, None
    return statistics.mean(defined), statistics.stdev(defined) if len(defined) > 1 else None


def _run(task: Task, make_job: MakeJob, settings: dict, resume: bool) -> dict:
    """One fine-tuning; its result is also in its folder."""
    mask, output = settings["mask"], settings["output"]
    check_every = settings["check_every"]
    settings = {name: value for name, value in settings.items() if name != "check_every"}
    settings["processes_of_step"] = processes.by_first(
        partial(processes_of_run, output, settings["processes_of_step"], resume)
    )
    step_rows = task.batch_size * (settings["processes_of_step"] or 1)
    parts = processes.parts_of_step(step_rows, task.batch_size)
    asked = settings["precision"]
    settings["precision"] = choose_precision(asked, output, resume)
    accelerator = make_accelerator(settings["precision"], parts, settings["seed"], SPARE_MEMORY)
    checkpointing = settings["activation_checkpointing"]
    job = make_job(settings, accelerator, starts_from_graphs(settings["no_cuda_graphs"], checkpointing))
    if checkpointing:
        checkpoint_activations(job.model, settings["model"])
    masks: Masks = {}
    info: MaskInfo | None = None
    if mask is not None:
        masks, info = load_masks(mask)
        apply_masks(job.model, masks)
    try:
        check_runs(job.model, settings["model"], accelerator, partial(_read_two_rows, job))
    except HalfPrecisionError as error:
        choose_fp32(asked, error)
        return _run(task, make_job, {**settings, "precision": "fp32", "check_every": check_every}, resume)
    lr = _rate(task, settings, job.model, masks)
    with RunFolder.start(output, settings, resume, settings["keep"]) as folder:
        report_arithmetic(accelerator, asked)
        processes.own_dropout()
        outcome = train_subnetwork(
            job,
            folder,
            masks,
            steps=task.epochs * job.steps_per_epoch,
            lr=lr,
            weight_decay=settings["weight_decay"],
            eval_every=task.eval_every,
            early_stop=settings["early_stop"],
            log_every=settings["log_every"],
            save_every=settings["save_every"],
            check_every=check_every,
        )
        result = {
            "task": settings["task"],
            "model": settings["model"],
            "method": info.method if info else FULL,
            "sparsity": round(sparsity_of(masks), 6) if masks else 0.0,
            "mask": str(mask) if mask else None,
            "mask_seed": info.seed if info else None,
            "mask_step": info.step if info else None,
            "lr": lr,
            "metric": task.metrics[0],
            "score": outcome.best_score,
            "best_step": outcome.best_step,
            "final_score": outcome.final_score,
            "final_step": outcome.final_step,
            "dev": outcome.best_metrics,
            "seed": settings["seed"],
            "train_samples": job.train_samples,
            "seconds": round(outcome.seconds, 1),
            "output": str(output),
        }
        if outcome.best_score is None:
            say(f"{task.metrics[0]} {UNDEFINED}: so in every evaluation; the score is null")
        if processes.first():
            draw_predictions(task, output)
        folder.finish({"results": [result]})
        drop_former_models(folder)
    say(f"best at step {outcome.best_step} of {outcome.final_step}: {scores_in_words(outcome.best_metrics)}")
    say(f"the best model is in {output / MODEL_FOLDER}, its predictions are in {output / predictions_file('')}")
    return result


def _rate(task: Task, settings: dict, model: PreTrainedModel, masks: Masks) -> float:
    """The learning rate that was asked for, or the default."""
    if settings["lr"] is not None:
        return float(settings["lr"])
    if settings["recipe"] == "paper":
        return task.lr
    return default_rate(model.config.hidden_size, sparsity_of(masks) if masks else 0.0)


def _read_two_rows(job: Job) -> None:
    """A forward pass of two rows of the first step."""
    batch = next(job.batches(1))
    names = job.tokenizer.model_input_names
    job.model(**{name: tensor[:2].to(job.accelerator.device) for name, tensor in batch.items() if name in names})


def _classification(
    task: Task, rows: dict[str, Rows], settings: dict, accelerator: Accelerator, cuda_graphs: bool
) -> Classification:
    with processes.one_first():
        tokenizer = load_tokenizer(settings["model"], masking=False)
        model = load_classifier(settings["model"], task.label_names)
    length = input_length(model, tokenizer, settings["model"], settings["max_length"], task.max_length)
    train = rows["train"]
    if task.name == "classification":
        say(labels_found(task, train))
    if task.kind == "regression":  # whose loss, before anything is learned, is the mean square of the scores
        accelerator.scaler.largest = LARGEST_LOSS * max(1.0, statistics.fmean(label**2 for label in train.labels))
    if samples := settings["train_samples"]:
        strata = train.labels if task.kind == "classification" else None
        train = train.take(subset(strata, len(train), samples, settings["seed"]))
    dev = {split: found for split, found in rows.items() if split != "train"}
    return Classification(
        task=task,
        model=model.to(accelerator.device),
        tokenizer=tokenizer,
        accelerator=accelerator,
        train=encode(train, tokenizer, model, length),
        dev=encode_dev(dev, tokenizer, model, length),
        batch_size=task.batch_size,
        step_rows=task.batch_size * (settings["processes_of_step"] or 1),
        seed=settings["seed"],
        cuda_graphs=cuda_graphs,
    )


def _question_answering(
    task: Task, questions: dict[str, list[Question]], settings: dict, accelerator: Accelerator, cuda_graphs: bool
) -> QuestionAnswering:
    with processes.one_first():
        tokenizer = load_tokenizer(settings["model"], masking=False)
        model = load_question_answerer(settings["model"])
    length = input_length(model, tokenizer, settings["model"], settings["max_length"], task.max_length)
    train, dev = questions["train"], questions["dev"]
    if samples := settings["train_samples"]:
        train = [train[i] for i in subset(None, len(train), samples, settings["seed"])]
    stride = length // 3 if settings["stride"] is None else settings["stride"]
    return QuestionAnswering(
        task=task,
        model=model.to(accelerator.device),
        tokenizer=tokenizer,
        accelerator=accelerator,
        train=make_windows(train, tokenizer, model, length, stride),
        dev=make_windows(dev, tokenizer, model, length, stride),
        questions=dev,
        batch_size=task.batch_size,
        step_rows=task.batch_size * (settings["processes_of_step"] or 1),
        seed=settings["seed"],
        n_best=settings["n_best"] or N_BEST,
        max_answer_length=settings["max_answer_length"] or MAX_ANSWER_LENGTH,
        cuda_graphs=cuda_graphs,
    )


def _with_options(task: Task, settings: dict) -> Task:
    """The task with the options of the command in place of its defaults."""
    task = with_columns(task, settings["text_column"], settings["label_column"])
    options = ["epochs", "batch_size", "max_length", "eval_every"]
    return replace(task, **{name: settings[name] for name in options if settings[name] is not None})


def _check(settings: dict, rates: Sequence[float | None]) -> None:
    """Refuse what cannot work, before anything is loaded."""
    positive = ["train_samples", "epochs", "batch_size", "max_length", "eval_every", "log_every", "save_every"]
    positive += ["keep", "processes_of_step", "check_every"]
    positive += ["early_stop", "n_best", "max_answer_length"]
    check_positive(**{name: settings[name] for name in positive})
    task = settings["task"]
    if find_task(task).kind != "question-answering":
        for name in ("stride", "n_best", "max_answer_length"):
            if settings[name] is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is for --task squad or squad2, not {task}; leave it out")
    elif settings["train_file"] is not None or settings["dev_file"] is not None:
        raise UserError(f"--train-file and --dev-file are for --task classification, not {task}; give --data-dir")
    seeds = settings["seeds"] or [settings["seed"]]
    for seed in seeds:
        if not 0 <= seed < 2**32 or seeds.count(seed) > 1:
            flag = "--seeds" if settings["seeds"] else "--seed"
            raise UserError(f"{flag} {seed} is negative, over 32 bits or there twice; give different ones from 0 on")
    if settings["stride"] is not None and settings["stride"] < 0:
        raise UserError(f"--stride {settings['stride']} must not be negative; raise it or leave it out")
    for rate in rates:
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"--lr {rate:g} must be more than 0 and finite; raise it or leave it out")
        if rates.count(rate) > 1:
            raise UserError(f"--lr {rate:g} is there twice; give different rates")
    if not rates:
        raise UserError("--lr is an empty list; give rates or leave it out")
    check_choice("recipe", settings["recipe"], RECIPES)
    if settings["weight_decay"] < 0:
        raise UserError(f"--weight-decay {settings['weight_decay']:g} must not be negative; leave it out for none")
