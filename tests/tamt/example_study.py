"""A study without training: run folders as `tamt sweep` leaves them, with numbers that look like the paper's.

`PYTHONPATH=. python tests/tamt/example_study.py DIR` writes one to look at.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from tamt.masks.file import MaskInfo, digest_of, load_packed, save_masks
from tamt.masks.masking import magnitude_masks, random_masks, top_masks
from tamt.methods import is_one_shot
from tamt.training.run_folder import write_config

LAYERS = 4
TASKS = {"cola": ("matthews", 0.55, 8551), "sst2": ("accuracy", 0.92, 67349), "stsb": ("pearson", 0.88, 5749)}
GAIN = {"tamt-mlm": 0.45, "tamt-kd": 0.55, "imp": 0.3, "wanda": 0.2, "omp": 0.0, "rand": -1.0}
STEPS = 200
SAVE_AT = (50, 100)


def weights(seed: int) -> dict[str, torch.Tensor]:
    """The prunable matrices of a small encoder."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embeddings.word_embeddings.weight": (50, 16)}
    for layer in range(LAYERS):
        stem = f"encoder.layer.{layer}."
        for kind in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"{stem}{kind}.weight"] = (16, 16)
        shapes[f"{stem}intermediate.dense.weight"] = (32, 16)
        shapes[f"{stem}output.dense.weight"] = (16, 32)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class ExampleStudy:
    """Writes run folders below `folder`."""

    def __init__(self, folder: Path, models: tuple[str, ...] = ("bert-base-uncased",)) -> None:
        self.folder = folder
        self.generator = torch.Generator().manual_seed(0)
        self.weights = {model: weights(number) for number, model in enumerate(models)}

    def noise(self, scale: float) -> float:
        """A normal number."""
        return float(torch.randn((), generator=self.generator)) * scale

    def quality(self, method: str, initial: str | None, sparsity: float, progress: float) -> float:
        """How much a subnetwork keeps of the full model, 0 to 1."""
        gain = GAIN[method] * (1 - math.exp(-4 * progress)) if not is_one_shot(method) else GAIN[method]
        if initial == "random":
            gain = GAIN["rand"] + 1.1 * (1 - math.exp(-2 * progress))
        damage = sparsity**3 * (1 - 0.7 * gain)
        return max(0.0, 1 - damage)

    def losses(self, quality: float, method: str) -> dict[str, float]:
        """MLM and KD dev loss of a subnetwork, lower for the method that trains on it."""
        mlm = 1.8 + 5 * (1 - quality) - 0.3 * (method == "tamt-mlm") + self.noise(0.05)
        kd = 0.75 * (1 - quality) - 0.04 * (method == "tamt-kd") + self.noise(0.005)
        return {"mlm_loss": mlm, "kd_loss": max(0.01, kd)}

    def write(self, run: str, settings: dict[str, Any], rows: list[dict], metrics: list[dict] = ()) -> Path:
        """A finished run folder."""
        path = self.folder / run
        write_config(path, settings)
        (path / "results.json").write_text(json.dumps({"results": rows}))
        if metrics:
            (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return path

    def masks(self, model: str, method: str, initial: str | None, sparsity: float, seed: int, progress: float) -> dict:
        """Masks that drift from OMP as a search goes on."""
        start = self.weights[model]
        if method == "omp":
            return magnitude_masks(start, sparsity)
        if method == "rand" or initial == "random":
            return random_masks(start, sparsity, seed)
        drift = {"tamt-mlm": 0.5, "tamt-kd": 0.25, "imp": 0.4, "wanda": 0.3}[method] * progress
        other = weights(100 + seed + 10 * len(method))
        scores = {
            name: weight.abs() + drift * (1 + i / len(start)) * other[name]
            for i, (name, weight) in enumerate(start.items())
        }
        return top_masks(scores, sparsity)

    def search(
        self,
        model: str,
        method: str,
        sparsity: float,
        seed: int = 0,
        initial: str | None = "omp",
        steps: int = STEPS,
        save_at: tuple[int, ...] = (),
        **settings: Any,
    ) -> list[tuple[str, dict]]:
        """A finished search; returns its masks, each with what a fine-tuning is to know of it."""
        start = "_random" if initial == "random" else ""
        run = f"search/{method}_{Path(model).name}_s{sparsity}{start}_steps{steps}_seed{seed}"
        one_shot = is_one_shot(method)
        last = 0 if one_shot else steps
        path = self.folder / run
        found, rows, metrics = [], [], []
        for step in sorted({*save_at, last}):
            progress = step / STEPS
            quality = self.quality(method, initial, sparsity, progress)
            losses = self.losses(quality, method)
            name = "mask.safetensors" if step == last else f"masks/step-{step}.safetensors"
            info = MaskInfo(model, method, sparsity, seed, step)
            save_masks(path / name, self.masks(model, method, initial, sparsity, seed, progress), info)
            seconds = 0.5 if one_shot else 0.6 * step
            metrics.append({"step": step, "loss": 1.0, "changed": 0.1 * progress, "seconds": seconds})
            metrics.append({"step": step, **{f"dev_{key}": value for key, value in losses.items()}})
            row = {"method": method, "model": model, "sparsity": sparsity, "seed": seed, "step": step, **losses}
            if step == last:
                rows.append({**row, "seconds": seconds, "mask": str(path / name)})
            digest = digest_of(load_packed(path / name))
            found.append((str(path / name), {**row, "quality": quality, "digest": digest}))
        config = {"method": method, "model": model, "sparsity": sparsity, "seed": seed, "initial": initial}
        config |= {"steps": steps, "corpus": ["demo"], "max_length": 128, "save_at": list(save_at), **settings}
        self.write(run, config, rows, metrics)
        return found

    def finetune(
        self,
        model: str,
        task: str,
        mask: tuple[str, dict] | None,
        seed: int,
        samples: int | None = None,
        **settings: Any,
    ) -> Path:
        """A finished fine-tuning of a mask that `search` gave, or of the full model."""
        metric, full, rows_of_task = TASKS.get(task, ("accuracy", 0.8, 1000))
        file, row = mask or (None, {"method": "full", "sparsity": 0.0, "quality": 1.0})
        share = 1 if samples is None else math.log(samples) / math.log(rows_of_task)
        score = full * share * (0.25 + 0.75 * row["quality"]) + self.noise(0.006)
        name = "_".join(Path(file).with_suffix("").parts[-2:]) if file else "full"
        if file and "masks" in Path(file).parts:
            name = "_".join(Path(file).with_suffix("").parts[-3::2])
        rate = f"_lr{settings['lr']:g}" if "lr" in settings else ""
        run = f"finetune/{task}_{Path(model).name}_{name}_n{samples}{rate}_seed{seed}"
        config = {"task": task, "model": model, "mask": file, "seed": seed, "train_samples": samples, **settings}
        result = {
            "task": task,
            "model": model,
            "method": row["method"],
            "sparsity": row["sparsity"],
            "mask": file,
            "mask_seed": row.get("seed"),
            "mask_step": row.get("step"),
            "mask_digest": row.get("digest"),
            "metric": metric,
            "score": score,
            "seed": seed,
            "train_samples": samples or rows_of_task,
            "seconds": 60.0,
        }
        return self.write(run, config, [result])

    def bench(self, model: str, mask: tuple[str, dict] | None, cpu: str = "a CPU", **settings: Any) -> Path:
        """A measurement of the time of a mask that `search` gave, or of the full model, at 8 and 128 tokens."""
        file, row = mask or (None, {"sparsity": 0.0})
        name = "_".join(Path(file).with_suffix("").parts[-2:]) if file else "full"
        sparse = row["sparsity"] > 0.6
        rows = [
            {
                "model": model,
                "precision": "fp32",
                "batch_size": 1,
                "threads": 1,
                "tokens": tokens,
                "fastest": "sparse" if sparse else "dense",
                "fastest_ms": 0.2
                * tokens**0.8
                * (1.3 - row["sparsity"] if sparse else 1)
                * (1 + abs(self.noise(0.02))),
                "megabytes": 400 * (1.03 - row["sparsity"] if sparse else 1),
                "cpu": cpu,
            }
            for tokens in (8, 128)
        ]
        return self.write(f"bench/{Path(model).name}_{name}", {"model": model, "mask": file, **settings}, rows)


def write_example(
    folder: Path,
    models: tuple[str, ...] = ("bert-base-uncased", "roberta-base"),
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.9),
    seeds: int = 3,
    tasks: tuple[str, ...] = tuple(TASKS),
) -> ExampleStudy:
    """A study with the runs for every figure."""
    study = ExampleStudy(folder, models)
    for number, model in enumerate(models):
        tickets = []
        for sparsity in sparsities:
            tickets += study.search(model, "omp", sparsity)
            for seed in range(seeds):
                tickets += study.search(model, "rand", sparsity, seed)
                if number == 0:
                    for method in ("tamt-mlm", "tamt-kd"):
                        save_at = SAVE_AT if sparsity == 0.7 else ()
                        tickets += study.search(model, method, sparsity, seed, save_at=save_at)
                    tickets += study.search(model, "imp", sparsity, seed)
        if number == 0:
            tickets += study.search(model, "tamt-kd", 0.7, 0, initial="random", save_at=SAVE_AT)
            for steps in (50, 100):
                tickets += study.search(model, "imp", 0.7, 0, steps=steps)
        for task in tasks:
            for seed in range(seeds):
                study.finetune(model, task, None, seed)
                for ticket in tickets:
                    study.finetune(model, task, ticket, seed)
        for ticket in [None, *(t for t in tickets if t[0].endswith("mask.safetensors"))]:
            study.bench(model, ticket)
        if number == 0:
            for samples in (1000, 3000):
                for seed in range(seeds):
                    for ticket in [None, *[t for t in tickets if t[0].endswith("mask.safetensors") and "0.7" in t[0]]]:
                        study.finetune(model, tasks[-1], ticket, seed, samples)
        losses = {"mlm_loss": 1.7, "kd_loss": 0.0}
        row = {"model": model, "method": "full", "sparsity": 0.0, "mask": None, **losses, "seconds": 1.0}
        study.write(f"evaluate/full_{model}", {"model": model, "corpus": ["demo"], "max_length": 128}, [row])
    return study


if __name__ == "__main__":
    write_example(Path(sys.argv[1]))
