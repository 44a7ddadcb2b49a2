"""What to do after a command: the next one, ready to paste."""

import shlex
import sys
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

from tamt.options.base import Options
from tamt.options.bench import BenchOptions
from tamt.options.compare import CompareOptions
from tamt.options.demo import DemoOptions
from tamt.options.evaluate import EvaluateOptions
from tamt.options.export import ExportOptions
from tamt.options.finetune import FinetuneOptions
from tamt.options.predict import PredictOptions
from tamt.options.report import ReportOptions
from tamt.options.sweep import SweepOptions
from tamt.options.train import TrainOptions

DEMO_MODELS = ("demo", "demo-base")


class Step(NamedTuple):
    """A purpose, which completes the sentence "To …", and the command for it."""

    purpose: str
    words: list[str]

    def __str__(self) -> str:
        return f"To {self.purpose}:\n  {shlex.join(self.words)}"


@singledispatch
def next_step(options: Options, results: dict[str, Any]) -> Step | None:
    """The step that usually follows a command.

    Args:
        options: those of the command.
        results: what its function returned.

    Returns:
        The step, or None if nothing follows from these options.
    """
    raise NotImplementedError(type(options).__name__)


@next_step.register
def _(options: TrainOptions, results: dict[str, Any]) -> Step:
    return _finetune(options.model, results["results"][-1]["mask"])


@next_step.register
def _(options: FinetuneOptions, results: dict[str, Any]) -> Step:
    output = Path(results["results"][0]["output"])
    if options.dev_file and options.seeds is None and len(options.rates()) == 1:
        predictions = output.with_name(f"{output.name}-predictions.jsonl")
        return _predict(str(output), options.dev_file, predictions)
    return _report(output.parent if output.parent.name == "runs" else output)


@next_step.register
def _(options: EvaluateOptions, results: dict[str, Any]) -> Step | None:
    if options.task is not None:
        return _predict(options.model, options.dev_file, Path("predictions.jsonl")) if options.dev_file else None
    if options.mask is not None:
        return _finetune(options.model, str(options.mask))
    words = ["tamt", "train", "--method", "tamt-kd", "--model", options.model, "--corpus", *(options.corpus or [])]
    return Step("search a winning ticket of this model", words)


@next_step.register
def _(options: PredictOptions, results: dict[str, Any]) -> Step:
    return Step("look at the predictions", ["head", "-n", "5", str(options.output)])


@next_step.register
def _(options: SweepOptions, results: dict[str, Any]) -> Step | None:
    words = ["tamt", "sweep", str(options.study)]
    for name in ("output", "data_dir", "engine", "cores", "workers"):
        value = getattr(options, name)
        if value != getattr(SweepOptions, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--redo"] * options.redo
    if options.dry_run:
        refused = any(row["state"].startswith("refused") for row in results["results"])
        return None if refused else Step("start these runs", words)
    if results["failed"]:
        return Step("try the runs again that failed", words)
    return _report(Path(results["output"]))


@next_step.register
def _(options: ReportOptions, results: dict[str, Any]) -> Step:
    return Step("open the report", [Path(sys.executable).name, "-m", "webbrowser", results["results"][0]["report"]])


@next_step.register
def _(options: CompareOptions, results: dict[str, Any]) -> Step | None:
    if options.output is None:
        return Step("draw the similarities", ["tamt", "compare", *map(str, options.masks), "--output", "similarities"])
    return _finetune(options.model, str(options.masks[0])) if options.model else None


@next_step.register
def _(options: ExportOptions, results: dict[str, Any]) -> Step | None:
    if options.mask is None:  # a fine-tuned model, say, of a task that is not known here
        return None
    # Not of the exported model, whose KD loss would be that from itself.
    words = ["tamt", "evaluate", "--model", options.model, "--mask", str(options.mask)]
    return Step("measure the subnetwork", [*words, "--corpus", _corpus(options.model)])


@next_step.register
def _(options: BenchOptions, results: dict[str, Any]) -> Step:
    runs, name = results["results"][0], Path(options.model).name
    mask = [] if options.mask is None else ["--mask", str(options.mask)]
    export = ["tamt", "export", "--model", options.model, *mask]
    if runs["fastest"].startswith("shrunk"):
        return Step("write the smaller model", [*export, "--shrink", "--output", f"{name}-small"])
    if options.sparsity is None and runs["sparse_ms"] is not None:
        return Step("write the sparse model", [*export, "--format", "sparse", "--output", f"{name}-sparse"])
    words = ["tamt", "train", "--method", "tamt-kd", "--model", options.model, "--corpus", _corpus(options.model)]
    of = [] if options.sparsity is None else ["--sparsity", f"{options.sparsity:g}"]
    return Step("search a winning ticket of this model", [*words, *of])


@next_step.register
def _(options: DemoOptions, results: dict[str, Any]) -> Step:
    return _report(options.output)


def _finetune(model: str, mask: str) -> Step:
    task = "questions" if model in DEMO_MODELS else "sst2"
    return Step("fine-tune the subnetwork", ["tamt", "finetune", "--task", task, "--model", model, "--mask", mask])


def _predict(model: str, file: Path, output: Path) -> Step:
    words = ["tamt", "predict", "--model", model, "--file", str(file), "--output", str(output)]
    return Step("predict labels, here of the dev rows", words)


def _report(folder: Path) -> Step:
    return Step("draw figures and tables of the runs", ["tamt", "report", str(folder)])


def _corpus(model: str) -> str:
    return "demo" if model in DEMO_MODELS else "wikitext-103"
