"""Runs that are killed, terminated or refused disk space at any moment end as one left alone: bit for bit.

With TAMT_SOAK=1 (`make soak`) at thirty times as many moments.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, Server, moments
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tamt.finetuning.loop import FORMER_MODEL, restore_model
from tamt.masks.file import load_packed
from tamt.runtime.termination import EXIT_CODE
from tamt.training.run_folder import RunFolder

SOAK = "TAMT_SOAK" in os.environ
CHAINS = 30 if SOAK else 1
FAULTS = 4 if SOAK else 2
"""That befall one run, one after the other."""
KINDS = ["kill", "time", "terminate", "full", "small"]
RUNS = ["masks", "thresholds", "imp", "finetune"]
FEW = [*(("masks", kind) for kind in KINDS), ("finetune", "kill"), ("imp", "kill"), ("thresholds", "kill")]
TRIED = [(run, kind) for run in RUNS for kind in KINDS] if SOAK else FEW


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def commands(tiny_bert: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A search of masks, IMP with the warm-up of a fresh head, and a fine-tuning, all with dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    AutoModel.from_pretrained(tiny_bert).save_pretrained(folder / "headless")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder / "headless")
    text = "".join(f"the {('old', 'new')[i % 2]} dog sees a house\t{i % 2}\n" for i in range(24))
    (folder / "rows.tsv").write_text("sentence\tlabel\n" + text)
    train = f"train --output run --corpus {corpus} --max-length 16 --batch-size 4 --log-every 2 --eval-blocks 4"
    search = f"{train} --model {tiny_bert} --method tamt-mlm+kd --steps 12 --save-every 3 --eval-every 5 --save-at 4,9"
    rows = f"--train-file {folder}/rows.tsv --dev-file {folder}/rows.tsv"
    return {
        "masks": search.split(),
        "thresholds": [*search.split(), "--threshold-every", "4"],
        "imp": f"{train} --model {folder}/headless --method imp --head-warmup-steps 4 --steps 40 --sparsity 0.4 "
        "--save-every 3".split(),
        "finetune": f"finetune --output run --task classification --model {tiny_bert} {rows} --epochs 4 --batch-size 8 "
        "--lr 1e-3 --eval-every 3 --save-every 2 --log-every 1".split(),
    }


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished run says and holds, but how long it took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())["results"]
    masks = {}
    for path in run.rglob("*.safetensors"):
        if path.name in {"head.safetensors", "model.safetensors"}:
            masks[str(path.relative_to(run))] = {name: tensor.tolist() for name, tensor in load_file(path).items()}
        else:
            packed = load_packed(path)
            bits = {name: array.tolist() for name, array in packed.bits.items()}
            masks[str(path.relative_to(run))] = {"info": packed.info, **bits}
    rows = [row for row in [*lines, *results] if "resumed" not in row]
    timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    predictions = {path.name: path.read_text() for path in run.glob("predictions*.jsonl")}
    return {"said": timeless, "held": masks, **predictions}


@pytest.fixture(scope="module")
def alone(server: Server, commands: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory):
    """What a command answers and leaves when nothing befalls it; run once each."""
    done: dict[str, tuple[dict, dict]] = {}

    def get(name: str) -> tuple[dict, dict]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            answer = server.run(commands[name], folder, Fault())
            assert answer["code"] == 0, answer["stderr"]
            done[name] = answer, outcome(folder / "run")
        return done[name]

    return get


@pytest.mark.parametrize("seed", range(CHAINS))
@pytest.mark.parametrize(("name", "kind"), TRIED)
def test_a_run_ends_as_one_left_alone(name, kind, seed, server, commands, alone, tmp_path: Path) -> None:
    answer, expected = alone(name)
    struck = 0
    for number in moments(seed, FAULTS, answer["operations"] // 2):
        moment = {"time": answer["seconds"] * number / answer["operations"], "small": 2_000 * (number + 1)}
        fault = Fault(kind, moment.get(kind, number))
        faulty = server.run([*commands[name], "--resume"], tmp_path, fault)
        code, said = faulty["code"], faulty["stderr"].splitlines()[-1:]
        if code == 0:
            break
        struck += 1
        assert "Traceback" not in faulty["stderr"]
        if kind in {"kill", "time"}:
            assert code == -9
        elif kind == "terminate":
            assert (code, said[0].startswith("tamt")) == (EXIT_CODE, True)
            assert "--resume" in said[0]
            if saved := re.search(r"step (\d+) is saved", said[0]):
                assert (tmp_path / "run" / "checkpoints" / f"step-{saved[1]}.checkpoint").is_file()
        else:
            assert (code, "cannot be written" in said[0]) == (2, True), faulty["stderr"]
    if code != 0:
        final = server.run([*commands[name], "--resume"], tmp_path, Fault())
        assert final["code"] == 0, final["stderr"]
    assert struck > 0
    assert outcome(tmp_path / "run") == expected
    assert not list((tmp_path / "run").rglob(".*")), "nothing is left over"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_model_that_a_run_goes_back_to_is_there_again(replaced: bool, tmp_path: Path) -> None:
    former = tmp_path / f"{FORMER_MODEL}4"
    former.mkdir()
    (former / "config.json").write_text("of step 4")
    (former / "predictions.jsonl").write_text("of step 4")
    if replaced:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("of step 8")
    with RunFolder(tmp_path / "none", {}) as folder:
        folder.path = tmp_path
        restore_model(folder, 4)
        former.mkdir()
        restore_model(folder, 8)  # the run goes on from the one that replaced it
    assert (tmp_path / "model" / "config.json").read_text() == "of step 4"
    assert (tmp_path / "predictions.jsonl").read_text() == "of step 4"
    assert not former.exists()
