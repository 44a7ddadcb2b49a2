"""Does the start of mask training still matter at the paper's length? A study for one GPU, in eight minutes.

    python -m benchmarks.gpu_study prepare FOLDER --data DATA    # where the package index and the data are: 57 MB
    python -m benchmarks.gpu_study run FOLDER OUT                # on the machine with the GPU; needs no network

Mask training of the demo's model by TAMT-KD from two-valued, magnitude and activation scores, for 150 to 20,000 steps
of 16 × 512 tokens at 70 and 90 % sparsity, and fine-tunings of the masks. Each result is a line of
``OUT/results.jsonl`` as soon as it is known. A run that would not end within the time is left out; that is a line too.
``--steps``, ``--scores`` and ``--sparsities`` choose a part: the model is small, and parts in processes of their own
share the GPU well.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import machine
from tamt.runtime.errors import UserError

SECONDS = 470
LENGTHS = (150, 1_000, 5_000, 20_000)
SPARSITIES = (0.7, 0.9)
SCORES = ("activation", "two-valued", "magnitude")
TASKS: dict[str, dict[str, Any]] = {
    "cola": {"data_dir": "glue/CoLA"},
    "rte": {"data_dir": "glue/RTE"},
    "stsb": {"data_dir": "glue/STS-B"},
    "sst2": {"data_dir": "glue/SST-2", "train_samples": 8_000},
}
TEXTS = ("text/enwiki-sample.txt", "text/us-speeches.txt", "wikitext-103/valid.txt")
RATES = (1e-4, 3e-4)
ROW_TOKENS = 64
RESULTS = "results.jsonl"


@dataclass
class Clock:
    """The time that is left, and how long runs of a kind have taken per unit of work."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)
    pace: dict[str, float] = field(default_factory=dict)

    def allows(self, kind: str, work: float) -> bool:
        """Whether a run would end in time, by the pace of the runs before; the first of a kind is tried."""
        left = self.seconds - (time.monotonic() - self.begun)
        return left > 0 and self.pace.get(kind, 0.0) * work < left

    def timed(self, kind: str, work: float, run: Callable[[], dict]) -> dict:
        """Run, and remember the pace."""
        begun = time.monotonic()
        result = run()
        self.pace[kind] = (time.monotonic() - begun) / work
        return result


def prepare(folder: Path, data: Path) -> None:
    """Write the model's weights in fp16, its tokenizer, the texts and the rows into a folder that can travel."""
    import torch
    from transformers import AutoModel

    from tamt.data import assets as demo

    source = demo.model_folder("demo")
    shutil.copytree(source, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    AutoModel.from_pretrained(source, dtype=torch.float16).save_pretrained(folder / "model")
    for name in (*TEXTS, *(f"{task['data_dir']}/{split}.tsv" for task in TASKS.values() for split in ("train", "dev"))):
        if not (data / name).is_file():
            raise UserError(f"{data / name} is missing; give the folder of the data with --data")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / name, folder / name)


@dataclass(frozen=True)
class Part:
    """What of the study is done, all of it by default."""

    lengths: Sequence[int] = LENGTHS
    sparsities: Sequence[float] = SPARSITIES
    scores: Sequence[str] = SCORES

    def runs(self) -> Iterator[tuple[str, int, float]]:
        """Scores, steps and sparsity of each search: the short ones first, the paper's length at 70 % before 90."""
        for steps, sparsity, scores in product(self.lengths, self.sparsities, self.scores):
            yield scores, steps, sparsity


def run(folder: Path, output: Path, part: Part | None = None, seconds: float = SECONDS, **options: Any) -> None:
    """Search and fine-tune until the time is up; `options` are those of `tamt train`, for a smaller study."""
    from tamt.finetuning.finetune import finetune
    from tamt.search.train import train

    output.mkdir(parents=True, exist_ok=True)
    clock = Clock(seconds)
    with (output / RESULTS).open("a", encoding="utf-8") as file:

        def write(**row: Any) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)

        write(machine=machine.describe(machine.device(options.pop("device", "cuda"))))
        search: dict[str, Any] = {
            "corpus": [str(folder / name) for name in TEXTS[:2]],
            "dev_corpus": [str(folder / TEXTS[2])],
        }
        search |= {"batch_size": 16, "max_length": 512, "save_every": 10**6, **options}
        found = []
        for scores, steps, sparsity in (part or Part()).runs():
            name = f"{scores}-{steps}-{sparsity:g}"
            if not clock.allows("search", steps):
                write(left_out=name)
                continue
            asked = {"scores": scores, "steps": steps, "sparsity": sparsity, "output": output / name}
            ask = {"method": "tamt-kd", "model": str(folder / "model"), **search, **asked}
            result = clock.timed("search", steps, lambda ask=ask: train(**ask))  # type: ignore[misc]
            write(search=name, **result["results"][-1])
            found.append((name, sparsity))
        # After all searches: one fine-tuning takes as long as several short searches.
        for (name, sparsity), (task, own) in product(found, TASKS.items()):
            if sparsity != SPARSITIES[0]:
                continue
            settings: dict[str, Any] = {"task": task, "model": str(folder / "model"), "lr": list(RATES)}
            settings |= {**own, "max_length": ROW_TOKENS, "data_dir": folder / own["data_dir"], "eval_every": 10**6}
            settings |= {"mask": output / name / "mask.safetensors", "output": output / f"{name}-{task}"}
            if clock.allows(task, 1):
                scored = clock.timed(task, 1, lambda settings=settings: finetune(**settings))  # type: ignore[misc]
                write(fine_tuning=name, **scored["results"][-1])
                shutil.rmtree(settings["output"], ignore_errors=True)  # its models are not asked for
            else:
                write(left_out=f"{name}-{task}")


def main(arguments: list[str]) -> int:
    """Run a command line; return 0, or 2 where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_study")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("prepare", "run"):
        commands.add_parser(command).add_argument("folder", type=Path, help="what travels to the GPU")
    commands.choices["prepare"].add_argument("--data", type=Path, required=True, help="glue/, text/, wikitext-103/")
    of_run = commands.choices["run"]
    of_run.add_argument("output", type=Path, help="folder of the results")
    of_run.add_argument("--seconds", type=float, default=SECONDS, help=f"the time there is (default: {SECONDS})")
    of_run.add_argument("--steps", type=int, nargs="+", default=LENGTHS, choices=LENGTHS)
    of_run.add_argument("--scores", nargs="+", default=SCORES, choices=SCORES)
    of_run.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES, choices=SPARSITIES)
    options = parser.parse_args(arguments)
    try:
        if options.command == "prepare":
            prepare(options.folder, options.data)
        else:
            part = Part(options.steps, options.sparsities, options.scores)
            run(options.folder, options.output, part, options.seconds)
    except UserError as error:
        print(f"gpu-study: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
