"""Runs of several processes, started by torchrun on gloo: the same as one process, and what befalls them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tamt.cli import main
from tamt.masks.file import load_masks
from tamt.runtime import processes
from tamt.training.checkpoint import read_checkpoint

Outcome = tuple[int, str, list[list[int]]]


def launch(folder: Path, requests: list[dict[str, Any]], count: int = 2) -> Outcome:
    """Exit code of torchrun, stderr of the processes, and of each the exit codes of its commands."""
    folder.mkdir(exist_ok=True)
    (folder / "requests.json").write_text(json.dumps(requests))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    script = Path(__file__).with_name("launched.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(script), str(folder / "requests.json")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    codes = [json.loads(file.read_text()) for file in sorted(folder.glob("codes-*.json"))]
    return done.returncode, done.stderr, codes


def told(stderr: str) -> list[str]:
    """The sentences of `tamt` itself, without those of torchrun."""
    return [line for line in stderr.splitlines() if line.startswith("tamt ")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 train rows of unlike length, which neither 4, 8 nor two processes divide."""
    text = "".join(f"{'the ' * (i % 3 + 1)}{('old', 'new')[i % 2]} dog sees a house\t{i % 2}\n" for i in range(27))
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    path.write_text("sentence\tlabel\n" + text)
    return path


def logged(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def train_words(model: Path, corpus: Path, output: str, options: str) -> list[str]:
    common = f"train --model {model} --corpus {corpus} --output {output} --max-length 16 --log-every 1 --check-every 2"
    return [*common.split(), *options.split()]


def tune_words(model: Path, rows: Path, output: str, options: str) -> list[str]:
    common = f"finetune --task classification --model {model} --train-file {rows} --dev-file {rows} --output {output}"
    return [*common.split(), *options.split(), "--epochs", "3", "--lr", "1e-3", "--eval-every", "3", "--log-every", "1"]


SEARCHES = {
    "mlm+kd": "--method tamt-mlm+kd --steps 6 --eval-blocks 13 --save-every 3",
    "imp": "--method imp --steps 20 --sparsity 0.2 --eval-blocks 13",
    "rand": "--method rand --eval-blocks 13",
}
FRESH_HEAD = "--method tamt-mlm --steps 2 --head-warmup-steps 101 --eval-blocks 13"
DROPOUT = "--method tamt-mlm+kd --batch-size 4 --steps 8 --save-every 3 --eval-blocks 13"


@pytest.fixture(scope="module")
def shared(
    still: Path,
    tiny_bert: Path,
    tiny_mpnet: Path,
    corpus: Path,
    rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Outcome]:
    """Every kind of run by two processes of batch 4, in one launch."""
    folder = tmp_path_factory.mktemp("shared")
    requests = [
        {"words": train_words(still, corpus, f"two-{name}", f"{options} --batch-size 4")}
        for name, options in SEARCHES.items()
    ]
    requests.append({"words": tune_words(still, rows, "two-tuned", "--batch-size 4")})
    requests.append({"words": ["report", "."]})
    requests.append({"words": ["train", "--method", "omp", "--output", "x"]})
    change = {"kind": "change", "step": 4, "rank": 1}
    changed = train_words(still, corpus, "changed", f"{SEARCHES['mlm+kd']} --batch-size 4 --check-every 1")
    requests.append({"words": changed, "fault": change})
    alone, broken, killed = (train_words(tiny_bert, corpus, name, DROPOUT) for name in ("alone", "broken", "killed"))
    requests += [{"words": alone}, {"words": broken, "fault": {"kind": "ask", "step": 4, "rank": 1}}]
    requests.append({"words": [*broken, "--resume"]})
    requests.append({"words": train_words(tiny_mpnet, corpus, "two-headed", f"{FRESH_HEAD} --batch-size 4")})
    requests.append({"words": killed, "fault": {"kind": "kill", "step": 5, "rank": 1}})
    return folder, launch(folder, requests)


def test_two_processes_are_one_of_the_larger_batch(shared, still: Path, corpus: Path, rows: Path, monkeypatch) -> None:
    folder, (_, stderr, codes) = shared
    monkeypatch.chdir(folder)
    assert [own[:11] for own in codes] == [[0, 0, 0, 0, 2, 2, 2, 0, 143, 0, 0]] * 2, stderr
    for name, options in SEARCHES.items():
        words = train_words(still, corpus, f"one-{name}", f"{options} --batch-size 8")
        assert main(words) == 0
        one, two = folder / f"one-{name}", folder / f"two-{name}"
        for figure in ("loss", "dev_mlm_loss", "dev_kd_loss"):
            assert logged(one, figure) == pytest.approx(logged(two, figure), rel=1e-5)
        masks = [load_masks(run / "mask.safetensors")[0] for run in (one, two)]
        assert all(torch.equal(mask, masks[1][matrix]) for matrix, mask in masks[0].items())
    words = tune_words(still, rows, "one-tuned", "--batch-size 8")
    assert main(words) == 0
    one, two = folder / "one-tuned", folder / "two-tuned"
    assert len(logged(one, "loss")) == 12, "4 steps an epoch, the last one of 3 rows"
    assert logged(one, "loss") == pytest.approx(logged(two, "loss"), rel=1e-4)
    found = [[json.loads(line) for line in (run / "predictions.jsonl").open()] for run in (one, two)]
    assert [row["id"] for row in found[1]] == list(range(27))
    assert [row["prediction"] for row in found[0]] == [row["prediction"] for row in found[1]]
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    # Attention does not change with a key's bias, so its gradient is rounding, which AdamW makes as large as any other.
    compared = {name: tensor for name, tensor in weights[0].items() if not name.endswith("key.bias")}
    assert all(torch.allclose(tensor, weights[1][name], atol=1e-4) for name, tensor in compared.items())


def test_two_processes_resume_bit_for_bit(shared) -> None:
    folder, _ = shared
    for name in ("loss", "changed", "dev_mlm_loss", "dev_kd_loss"):
        assert logged(folder / "alone", name) == logged(folder / "broken", name)
    heads = [load_file(folder / run / "head.safetensors") for run in ("alone", "broken")]
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())
    masks = [load_masks(folder / run / "mask.safetensors")[0] for run in ("alone", "broken")]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_two_processes_warm_up_one_head(shared, tiny_mpnet: Path, corpus: Path, monkeypatch) -> None:
    folder, _ = shared
    monkeypatch.chdir(folder)
    assert main(train_words(tiny_mpnet, corpus, "one-headed", f"{FRESH_HEAD} --batch-size 8")) == 0
    for figure in ("head_warmup", "head_warmup_dev"):
        one, two = (logged(folder / f"{count}-headed", figure) for count in ("one", "two"))
        assert len(one) >= 3
        assert one == pytest.approx(two, rel=1e-3)


def test_one_process_takes_the_steps_of_two(shared, still: Path, corpus: Path, monkeypatch) -> None:
    folder, _ = shared
    monkeypatch.chdir(folder)
    options = f"{SEARCHES['mlm+kd']} --batch-size 4 --processes-of-step 2"
    assert main(train_words(still, corpus, "as-two", options)) == 0
    assert logged(folder / "as-two", "loss") == pytest.approx(logged(folder / "two-mlm+kd", "loss"), rel=1e-5)


def test_why_a_command_ended_is_told_once(shared) -> None:
    folder, (_, stderr, _) = shared
    said = told(stderr)
    expected = [
        "tamt report: error: tamt report runs in one process, and 2 were started",
        "tamt train: error: --model is missing",
        "tamt train: error: after step 5 process 1 of 2 has another digest of what trains than the others",
        "tamt train: terminated; step",
        "tamt train: ",
    ]
    assert [line.startswith(start) for line, start in zip(said, expected, strict=True)] == [True] * 5, said
    # The survivor notices it, or torchrun ends it first.
    assert "another process of this run" in said[-1] or "another process has ended too" in said[-1]
    assert "tamt/cli.py" not in stderr, "the only traceback is torchrun's own"
    kept = sorted(path.name for path in (folder / "changed" / "checkpoints").iterdir())
    assert kept == ["step-3.checkpoint"], "where both were the same"


def test_what_is_left_of_a_killed_process_goes_on_in_one(shared, tiny_bert: Path, corpus: Path, monkeypatch) -> None:
    folder, (code, _, _) = shared
    assert code != 0
    monkeypatch.chdir(folder)
    words = train_words(tiny_bert, corpus, "killed", DROPOUT)
    assert [read_checkpoint(path)["step"] for path in Path("killed/checkpoints").glob("step-*.checkpoint")] == [3]
    assert main([*words, "--resume"]) == 0
    assert len(logged(folder / "killed", "loss")) == 8
    assert "processes_of_step: 2" in Path("killed/config.yaml").read_text()


@pytest.mark.skipif("TAMT_SOAK" not in os.environ, reason="a minute of two launches")
@pytest.mark.parametrize("kind", ["kill", "terminate"])
def test_a_run_that_ends_early_goes_on_with_another_number_of_processes(
    kind, tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch
) -> None:
    options = "--method tamt-mlm --steps 12 --batch-size 4 --save-every 2 --eval-blocks 9"
    words = train_words(tiny_bert, corpus, "run", options)
    fault = {"kind": kind, "step": 5, "rank": 1}
    started = time.monotonic()
    code, stderr, codes = launch(tmp_path, [{"words": words, "fault": fault}])
    assert code != 0
    assert time.monotonic() - started < 60
    assert "tamt/cli.py" not in stderr
    assert len(told(stderr)) == 1, stderr
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*.checkpoint"))
    newest = max(read_checkpoint(path)["step"] for path in checkpoints)
    if kind == "kill":
        assert "another process of this run ended" in told(stderr)[0]
        assert codes == [[2]], "of the process that was left"
        assert newest == 4
    else:
        assert f"step {newest} is saved" in told(stderr)[0]
        assert codes == [[128 + signal.SIGTERM]] * 2
        assert newest >= 5
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--resume"]) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 13))
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "processes_of_step: 2" in config


def test_the_digest_changes_with_any_entry() -> None:
    tensors = [torch.zeros(7, 3), torch.arange(5, dtype=torch.int64)]
    seen = {processes.digest(tensors)}
    for tensor in tensors:
        for i in range(tensor.numel()):
            tensor.view(-1)[i] += 1
            seen.add(processes.digest(tensors))
    assert len(seen) == 1 + 21 + 5


@pytest.mark.parametrize(("samples", "count", "parts"), [(16, 2, 1), (16, 3, 1), (7, 2, 2), (1, 2, 1), (16, 1, 2)])
def test_shares_are_all_samples_once(samples, count, parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: count)
    taken = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        mine = processes.share(samples, parts)
        assert len(mine) == parts
        taken += [i for part in mine for i in part]
    assert taken == list(range(samples))
