"""The functions of the package: the commands, called from Python.

They take what the commands take, return objects and raise `UserError`, whose message names parameters.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tamt.commands.evaluate import evaluate as run_evaluate
from tamt.commands.export import export as run_export
from tamt.finetuning.finetune import finetune as run_finetune
from tamt.masks.file import MASK_FILE, save_packed
from tamt.options.base import Options
from tamt.options.evaluate import EvaluateOptions
from tamt.options.export import ExportOptions
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.options.values import WrongValueError, from_python
from tamt.results import EvaluateResult, FinetuneResult
from tamt.runtime import processes
from tamt.runtime.errors import UserError, did_you_mean
from tamt.runtime.files import telling
from tamt.search.train import train as run_train
from tamt.ticket import Ticket

OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)(?: ([^\s;]+)(?= (?:is|must|lies)\b))?")
"""An option in a message, and its value where the message says something of it."""
PARAMETERS = {"mask": "ticket"}
"""What the functions call an option, where it is not called the same."""


def find_ticket(
    model: str | Path,
    method: str = "tamt-kd",
    corpus: str | Path | Sequence[str | Path] | None = None,
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> Ticket:
    """Search a winning ticket: the mask of a subnetwork of a pre-trained model. This is `tamt train`.

    Example:
        >>> import tamt
        >>> ticket = tamt.find_ticket("bert-base-uncased", corpus="text.txt", output="runs/kd-70", steps=100)
        >>> ticket
        Ticket(bert-base-uncased, TAMT-KD, ... pruned, step 100, seed 0)
        >>> loss = ticket.results["kd_loss"]

    Args:
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base".
        method: mask training on MLM, KD or both ("tamt-mlm", "tamt-kd", "tamt-mlm+kd"), on any `objective` ("tamt"),
            iterative magnitude pruning ("imp"), one-shot pruning ("omp", "wanda"), "rand", or "drop" for layers.
        corpus: "wikitext-103" (from the hub), "demo", or text files, one paragraph per line; one-shot pruning by
            magnitude and random masks need none.
        sparsity: share of zeros in each mask, between 0 and 1; by default 0.7, or what the pattern gives.
        pattern: "N:M" to keep N of each M neighbours along the input instead, such as "2:4".
        output: new folder for the run, with its mask file, settings, metrics and results; by default
            `runs/MODEL-METHOD-SPARSITY-DATE`.
        options: any other option of `tamt train`, such as `structure` ("ffn:0.5" prunes half of the neurons), `steps`,
            `seed`, `batch_size`, `max_length` (tokens) or `resume`; `help(tamt.options.train.TrainOptions)` lists them.

    Returns:
        The ticket; its `path` is the mask file, its `results` has the dev losses.

    Raises:
        UserError: a value is wrong, or something cannot be read or written; nothing is overwritten.
        TypeError: there is no such option.
    """
    named = {"model": model, "method": method, "corpus": corpus, "sparsity": sparsity, "pattern": pattern}
    named["output"] = output
    rows = _run("find_ticket", run_train, TrainOptions, named, options)
    processes.wait()  # for the process that writes the mask
    ticket = Ticket.load(rows[-1]["mask"])
    ticket.results = rows[-1]
    return ticket


def finetune(
    model: str | Path,
    task: str,
    *,
    ticket: Ticket | str | Path | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> FinetuneResult:
    """Fine-tune a subnetwork, or the full model, on a task; pruned weights stay exactly zero. This is `tamt finetune`.

    Example:
        >>> import tamt
        >>> from pathlib import Path
        >>> rows = {"train_file": "train.tsv", "dev_file": "dev.tsv"}
        >>> result = tamt.finetune(
        ...     "bert-base-uncased", "classification", ticket="runs/kd-70", output="runs/sentiment", **rows
        ... )
        >>> result.metric, result.model.relative_to(Path.cwd()).as_posix()
        ('accuracy', 'runs/sentiment/model')

    Args:
        model: hub name or folder of the pre-trained model that the ticket is of.
        task: "cola", "sst2", "rte", "mnli", "mrpc", "stsb", "qnli", "qqp", "wnli", "squad", "squad2", "demo",
            "questions", or "classification" or "regression" with `train_file` and `dev_file`.
        ticket: a ticket, a mask file, a run folder, or "hub:USER/REPO"; None for the full model. A ticket that is in no
            file yet is saved as `OUTPUT.mask.safetensors`, as the run's settings name its mask.
        output: new folder for the run, with the model, its predictions, settings, metrics and results; by default
            `runs/MODEL-METHOD-SPARSITY-TASK-DATE`.
        options: any other option of `tamt finetune`, such as `epochs`, `lr` (a number, or several to choose from),
            `seed`, `seeds`, `batch_size` (rows), `max_length` (tokens) or `resume`;
            `help(tamt.options.finetune.FinetuneOptions)` lists them.

    Returns:
        The score, the metrics, and where the model is.

    Raises:
        UserError: a value is wrong, or something cannot be read or written; nothing is overwritten.
        TypeError: there is no such option.
    """
    mask, file = _mask_file(ticket), None
    if isinstance(ticket, Ticket) and mask is None:
        if output is None:
            raise UserError("the ticket is in no file, which the run needs; give output, or call ticket.save before")
        file = _beside(Path(output))
    named = {"model": model, "task": task, "mask": file or mask, "output": output}
    checked = _options("finetune", FinetuneOptions, named, options)
    if isinstance(ticket, Ticket) and file is not None:
        _save_unless_there(ticket, file)
    return FinetuneResult(_rows(run_finetune, checked))


def evaluate(
    model: str | Path | FinetuneResult,
    corpus: str | Path | Sequence[str | Path] | None = None,
    *,
    ticket: Ticket | str | Path | None = None,
    task: str | None = None,
    **options: Any,
) -> EvaluateResult:
    """Measure the MLM and KD loss of a subnetwork on text, or a fine-tuned model on its task. This is `tamt evaluate`.

    Example:
        >>> import tamt
        >>> result = tamt.evaluate("bert-base-uncased", "text.txt", ticket="runs/kd-70")
        >>> sorted(result.metrics)
        ['kd_loss', 'mlm_loss']

    Args:
        model: hub name or folder of the pre-trained model; for a `task` the result or the run folder of a fine-tuning,
            or a fine-tuned model.
        corpus: "wikitext-103" (its validation split), "demo", or text files, one paragraph per line.
        ticket: a ticket, a mask file, a run folder, or "hub:USER/REPO"; None for the full model.
        task: measure the score on the dev rows of this task instead; by default that of a `FinetuneResult`.
        options: any other option of `tamt evaluate`, such as `blocks`, `batch_size`, `max_length` (tokens) or `seed`;
            `help(tamt.options.evaluate.EvaluateOptions)` lists them.

    Returns:
        The losses, or the score and the metrics of the task.

    Raises:
        UserError: a value is wrong, or something cannot be read.
        TypeError: there is no such option.
    """
    if isinstance(model, FinetuneResult):
        task, model = task or model.task, model.run
    with _as_file(ticket) as mask:
        named = {"model": model, "corpus": corpus, "mask": mask, "task": task}
        rows = _run("evaluate", run_evaluate, EvaluateOptions, named, options)
        if isinstance(ticket, Ticket) and mask != ticket.path:
            rows[0]["mask"] = None  # the file was a temporary one
    return EvaluateResult(rows)


def export(
    model: str | Path | FinetuneResult,
    *,
    output: str | Path,
    ticket: Ticket | str | Path | None = None,
    **options: Any,
) -> Path:
    """Write a subnetwork as a Hugging Face model, dense with zeros or as a sparse file. This is `tamt export`.

    Example:
        >>> import tamt
        >>> folder = tamt.export("bert-base-uncased", ticket="runs/kd-70", output="subnetwork")
        >>> from transformers import AutoModel
        >>> model = AutoModel.from_pretrained(folder)

    Args:
        model: hub name or folder of the pre-trained model that the ticket is of; without a ticket the result or the run
            folder of a fine-tuning, or any model with zeros.
        output: new folder for the model and its tokenizer.
        ticket: a ticket, a mask file, a run folder, or "hub:USER/REPO"; None for the zeros that the model has.
        options: any other option of `tamt export`: `format` ("dense", "sparse" or "prune") and `values`;
            `help(tamt.options.export.ExportOptions)` describes them.

    Returns:
        The folder, as an absolute path.

    Raises:
        UserError: a value is wrong, or something cannot be read or written; nothing is overwritten.
        TypeError: there is no such option.
    """
    if isinstance(model, FinetuneResult):
        if ticket is not None:
            raise UserError(
                "the result of a fine-tuning has its ticket's zeros already; leave ticket out, or give the pre-trained "
                "model to export that ticket"
            )
        model = model.run
    with _as_file(ticket) as mask:
        named = {"model": model, "mask": mask, "output": output}
        return Path(_run("export", run_export, ExportOptions, named, options)[0]["output"])


def _run(
    function: str,
    command: Callable[[Any], dict[str, Any]],
    kind: type[Options],
    named: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows of a command for values from Python, as `_options` takes them."""
    return _rows(command, _options(function, kind, named, options))


def _options(function: str, kind: type[Options], named: Mapping[str, Any], options: Mapping[str, Any]) -> Options:
    """The options of a command from Python: named parameters, and other options. None leaves one as it is."""
    types = {field.name: field.type for field in fields(kind)}
    for name in options:
        if name in PARAMETERS or name not in types:
            hint = f"help({kind.__module__}.{kind.__name__}) lists them"
            hint = f"use {PARAMETERS[name]}" if name in PARAMETERS else did_you_mean(name, types, hint)
            raise TypeError(f"tamt.{function}() has no option {name!r}; {hint}")
    values = {}
    try:
        for name, value in {**named, **options}.items():
            if value is not None:
                values[name] = from_python(types[name], value)
    except WrongValueError as error:
        raise UserError(f"{PARAMETERS.get(name, name)}={error}") from error
    with _naming_parameters(kind):
        return kind(**values)


def _rows(command: Callable[[Any], dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    with _naming_parameters(type(options)):
        return command(options)["results"]


@contextmanager
def _naming_parameters(kind: type[Options]) -> Iterator[None]:
    """Let a UserError in this block speak of parameters where it speaks of options."""
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error), kind), *error.args[1:])
        raise


def in_python(message: str, kind: type[Options]) -> str:
    """A message about the options of a command, with the names of parameters instead: `--max-length 9 is` becomes
    `max_length=9 is`."""
    types = {field.name: field.type for field in fields(kind)}

    def parameter(match: re.Match[str]) -> str:
        name, value = match[1].replace("-", "_"), match[2]
        if name not in types:
            return match[0]
        if types[name] is bool:
            return f"{name}=True" + (f" {value}" if value else "")
        return PARAMETERS.get(name, name) + (f"={value}" if value else "")

    return OPTION.sub(parameter, message)


def _mask_file(ticket: Ticket | str | Path | None) -> str | None:
    """The mask file of a ticket; None for no ticket, or for one that is in no file.

    A ticket may have been in a file that is gone by now, or that another was saved in.
    """
    if ticket is None:
        return None
    if not isinstance(ticket, Ticket):
        return str(ticket)
    try:
        return ticket.path if ticket.path is not None and Ticket.load(ticket.path) == ticket else None
    except UserError:
        return None


@contextmanager
def _as_file(ticket: Ticket | str | Path | None) -> Iterator[str | None]:
    """The mask file of a ticket; one that is in none is in a temporary file meanwhile."""
    mask = _mask_file(ticket)
    if mask is not None or not isinstance(ticket, Ticket):
        yield mask
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / MASK_FILE
        save_packed(file, ticket.packed)
        yield str(file)


def _beside(output: Path) -> Path:
    """The file beside the folder of a run that holds its ticket, where that is in no other file."""
    output = output.resolve()  # "." has no name
    return output.with_name(f"{output.name}.{MASK_FILE}")


def _save_unless_there(ticket: Ticket, file: Path) -> None:
    """Save a ticket, unless the file holds it already, as when a run is resumed."""

    def save() -> None:
        if file.exists():
            if Ticket.load(file) != ticket:
                raise UserError(f"{file} holds another ticket and is not overwritten; give a new output")
            return
        with telling(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        save_packed(file, ticket.packed)

    processes.join()
    processes.by_first(save)
