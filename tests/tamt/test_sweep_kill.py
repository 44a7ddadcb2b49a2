"""A sweep that is killed, with SIGKILL, ends with the same results as one left alone."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import small_studies
import torch
import yaml

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime"}
KILLS = 8


def killed_sweep(study: str, output: str, kill_at: int, events: Any) -> None:
    """Run the study, and be killed when so many files and folders of it have been opened, made, renamed or removed."""
    from tamt.cli import main

    torch.set_num_threads(1)

    def count(event: str, arguments: tuple) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(output):
            events.value += 1
            if events.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sys.exit(main(["sweep", study, "--output", output]))


@pytest.fixture
def study(tmp_path: Path, tiny_bert: Path, corpus: Path) -> Path:
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    labels = torch.randint(2, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [f"the {'big' if label else 'small'} cat sees a dog\t{label}\n" for label in labels]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    content = {
        "models": str(tiny_bert),
        "methods": ["tamt-mlm", "imp"],
        "sparsities": [0.3],
        "corpus": str(corpus),
        "dev_corpus": str(corpus),
        "data_dir": str(tmp_path / "glue"),
        "search": {
            "max_length": 16,
            "batch_size": 2,
            "steps": 12,
            "save_at": [6],
            "save_every": 2,
            "eval_blocks": 4,
            "lr": 3e-3,
        },
        "tasks": "sst2",
        "finetune": {"batch_size": 8, "epochs": 2, "save_every": 2, "lr": 1e-3},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def test_a_killed_sweep_ends_with_the_same_results(study: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # imports torch once for all the sweeps
    context.set_forkserver_preload(["tamt.cli", "tamt.sweep.sweep"])

    def run(output: Path, kill_at: int = 0) -> tuple[int | None, int]:
        """The exit code and how many events there were."""
        events = context.Value("q", 0)
        process = context.Process(target=killed_sweep, args=(str(study), str(output), kill_at, events))
        process.start()
        process.join()
        return process.exitcode, events.value

    code, events = run(tmp_path / "alone")
    assert code == 0
    alone = small_studies.table(tmp_path / "alone")
    assert {row["kind"] for row in alone} == {"mask", "finetune"}
    assert len(alone) == 4 + 4
    assert len({row["mlm_loss"] for row in alone}) > 3
    moments = random.Random(0)
    for _ in range(KILLS):
        code, _ = run(tmp_path / "killed", kill_at=moments.randint(1, events // 4))
        if code == 0:  # all is done
            break
        assert code == -signal.SIGKILL
    else:
        assert run(tmp_path / "killed")[0] == 0
    assert small_studies.table(tmp_path / "killed") == alone
