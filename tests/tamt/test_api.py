"""The public functions: what they take, return and raise, and the examples in their docstrings."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import tamt
from tamt.api import in_python
from tamt.commands.evaluate import evaluate
from tamt.masks.masking import prunable_weights
from tamt.options.train import TrainOptions
from tamt.runtime.errors import UserError

FUNCTIONS = ("find_ticket", "finetune", "evaluate", "export")
MODULES = ("tamt.finetuning.finetune", "tamt.commands.evaluate", "tamt.commands.export")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tamt.Ticket:
    """A ticket of the tiny model, in the folder of its run."""
    return tamt.find_ticket(tiny_bert, "omp", output=tmp_path_factory.mktemp("omp") / "run")


def zeros(folder: Path, ticket: tamt.Ticket) -> bool:
    weights = prunable_weights(AutoModel.from_pretrained(folder))
    return all((weights[name][~mask] == 0).all() for name, mask in ticket.masks.items())


def test_the_examples_of_the_docstrings(
    tiny_bert: Path, corpus: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-base-uncased").symlink_to(tiny_bert)
    (tmp_path / "text.txt").symlink_to(corpus)
    for name, file in cats_and_dogs.items():
        (tmp_path / f"{name.removesuffix('_file')}.tsv").symlink_to(file)
    finder, failures = doctest.DocTestFinder(recurse=False), []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    examples = 0
    for name in [
        *FUNCTIONS,
        "Ticket",
        "TicketCallback",
    ]:  # the first one finds the ticket
        (test,) = finder.find(getattr(tamt, name), name)
        examples += len(test.examples)
        runner.run(test, out=failures.append)
    assert not failures, "".join(failures)
    assert examples >= 2 * len(FUNCTIONS)


def test_a_fine_tuning_by_a_ticket_that_is_in_no_file(
    tiny_bert: Path, cats_and_dogs: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    ticket = tamt.Ticket.random(model, 0.5)
    options = {**cats_and_dogs, "train_samples": 16, "epochs": 1, "batch_size": 8, "lr": (1e-4, 1e-3), "seeds": [3, 4]}
    result = tamt.finetune(tiny_bert, "classification", ticket=ticket, output=str(tmp_path / "run"), **options)
    row = json.loads((tmp_path / "run" / "results.json").read_text())["results"][0]
    assert result.rows == [row]
    assert result.score == row["score"]
    assert result.metrics.keys() == {"accuracy"}
    assert result.model.parent.name in {"seed-3", "seed-4"}
    assert result.model.parent.parent.name == f"lr-{row['lr']:g}"
    assert zeros(result.model, ticket)
    assert tamt.Ticket.load(row["mask"]) == ticket
    assert ticket.path is None
    assert f"accuracy {row['score']:.4f} ± " in repr(result)
    assert "<th>seeds</th><td>3, 4</td>" in result._repr_html_()
    whole = tamt.export(result, output=tmp_path / "sparse", format="sparse")
    assert (whole / "sparse.safetensors").is_file()
    again = tamt.evaluate(result)
    best = dict(zip(row["seeds"], row["scores"], strict=True))
    assert again.score == max(best.values())
    assert again.metric == "accuracy"
    assert "task classification, accuracy" in repr(again)
    with pytest.raises(UserError, match="holds another ticket and is not overwritten"):
        tamt.finetune(
            tiny_bert, "classification", ticket=tamt.Ticket.random(model, 0.6), output=tmp_path / "run", **options
        )


@pytest.mark.parametrize(
    ("task", "options", "error"),
    [("sst3", {}, UserError), ("sst2", {"epoch": 1}, TypeError), ("sst2", {"lr": 0}, UserError)],
)
def test_a_wrong_option_leaves_no_mask_behind(
    task: str, options: dict, error: type[Exception], tiny_bert: Path, tmp_path: Path
) -> None:
    ticket = tamt.Ticket.random(AutoModel.from_pretrained(tiny_bert), 0.5)
    with pytest.raises(error):
        tamt.finetune(tiny_bert, task, ticket=ticket, output=tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_a_fine_tuning_into_the_working_folder(
    tiny_bert: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ticket = tamt.Ticket.random(AutoModelForSequenceClassification.from_pretrained(tiny_bert), 0.5)
    result = tamt.finetune(
        tiny_bert, "classification", ticket=ticket, output=".", **cats_and_dogs, train_samples=8, epochs=1
    )
    assert tamt.Ticket.load(tmp_path / "here.mask.safetensors") == ticket
    monkeypatch.chdir(tmp_path)
    assert result.model == tmp_path / "here" / "model"
    assert tamt.evaluate(result).score == result.score
    with pytest.raises(UserError, match="the result of a fine-tuning has its ticket's zeros already; leave ticket out"):
        tamt.export(result, ticket=ticket, output="exported")


def test_losses_of_a_ticket_wherever_it_is(tiny_bert: Path, corpus: Path, found: tamt.Ticket) -> None:
    fresh = tamt.Ticket(found.packed)
    assert found.path is not None
    file = Path(found.path)
    results = [
        tamt.evaluate(str(tiny_bert), [corpus], ticket=ticket, blocks=4, max_length=16)
        for ticket in (found, fresh, str(file), file.parent)
    ]
    assert len({tuple(result.metrics.values()) for result in results}) == 1
    assert [result.rows[0]["mask"] for result in results] == [str(file), None, str(file), str(file)]
    assert results[0].metrics["kd_loss"] > 0
    assert results[0].score is None
    assert "mlm_loss" in results[0]._repr_html_()
    row = evaluate(model=str(tiny_bert), corpus=[str(corpus)], mask=file.parent, blocks=4, max_length=16)["results"][0]
    assert row["mask"] == str(file), "a run folder names its mask file"


def test_an_export_is_a_plain_model(tiny_bert: Path, found: tamt.Ticket, tmp_path: Path) -> None:
    folder = tamt.export(tiny_bert, ticket=found, output=tmp_path / "plain")
    assert folder == tmp_path / "plain"
    assert zeros(folder, found)


def test_the_ticket_counts_and_not_what_its_file_holds_by_now(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModel.from_pretrained(tiny_bert)
    ticket, other = tamt.Ticket.random(model, 0.5), tamt.Ticket.random(model, 0.9)
    monkeypatch.chdir(tmp_path)
    ticket.save("mask.safetensors")
    other.save("mask.safetensors")
    assert ticket.sparsity_of(AutoModel.from_pretrained(tamt.export(tiny_bert, ticket=ticket, output="one"))) < 0.51
    (tmp_path / "mask.safetensors").unlink()
    assert other.sparsity_of(AutoModel.from_pretrained(tamt.export(tiny_bert, ticket=other, output="two"))) > 0.89


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.2}, "sparsity=1.2 is not between 0 and 1"),
        ({"sparsity": "half"}, "sparsity=half is not a number"),
        ({"corpus": 5}, "corpus=5 is not text"),
        ({"sparsity": [0.5]}, r"sparsity=\[0.5\] is not a number"),
        ({"objective": torch.nn.Linear(2, 2)}, "^objective=a Linear is not text$"),
        ({"head": torch.nn.Linear(2, 2)}, "^head=a Linear is not a path$"),
        ({"method": "magic"}, "method=magic is not one of tamt-mlm"),
        ({"method": "tamt-kd"}, "tamt-kd needs text; give corpus wikitext-103"),
        ({"head": "none"}, "head none cannot be read"),
        ({"save_at": [3]}, "^save_at=3 lies|^save_at is for mask training"),
        ({"output": "."}, "resume=True"),
    ],
)
def test_errors_speak_of_parameters(options: dict, message: str, tiny_bert: Path, tmp_path: Path) -> None:
    given = {"method": "omp", "output": tmp_path / "run", **options}
    with pytest.raises(UserError, match=message) as raised:
        tamt.find_ticket(tiny_bert, **given)
    assert "--" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_option_of_the_command_stays_in_a_message() -> None:
    assert in_python("no file a--model or --modell; give --max-length 9", TrainOptions) == (
        "no file a--model or --modell; give max_length 9"
    )


def test_an_unknown_option_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"finetune\(\) has no option 'epoch'; did you mean epochs"):
        tamt.finetune("m", "sst2", output=tmp_path / "run", epoch=1)
    with pytest.raises(TypeError, match="finetune.. has no option 'mask'; use ticket"):
        tamt.finetune("m", "sst2", output=tmp_path / "run", mask="m")


ORDERS = """
import os, sys
from importlib import import_module

names, modules = sys.argv[1].split(), sys.argv[2].split()
for name in modules:  # so that what tamt imports is there, which takes seconds
    import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "tamt"]:
    del sys.modules[name]

def check(order):
    import tamt
    for name in [*order, None]:  # None: the functions are used
        assert import_module(name) if name else all(callable(getattr(tamt, name)) for name in names)

orders = [[*modules[i:], *modules[:i]] for i in range(len(modules))]
for order in [[None, *order] for order in orders] + orders:
    if not os.fork():
        assert not any(name.partition(".")[0] == "tamt" for name in sys.modules)
        try:
            check(order)
        except BaseException as error:
            print(order, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_the_functions_are_callable_whatever_is_imported_first() -> None:
    subprocess.run([sys.executable, "-c", ORDERS, " ".join(FUNCTIONS), " ".join(MODULES)], check=True)


def test_no_module_has_the_name_of_a_function() -> None:
    modules = {path.stem for path in Path(tamt.__file__).parent.iterdir()}
    assert not modules & set(tamt.__all__)


def test_import_tamt_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, time; start = time.process_time(); import tamt; used = time.process_time() - start\n"
        "assert not {'torch', 'transformers', 'numpy', 'tamt.api'} & set(sys.modules), used\n"
        "assert set(tamt.__all__) <= set(dir(tamt))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
