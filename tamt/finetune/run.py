"""`tamt finetune`: from a model, a mask and a task to a score and a fine-tuned model."""

from dataclasses import replace
from pathlib import Path

from tamt.console import say
from tamt.data.tasks import Task, find_task, load_rows, subset
from tamt.errors import UserError, check_positive
from tamt.finetune.classification import Classification, encode
from tamt.finetune.loop import MODEL_FOLDER, train_subnetwork
from tamt.mask_file import MaskInfo, load_masks
from tamt.masking import Masks, apply_masks, sparsity_of
from tamt.models import load_classifier, load_tokenizer, longest_input
from tamt.run_folder import RunFolder
from tamt.training import Precision, make_accelerator


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
    lr: float | None = None,
    weight_decay: float = 0.0,
    eval_every: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    log_every: int = 10,
    save_every: int = 500,
    resume: bool = False,
) -> dict:
    """Fine-tune a subnetwork, or the full model, on a task; what the mask prunes stays exactly zero.

    Args:
        task: sst2; demo (the VADER movie snippets); or classification, with files of your own.
        model: hub name or folder of the pre-trained model, or "demo".
        output: new folder for the run: results.json, metrics.jsonl, config.yaml, TensorBoard, and the best model.
        mask: mask file of the subnetwork; without it the full model is fine-tuned.
        data_dir: GLUE's glue_data folder, in place of the hub.
        train_file: train rows of classification: .tsv (unquoted, as GLUE's), .csv or .jsonl.
        dev_file: dev rows of classification.
        text_column: the column with the text, or the two with a pair; sentence by default.
        label_column: the column with the label; label by default.
        train_samples: train on a seeded random subset of so many rows, stratified by label.
        epochs: passes over the train rows; by default the paper's, 3.
        batch_size: rows a batch; by default the paper's, 32 (16 for demo).
        max_length: tokens of a row, more are cut off; by default the paper's, 128 (64 for
            demo), or the model's positions if fewer.
        lr: peak learning rate, which falls linearly to 0; by default the paper's, 2e-5 (1e-4 for demo).
        weight_decay: AdamW's, of every parameter.
        eval_every: steps between two evaluations; by default the paper's, 50 (200 for demo). The end is always
            evaluated.
        seed: of the head, the order of the rows, dropout, and the subset.
        precision: arithmetic of the model; the weights and their updates are always fp32.
        log_every: steps between two lines of metrics.
        save_every: steps between two checkpoints.
        resume: go on with the interrupted run in the output folder.
    """
    settings = {name: value for name, value in locals().items() if name != "resume"}
    chosen = _with_options(find_task(task), settings)
    _check(settings)
    chosen, train, dev = load_rows(chosen, data_dir, train_file, dev_file)
    if train_samples is not None:
        train = subset(train, train_samples, seed)

    accelerator = make_accelerator(precision, 1, seed)
    assert chosen.label_names is not None
    classifier = load_classifier(model, chosen.label_names)
    tokenizer = load_tokenizer(model)
    if max_length is not None and max_length > longest_input(classifier):
        raise UserError(f"--max-length {max_length} is more than the {longest_input(classifier)} tokens of {model}")
    length = min(chosen.max_length, longest_input(classifier))
    masks: Masks = {}
    info: MaskInfo | None = None
    if mask is not None:
        masks, info = load_masks(mask)
        apply_masks(classifier, masks)
    job = Classification(
        task=chosen,
        model=classifier.to(accelerator.device),
        tokenizer=tokenizer,
        accelerator=accelerator,
        train=encode(train, tokenizer, classifier, length),
        dev=encode(dev, tokenizer, classifier, length),
        batch_size=chosen.batch_size,
        seed=seed,
    )

    with RunFolder.start(output, settings, resume) as folder:
        outcome = train_subnetwork(
            job,
            folder,
            masks,
            steps=chosen.epochs * job.steps_per_epoch,
            lr=chosen.lr,
            weight_decay=weight_decay,
            eval_every=chosen.eval_every,
            log_every=log_every,
            save_every=save_every,
        )
        result = {
            "task": task,
            "model": model,
            "method": info.method if info else "full",
            "sparsity": round(sparsity_of(masks), 6) if masks else 0.0,
            "mask": str(mask) if mask else None,
            "mask_seed": info.seed if info else None,
            "mask_step": info.step if info else None,
            "metric": chosen.metric,
            "score": outcome.best_score,
            "best_step": outcome.best_step,
            "final_score": outcome.final_score,
            "dev": outcome.best_metrics,
            "seed": seed,
            "train_samples": len(train),
            "seconds": round(outcome.seconds, 1),
            "output": str(output),
        }
        folder.finish({"results": [result]})
    say(f"the best model is in {output / MODEL_FOLDER}")
    return {"results": [result]}


def _with_options(task: Task, settings: dict) -> Task:
    """The task with the options of the command in place of its defaults."""
    columns = {"text_column": "text_columns", "label_column": "label_column"}
    if task.name != "classification":
        for option in columns:
            if settings[option] is not None:
                flag = option.replace("_", "-")
                raise UserError(f"--{flag} is for --task classification; {task.name} knows its columns")
    elif settings["text_column"] is not None and not 1 <= len(settings["text_column"]) <= 2:
        raise UserError("--text-column takes one column or two; leave out the others")
    elif settings["text_column"] is not None:
        task = replace(task, text_columns=tuple(settings["text_column"]))
    options = ["label_column", "epochs", "batch_size", "max_length", "lr", "eval_every"]
    return replace(task, **{name: settings[name] for name in options if settings[name] is not None})


def _check(settings: dict) -> None:
    """Refuse what cannot work, before anything is loaded."""
    positive = ["train_samples", "epochs", "batch_size", "max_length", "eval_every", "log_every", "save_every"]
    check_positive(**{name: settings[name] for name in positive})
    if settings["lr"] is not None and not settings["lr"] > 0:
        raise UserError(f"--lr {settings['lr']:g} must be more than 0; raise it or leave it out")
    if settings["weight_decay"] < 0:
        raise UserError(f"--weight-decay {settings['weight_decay']:g} must not be negative; leave it out for none")
