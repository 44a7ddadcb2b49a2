"""The examples run as they are, on a tiny model and in few steps; the notebook's outputs are those of a real run."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "first_ticket.ipynb"


def run(example: str, *arguments: str | Path, cwd: Path) -> str:
    """What an example prints."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(cwd / "datasets")}
    command = [sys.executable, EXAMPLES / example, *arguments]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_kernels_only(tmp_path: Path) -> None:
    printed = run("kernels_only.py", "--steps", "60", "--sparsity", "0.75", cwd=tmp_path)
    before, after = map(float, re.findall(r"(0\.\d+) (?:before|after)", printed))
    assert after > before + 0.15
    assert "sparsity 0.750: 17,024 of 68,096 weights" in printed


def test_own_text(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    sizes = ("--steps", "30", "--batch-size", "4", "--max-length", "16")
    printed = run("own_text.py", corpus, "--model", tiny_bert, *sizes, cwd=tmp_path)
    largest, trained = map(float, re.findall(r"(\d\.\d+) with", printed))
    assert trained < largest
    assert (tmp_path / "runs" / "own-text" / "tamt-kd" / "mask.safetensors").is_file()


def test_trainer(tiny_bert: Path, tmp_path: Path) -> None:
    files = []
    for name in ("train", "dev"):
        files += [f"--{name}-file", tmp_path / f"{name}.csv"]
        with files[-1].open("w", newline="") as file:
            rows = [[f"the {('cat', 'dog')[i % 2]} sees a bird", i % 2] for i in range(32)]
            csv.writer(file).writerows([["sentence", "label"], *rows])
    printed = run("trainer.py", "--model", tiny_bert, *files, "--epochs", "1", cwd=tmp_path)
    assert re.search(r"accuracy [01].\d+ with (69.9|70.0)% of the weights pruned", printed)
    assert "0 pruned weights have come back" in printed
    assert (tmp_path / "runs" / "trainer" / "model.safetensors").is_file()


def run_notebook(parameters: list[str], cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the notebook with these lines instead of its parameters, and check what it shows."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (cell,) = (cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"])
    cell.source = "\n".join(["from pathlib import Path", "folder = 'first-ticket'", *parameters])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(cwd)}}
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()  # raises errors of cells
    assert printed(notebook).endswith("\n0 pruned weights have come back\n")
    assert len(pictures(notebook)) == 2


def test_the_notebook_runs(
    tiny_bert: Path, corpus: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ", ".join(f"{name}=Path({str(path)!r})" for name, path in cats_and_dogs.items())
    parameters = [
        f"model, corpus = {str(tiny_bert)!r}, [{str(corpus)!r}]",
        f"task = dict(task='classification', {files})",
        "search = {'steps': 20, 'batch_size': 4, 'max_length': 16}",
    ]
    run_notebook(parameters, tmp_path, monkeypatch)


@pytest.mark.skipif("TAMT_SOAK" not in os.environ, reason="a minute, and the demo's files, which may be fetched")
def test_the_notebook_runs_on_the_model_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [
        "model, corpus = 'demo', ['demo']",
        "task = {'task': 'questions', 'train_samples': 64}",
        "search = {'steps': 3, 'batch_size': 4, 'max_length': 64, 'eval_blocks': 4}",
    ]
    run_notebook(parameters, tmp_path, monkeypatch)


def test_the_notebook_was_committed_as_a_real_run_left_it() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    losses = dict(re.findall(r"(\S+) +KD loss (\d\.\d+)", printed(notebook)))
    assert float(losses["tamt-kd"]) < float(losses["omp"]) < float(losses["rand"])
    assert len(pictures(notebook)) == 2
    assert not re.search(r"/(root|home|work|tmp|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the cells wrote to stdout. A kernel may send one line in several pieces."""
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """The pictures that the cells show, as base64."""
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
