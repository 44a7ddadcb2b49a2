"""What the public functions return: the rows that the command line prints, as objects."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamt.runtime.notebook import table


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """The result of `tamt.finetune`.

    Attributes:
        rows: the rows of `results.json`, as the command line prints them: one, that of the best learning rate.
    """

    rows: list[dict[str, Any]]
    _working_folder: Path = field(default_factory=Path.cwd, init=False, compare=False)

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._row["task"]

    @property
    def metric(self) -> str:
        """The metric that `score` is of, such as "accuracy"."""
        return self._row["metric"]

    @property
    def score(self) -> float | None:
        """The best dev score of the evaluations, or its mean over the seeds; None where the metric is undefined."""
        return self._row["score"]

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics on the dev rows at the evaluation with the best score, by name."""
        return dict(self._row["dev"])

    @property
    def output(self) -> Path:
        """The folder of the run, or of all runs of several seeds or learning rates, as an absolute path."""
        return self._working_folder / self._row["output"]

    @property
    def run(self) -> Path:
        """The folder of the run with the best score; `tamt.evaluate` opens it."""
        folder, row = self.output, self._row
        if "rates" in row:
            folder /= f"lr-{row['lr']:g}"
        if row.get("seeds"):
            score_of = dict(zip(row["seeds"], row["scores"], strict=True))
            best = max(score_of, key=lambda seed: float("-inf") if score_of[seed] is None else score_of[seed])
            folder /= f"seed-{best}"
        return folder

    @property
    def model(self) -> Path:
        """The folder of the fine-tuned model, in Hugging Face form, for `from_pretrained`."""
        return self.run / "model"

    @property
    def _row(self) -> dict[str, Any]:
        return self.rows[0]

    def _described(self) -> dict[str, str]:
        row = self._row
        spread = "" if row.get("score_std") is None else f" ± {row['score_std']:.4f}"
        described = {"task": self.task, self.metric: number(self.score) + spread}
        if row.get("seeds"):
            described["seeds"] = ", ".join(map(str, row["seeds"]))
        if row["best_step"] is not None:
            described["step"] = f"{row['best_step']:,} of {row['final_step']:,}"
        return described | {"lr": f"{row['lr']:g}", "sparsity": f"{row['sparsity']:.1%}", "model": str(self.model)}

    def __repr__(self) -> str:
        return f"FinetuneResult({', '.join(f'{name} {text}' for name, text in self._described().items())})"

    def _repr_html_(self) -> str:
        return table(self._described())


@dataclass(frozen=True, repr=False)
class EvaluateResult:
    """The result of `tamt.evaluate`: losses on text, or scores on a task.

    Attributes:
        rows: the rows that the command line prints: one.
    """

    rows: list[dict[str, Any]]

    @property
    def metrics(self) -> dict[str, float | None]:
        """On text `mlm_loss` (nats per token; None without an MLM head) and `kd_loss`; else the task's metrics."""
        row = self.rows[0]
        return dict(row["dev"]) if "dev" in row else {name: row[name] for name in ("mlm_loss", "kd_loss")}

    @property
    def metric(self) -> str | None:
        """The task's first metric; None on text."""
        return self.rows[0].get("metric")

    @property
    def score(self) -> float | None:
        """The value of `metric`; None on text, or where it is undefined."""
        return self.rows[0].get("score")

    def _described(self) -> dict[str, str]:
        row = self.rows[0]
        described: dict[str, str] = {name: str(row[name]) for name in ("model", "task") if name in row}
        if "sparsity" in row:
            described["sparsity"] = f"{row['sparsity']:.1%}"
        return described | {name: number(value) for name, value in self.metrics.items()}

    def __repr__(self) -> str:
        return f"EvaluateResult({', '.join(f'{name} {text}' for name, text in self._described().items())})"

    def _repr_html_(self) -> str:
        return table(self._described())


def number(value: float | None) -> str:
    """Four digits, or "undefined"."""
    return "undefined" if value is None else f"{value:.4f}"
