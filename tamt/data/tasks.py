"""The tasks to fine-tune on: their labels, files and metrics, and the paper's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from tamt.runtime.choices import Names
from tamt.runtime.errors import UserError

Kind = Literal["classification", "regression", "question-answering"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "exact_match"]


@dataclass(frozen=True)
class Task:
    """A task, with the settings of the paper's Table 1 as defaults.

    Attributes:
        name: value of `--task`.
        kind: whether a label is a name, a number, or a span of a text.
        text_columns: one column, or two for a pair of sentences.
        label_column: column with the label.
        label_names: the labels by their ids; a file may contain names or ids. None: the labels in the train file.
        metrics: the metrics; the first one is the score, which selects the best model.
        folder: its folder in GLUE's `glue_data`.
        header: the columns of a file without a header line.
        hub: repository and configuration on the hub.
        hub_columns: columns of texts and label on the hub, if they have other names there.
        scale: lowest and highest label of a regression; None for any numbers.
        numbered_labels: whether GLUE's files and submissions contain the ids of labels instead of their names.
        unanswerable: whether some questions have no answer in their text.
        broken_lines: whether lines with a wrong number of cells are left out, because the official file has some.
        splits: official number of rows of each file; train first, then the dev set, then others.
        epochs: passes over the train rows.
        eval_every: optimizer steps between two evaluations.
        batch_size: rows per batch.
        max_length: tokens per input, special tokens included.
        lr: the paper's peak learning rate.
    """

    name: str
    kind: Kind = "classification"
    text_columns: tuple[str, ...] = ("sentence",)
    label_column: str = "label"
    label_names: tuple[str, ...] | None = None
    metrics: tuple[Metric, ...] = ("accuracy",)
    folder: str | None = None
    header: tuple[str, ...] | None = None
    hub: tuple[str, ...] | None = None
    hub_columns: tuple[str, ...] | None = None
    scale: tuple[float, float] | None = None
    numbered_labels: bool = False
    unanswerable: bool = False
    broken_lines: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 3
    eval_every: int = 50
    batch_size: int = 32
    max_length: int = 128
    lr: float = 2e-5

    @property
    def held_out(self) -> "Task":
        """The task without its train split, to read only the dev rows."""
        return replace(self, splits={split: rows for split, rows in self.splits.items() if split != "train"})

    @property
    def own_files(self) -> bool:
        """Whether its rows come from --train-file and --dev-file."""
        return self.name in ("classification", "regression")


PAIR = ("sentence1", "sentence2")
SENTIMENTS = ("negative", "positive")
TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            label_names=("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"),
            folder="CoLA",
            header=("source", "label", "star", "sentence"),
            numbered_labels=True,
            hub=("nyu-mll/glue", "cola"),
            splits={"train": 8_551, "dev": 1_043},
        ),
        Task(
            "sst2",
            label_names=SENTIMENTS,
            folder="SST-2",
            numbered_labels=True,
            hub=("nyu-mll/glue", "sst2"),
            splits={"train": 67_349, "dev": 872},
        ),
        Task(
            "rte",
            text_columns=PAIR,
            label_names=("entailment", "not_entailment"),
            folder="RTE",
            hub=("nyu-mll/glue", "rte"),
            splits={"train": 2_490, "dev": 277},
        ),
        Task(
            "mnli",
            text_columns=PAIR,
            label_column="gold_label",
            label_names=("entailment", "neutral", "contradiction"),
            folder="MNLI",
            hub=("nyu-mll/glue", "mnli"),
            hub_columns=("premise", "hypothesis", "label"),
            splits={"train": 392_702, "dev_matched": 9_815, "dev_mismatched": 9_832},
            eval_every=500,
        ),
        Task(
            "mrpc",
            text_columns=("#1 String", "#2 String"),
            label_column="Quality",
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            folder="MRPC",
            numbered_labels=True,
            hub=("nyu-mll/glue", "mrpc"),
            hub_columns=(*PAIR, "label"),
            splits={"train": 3_668, "dev": 408},
        ),
        Task(
            "stsb",
            kind="regression",
            text_columns=PAIR,
            label_column="score",
            metrics=("pearson", "spearman"),
            scale=(0.0, 5.0),
            folder="STS-B",
            hub=("nyu-mll/glue", "stsb"),
            hub_columns=(*PAIR, "label"),
            splits={"train": 5_749, "dev": 1_500},
        ),
        Task(
            "qnli",
            text_columns=("question", "sentence"),
            label_names=("entailment", "not_entailment"),
            folder="QNLI",
            hub=("nyu-mll/glue", "qnli"),
            splits={"train": 104_743, "dev": 5_463},
            eval_every=500,
        ),
        Task(
            "qqp",
            text_columns=("question1", "question2"),
            label_column="is_duplicate",
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            folder="QQP",
            numbered_labels=True,
            hub=("nyu-mll/glue", "qqp"),
            hub_columns=("question1", "question2", "label"),
            broken_lines=True,
            splits={"train": 363_846, "dev": 40_430},
            eval_every=500,
        ),
        Task(
            "wnli",
            text_columns=PAIR,
            label_names=("not_entailment", "entailment"),
            folder="WNLI",
            numbered_labels=True,
            hub=("nyu-mll/glue", "wnli"),
            splits={"train": 635, "dev": 71},
        ),
        Task(
            "squad",
            kind="question-answering",
            metrics=("f1", "exact_match"),
            hub=("rajpurkar/squad",),
            splits={"train": 87_599, "dev": 10_570},
            epochs=2,
            eval_every=1000,
            batch_size=16,
            max_length=384,
            lr=3e-5,
        ),
        Task(
            "squad2",
            kind="question-answering",
            metrics=("f1", "exact_match"),
            unanswerable=True,
            hub=("rajpurkar/squad_v2",),
            splits={"train": 130_319, "dev": 11_873},
            epochs=2,
            eval_every=1000,
            batch_size=16,
            max_length=384,
            lr=3e-5,
        ),
        Task("demo", label_names=SENTIMENTS, eval_every=200, batch_size=16, max_length=64),
        Task(
            "questions",
            label_names=("abbreviation", "description", "entity", "human", "location", "number"),
            eval_every=200,
            batch_size=8,
            max_length=64,
        ),
        Task("classification"),
        Task("regression", kind="regression", metrics=("pearson", "spearman")),
    )
}


TaskName = Annotated[str, Names(TASKS)]
"""Type of an option that names a task; see `tamt.options.base.choices_of`."""


def find_task(name: str) -> Task:
    """The task called `name`. Raises UserError if there is none."""
    if name not in TASKS:
        raise UserError(
            f"there is no task {name!r}; the tasks are {', '.join(TASKS)} (classification and regression are for your "
            "own files)"
        )
    return TASKS[name]


def with_columns(task: Task, text_column: Sequence[str] | None, label_column: str | None) -> Task:
    """The task with the columns of your own files; None keeps the default.

    Raises:
        UserError: the columns of the task are fixed, or there are more than two text columns.
    """
    for option, value in {"text-column": text_column, "label-column": label_column}.items():
        if value is not None and not task.own_files:
            raise UserError(f"--{option} is for --task classification or regression; {task.name} knows its columns")
    if text_column is not None and not 1 <= len(text_column) <= 2:
        raise UserError("--text-column takes one column or two; leave out the others")
    texts = task.text_columns if text_column is None else tuple(text_column)
    return replace(task, text_columns=texts, label_column=label_column or task.label_column)
