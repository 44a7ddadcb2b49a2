"""The benchmarks of whole steps run, and their contenders do the same work; how fast anything is, is not asserted."""

import csv
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.__main__ import main
from benchmarks.step import memory, targets
from benchmarks.step.contenders import (
    CONTENDERS,
    DENSE,
    NEEDED,
    NEEDS_BF16_CPU,
    NEEDS_COMPILER,
    NEEDS_GPU,
    ORDINARY,
    OURS,
    Setting,
)
from tamt.training.precision import cpu_has_bf16

TINY = Setting(torch.device("cpu"), "tiny", 2, 16)


def test_a_quick_run(tmp_path, capsys):
    arguments = ["step", "--device", "cpu", "--quick", "--seconds", "0", "--output", str(tmp_path)]
    assert main([*arguments, "--objective", "mlm"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"step.csv", "step.md", "step.png"}
    with (tmp_path / "step.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["contender"] for row in rows} == set(CONTENDERS["mlm"]) - NEEDS_COMPILER - NEEDS_GPU - (
        set() if cpu_has_bf16() else NEEDS_BF16_CPU
    )
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert float(row["tokens_per_s"]) == pytest.approx(32e3 / float(row["median_ms"]))
    shown = capsys.readouterr().out
    assert "all of MaskAdamW.step" in shown


@pytest.mark.parametrize("objective", [name for name in CONTENDERS if name != "mlm"])  # which the quick run takes
def test_every_contender_takes_steps(objective):
    for make in (make for name, make in CONTENDERS[objective].items() if name not in NEEDS_GPU):
        step = make(TINY._replace(accumulation=2))
        step()
        step()


@pytest.mark.parametrize("name", [name for name in CONTENDERS["mlm"] if name in NEEDS_BF16_CPU])
def test_contenders_in_bf16_take_steps(name):
    step = CONTENDERS["mlm"][name](TINY)
    step()
    step()


class Waits(TorchDispatchMode):
    """Notes the operations that wait for a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += [name for name in self.NAMES if function.__name__.split(".")[0].strip("_") == name.strip("_")]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", CONTENDERS)
def test_no_step_of_ours_waits_for_the_device(objective):
    step = CONTENDERS[objective][OURS](TINY)
    step()
    with Waits() as waits:
        step()
        assert not waits.seen
        torch.ones(()).item()  # is seen
    assert waits.seen == ["_local_scalar_dense"]


def test_the_memory_of_a_contender(capsys):
    memory.main(json.dumps(["cpu", *TINY[1:], "kd", OURS]))
    assert json.loads(capsys.readouterr().out) > 0


def test_the_search_table(tmp_path, capsys):
    assert main(["search", "--device", "cpu", "--quick", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "search.md").read_text(encoding="utf-8")
    assert all(f"| {method} " in table for method in ("IMP", "TAMT-MLM", "TAMT-KD"))
    assert "extrapolated" in table


def test_targets_name_what_is_measured():
    for target in targets.TIMES + targets.PEAKS:
        assert {target.ours, target.against} <= set(CONTENDERS[target.objective])


def test_verdicts():
    medians = {("mlm", OURS): 5.0, ("mlm", ORDINARY): 10.0, ("fine-tuning", OURS): 2.0, ("fine-tuning", DENSE): 1.0}
    lines = targets.verdicts(TINY, medians, {("mlm", OURS): 8, ("mlm", ORDINARY): 10}, 0.2).splitlines()
    told = {tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[-2].strip() for line in lines}
    assert told["time, mlm", ORDINARY] == "yes"
    assert told["time, fine-tuning", DENSE] == "no"
    assert told["peak memory, mlm", ORDINARY] == "no"
    assert told["MaskAdamW.step, mlm", "the whole step"] == "no"
    assert told["time, kd", NEEDED] == "–"


def test_verdicts_on_a_gpu():
    medians = {("mlm", OURS): 9.0, ("mlm", ORDINARY): 10.0, ("kd", OURS): 9.0, ("kd", NEEDED): 9.0}
    lines = targets.verdicts(TINY._replace(device=torch.device("cuda")), medians, {}, None).splitlines()
    told = {tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[-2].strip() for line in lines}
    assert told["time, mlm", ORDINARY] == "no"
    assert told["time, kd", NEEDED] == "yes"
    assert told["22 k steps, mlm, extrapolated", "–"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4"], "--batch 4 is not blocks x tokens"),
        (["--batch", "0x128"], "--batch 0x128 is not blocks x tokens"),
        (["--batch", "4x128", "--accumulation", "3"], "--accumulation 3 does not divide the 4 blocks"),
        (["--batch", "1x513"], "--batch 1x513 has 513 tokens a block, but bert-base takes 512 at most"),
        (["--batch", "1x513", "--model", "roberta-base"], "roberta-base takes 512 at most"),
        (["--seconds", "-1"], "--seconds is -1.0"),
        (["--model", "gpt"], "invalid choice: 'gpt'"),
    ],
)
def test_a_bad_request_is_one_sentence(capsys, arguments, message):
    assert main(["step", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
