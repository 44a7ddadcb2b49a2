"""A fine-tuned model that was saved: opened again with its task, to be measured or asked for predictions."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.glue import load_dev_rows
from tamt.data.rows import Rows
from tamt.data.squad import Question, load_questions
from tamt.data.tasks import Kind, Task, find_task, with_columns
from tamt.finetuning.classification import Classification, Encoded, encode_dev
from tamt.finetuning.loop import MODEL_FOLDER, SPARE_MEMORY, Job
from tamt.finetuning.metrics import scores_in_words
from tamt.finetuning.question_answering import MAX_ANSWER_LENGTH, N_BEST, QuestionAnswering, make_windows
from tamt.models.loading import UNLIMITED, input_length, is_sparse, load_finetuned, load_tokenizer
from tamt.models.sparse import run_sparse
from tamt.options.evaluate import EvaluateOptions
from tamt.options.predict import PredictOptions
from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.untrusted import read_yaml
from tamt.training.loop import check_runs, compute_dtype, make_accelerator, report_arithmetic
from tamt.training.precision import choose_precision
from tamt.training.run_folder import CONFIG, RESULTS

Dev = dict[str, Rows] | list[Question]
"""Rows by the name of their set, the main one first, or questions."""

TASK_OF_KIND: dict[Kind, str] = {
    "classification": "classification",
    "regression": "regression",
    "question-answering": "squad",
}
"""The task of a fine-tuned model where neither a run folder nor the user names one."""
NAMELESS = re.compile(r"(LABEL_)?\d+")
"""What transformers calls labels that were given no names."""


@dataclass
class FineTuned:
    """A fine-tuned model with the task that it is used for.

    Attributes:
        name: what the user calls it.
        task: with the columns of the rows, the labels and the batch size.
        output_of_label: see `Classification`.
        settings: of the run that fine-tuned the model on this task; none where there is no such run.
        length: tokens of an input.
    """

    name: str
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    output_of_label: Sequence[int] | None
    settings: Mapping[str, Any]
    length: int

    def prepare(self, dev: Dev, labelled: bool = True) -> Job:
        """Rows or questions made ready for the model, by what makes them ready in fine-tuning.

        Args:
            dev: the rows or questions.
            labelled: whether the answers to the questions are known.

        Raises:
            UserError: the model cannot read them.
        """
        few: Dev = dev[:1] if isinstance(dev, list) else {"": _two(next(iter(dev.values())))}
        check_runs(self.model, self.name, self.accelerator, self._job(few, labelled).evaluate)
        return self._job(dev, labelled)

    def _job(self, dev: Dev, labelled: bool) -> Job:
        shared: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "accelerator": self.accelerator,
            "batch_size": self.task.batch_size,
            "step_rows": self.task.batch_size,
            "seed": 0,
        }
        if isinstance(dev, dict):
            rows = encode_dev(dev, self.tokenizer, self.model, self.length)
            return Classification(train=Encoded([], []), dev=rows, output_of_label=self.output_of_label, **shared)
        stride = self.settings.get("stride")
        stride = self.length // 3 if stride is None else stride
        return QuestionAnswering(
            train=[],
            dev=make_windows(dev, self.tokenizer, self.model, self.length, stride),
            questions=dev,
            n_best=self.settings.get("n_best") or N_BEST,
            max_answer_length=self.settings.get("max_answer_length") or MAX_ANSWER_LENGTH,
            labelled=labelled,
            **shared,
        )

    def file_of_run(self, option: str) -> Path | None:
        """A file or folder that an option of the run named; None if there is none."""
        path = self.settings.get(option)
        return Path(path) if path else None

    def result(self, rows: int, scores: Mapping[str, float | None], started: float) -> dict:
        """The row of results for rows that were given scores, which are said; for unlabelled rows there are none."""
        if scores:
            say(scores_in_words(scores))
        metric = self.task.metrics[0]
        precision = self.accelerator.mixed_precision
        return {
            "model": self.name,
            "task": self.task.name,
            "rows": rows,
            "metric": metric if scores else None,
            "score": scores.get(metric),
            "dev": dict(scores),
            "precision": "fp32" if precision == "no" else precision,
            "seconds": round(time.monotonic() - started, 1),
        }


def open_finetuned(options: EvaluateOptions | PredictOptions) -> FineTuned:
    """Open the fine-tuned model of a command. What an option leaves open is as in the run, or the task's default.

    Raises:
        UserError: there is no fine-tuned model, or none for this task; see also `find_task`, `with_columns`,
            `input_length` and `make_accelerator`.
    """
    name, task = options.model, options.task
    source, settings = run_of(name)
    chosen = choose_precision(options.precision, Path(name), resume=True)
    if task not in (None, settings.get("task")):
        settings = {}
    accelerator = make_accelerator(chosen, 1, 0, SPARE_MEMORY)
    with processes.one_first():
        tokenizer = load_tokenizer(source, masking=False)
        model = load_finetuned(source)
    kind = _kind_of(model, name)
    found = find_task(task or settings.get("task") or TASK_OF_KIND[kind])
    if found.kind != kind:
        raise UserError(
            f"{name} does {kind} and the task {found.name} is {found.kind}; give a model that was fine-tuned on "
            f"{found.name}, or another --task"
        )
    texts, label = (
        options.text_column or settings.get("text_column"),
        options.label_column or settings.get("label_column"),
    )
    found = with_columns(found, texts, label)
    found = replace(found, batch_size=options.batch_size or settings.get("batch_size") or found.batch_size)
    output_of_label = None
    if kind == "classification":
        labels = tuple(str(model.config.id2label.get(i, i)) for i in range(model.config.num_labels))
        found = replace(found, label_names=found.label_names or labels)
        output_of_label = _outputs(found, labels, name)
    saved_with = tokenizer.model_max_length
    default = saved_with if saved_with < UNLIMITED else found.max_length
    length = input_length(model, tokenizer, name, options.max_length, default)
    report_arithmetic(accelerator, options.precision if source == name else chosen)
    model.to(accelerator.device)
    if options.sparse or is_sparse(source):
        run_sparse(model, name, compute_dtype(accelerator))
    return FineTuned(name, found, model, tokenizer, accelerator, output_of_label, settings, length)


def score_finetuned(
    saved: FineTuned, data_dir: Path | None = None, dev_file: Path | None = None, started: float = 0.0
) -> dict:
    """The row of results for a fine-tuned model on the dev rows of its task, where not given those of its run.

    Raises:
        UserError: see `load_dev_rows` and `load_questions`.
    """
    if data_dir is None and dev_file is None:
        data_dir, dev_file = saved.file_of_run("data_dir"), saved.file_of_run("dev_file")
    task = saved.task
    if task.kind == "question-answering" and dev_file is not None:
        raise UserError(f"--dev-file is for --task classification or regression, not {task.name}; give --data-dir")
    dev: Dev
    with processes.one_first():
        if task.kind == "question-answering":
            dev = load_questions(task.held_out, data_dir)["dev"]
            rows = len(dev)
        else:
            dev = load_dev_rows(task, data_dir, dev_file)
            rows = sum(map(len, dev.values()))
    return saved.result(rows, saved.prepare(dev).evaluate(), started)


def _two(rows: Rows) -> Rows:
    return Rows(rows.texts[:2], rows.labels[:2])


def run_of(name: str) -> tuple[str, dict[str, Any]]:
    """Where the model behind `name` is saved, and the settings of its run if `name` is a run folder."""
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        runs = sorted([*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")])
        if runs and not (folder / "config.json").is_file():
            raise UserError(f"{name} holds several runs; give one of them, such as {runs[0].parent}")
        return name, {}
    settings = read_yaml(folder / CONFIG)
    if "task" not in settings:
        raise UserError(f"the run in {name} is a search and no fine-tuning; give a run of tamt finetune")
    if not (folder / MODEL_FOLDER).is_dir():
        raise UserError(f"the run in {name} has no model yet; continue it with tamt finetune --resume")
    if not (folder / RESULTS).is_file():
        say(f"the run in {name} is not finished; the best model of its evaluations so far is used")
    return str(folder / MODEL_FOLDER), settings


def _kind_of(model: PreTrainedModel, name: str) -> Kind:
    """What a fine-tuned model does, by its class and configuration."""
    if "QuestionAnswering" in type(model).__name__:
        return "question-answering"
    config = model.config
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if problem == "regression" and config.num_labels == 1:
        return "regression"
    if problem == "single_label_classification":
        return "classification"
    raise UserError(
        f"{name} gives {config.num_labels} outputs that are {problem}; give a model with one label or one number a row"
    )


def _outputs(task: Task, labels: Sequence[str], name: str) -> list[int] | None:
    """The output of a model for each label of a task, by the labels' names; None if they are in the task's order."""
    names = task.label_names or ()
    known, wanted = [label.lower() for label in labels], [label.lower() for label in names]
    if known == wanted:
        return None
    if sorted(known) == sorted(wanted):
        return [known.index(label) for label in wanted]
    if len(known) == len(wanted) and all(NAMELESS.fullmatch(label) for label in labels):
        say(f"{name} has no names for its labels, which are taken as {', '.join(names)}")
        return None
    raise UserError(
        f"{name} knows the labels {', '.join(labels)} and the task {task.name} has {', '.join(names)}; give a model "
        f"that was fine-tuned on {task.name}, or choose --task classification for rows with the model's own labels"
    )
