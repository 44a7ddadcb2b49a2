"""What a report is made of: subnetworks, their losses, their fine-tunings, and what was left out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TicketRecord:
    """What is known of a subnetwork: the mask that a search ended with, or one that it saved on the way.

    Attributes:
        model: label of the model.
        method: name of the method.
        variant: what distinguishes the search from others by the method, see `tamt.report.variants`.
        sparsity: share of zeros in each matrix, between 0 and 1.
        seed: seed of the search; None for OMP, which has none.
        steps: length of the search: the optimizer steps over which the learning rate decays; 0 for one-shot methods.
        step: optimizer step after which the mask was saved.
        final: whether the search ended with this mask.
        mlm_loss: MLM loss on the dev text before fine-tuning, in nats.
        kd_loss: KD loss on the dev text before fine-tuning.
        seconds: search time up to this mask; None if the search was resumed, because that time does not compare.
        seconds_per_step: time of one optimizer step, dev evaluations included, head warm-up not; None if not known.
        mask: mask file, which may have been deleted since; None if the search is not below the folder of the report.
        run: folder of the search, relative to that of the study; empty if it is not below it.
        file: mask file as fine-tunings name it, if the search is not below the folder; else None.
        digest: of the mask's bits, see `tamt.masks.file.digest_of`; None if not known.
    """

    model: str
    method: str
    variant: str | None
    sparsity: float
    seed: int | None
    steps: int
    step: int
    final: bool
    mlm_loss: float | None = None
    kd_loss: float | None = None
    seconds: float | None = None
    seconds_per_step: float | None = None
    mask: Path | None = None
    run: str = ""
    file: str | None = None
    digest: str | None = None

    @property
    def identity(self) -> tuple:
        """Equal for two records of the same subnetwork."""
        return (*self.description, self.digest)

    @property
    def description(self) -> tuple:
        """Equal for two records that only the bits of their masks may tell apart."""
        return (self.model, self.method, self.variant, self.sparsity, self.seed, self.steps, self.step, self.file)

    def has(self, digest: str | None) -> bool:
        """Whether the mask has this digest, as far as is known."""
        return digest is None or self.digest is None or self.digest == digest


@dataclass(frozen=True)
class FineTuningRecord:
    """One fine-tuning of a subnetwork, or of the full model, whose ticket is None.

    The score lies between −1 and 1. `lr` is the requested learning rate, None for the default.
    """

    model: str
    ticket: TicketRecord | None
    task: str
    metric: str
    seed: int
    train_samples: int
    lr: float | None
    score: float
    seconds: float | None
    run: str

    @property
    def mask_identity(self) -> tuple | None:
        """`identity` of the ticket; None for the full model."""
        return self.ticket.identity if self.ticket else None


@dataclass(frozen=True)
class LatencyRecord:
    """How long a forward pass of a subnetwork, or of the full model, takes on a CPU in its fastest way, and its size.

    Attributes:
        model: label of the model.
        ticket: the subnetwork; None for the full model.
        batch_size: rows per forward pass.
        tokens: tokens per row.
        threads: number of threads.
        precision: of weights and arithmetic.
        milliseconds: the median.
        way: how it runs: dense, sparse, …
        megabytes: the size on disk of the model that runs in this way, in float32.
    """

    model: str
    ticket: TicketRecord | None
    batch_size: int
    tokens: int
    threads: int
    precision: str
    milliseconds: float
    way: str
    megabytes: float

    @property
    def setting(self) -> str:
        """What times must share to be compared, in words."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        half = "" if self.precision == "fp32" else f", {self.precision}"
        return f"{self.batch_size} × {self.tokens} tokens, {threads}{half}"


@dataclass(frozen=True)
class Curve:
    """The dev losses along one search: for each point the step, the seconds (None if it was resumed) and the values."""

    ticket: TicketRecord
    points: tuple[tuple[int, float | None, dict[str, float]], ...]


@dataclass(frozen=True)
class Skipped:
    """A run, or a file of one, that is not in the report, and why."""

    run: str
    why: str


@dataclass
class Results:
    """The results of all runs below `folder`. `version` is the tamt that wrote them, None if they do not name it."""

    folder: Path
    version: str | None = None
    searches: dict[str, Path] = field(default_factory=dict)
    """The folders of all finished searches by their names, of those too that are left out."""
    dev_texts: dict[str, tuple] = field(default_factory=dict)
    """By model, the text that the losses shown were measured on."""
    tickets: list[TicketRecord] = field(default_factory=list)
    copies: list[tuple[TicketRecord, TicketRecord]] = field(default_factory=list)
    """Tickets of other searches that found the same mask, each with the one in `tickets`."""
    fine_tunings: list[FineTuningRecord] = field(default_factory=list)
    """Fine-tunings at the best learning rate of their mask."""
    other_rates: list[FineTuningRecord] = field(default_factory=list)
    """Fine-tunings at the other learning rates."""
    rates: dict[tuple[str, str], tuple[float | None, ...]] = field(default_factory=dict)
    """By model and task, the learning rates at which every mask and the full model were fine-tuned."""
    latencies: list[LatencyRecord] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    full_losses: dict[str, dict[str, float]] = field(default_factory=dict)
    """By model, the dev losses of the full model."""
    skipped: list[Skipped] = field(default_factory=list)
    settings: list[tuple[str, str, str | None, str, Any]] = field(default_factory=list)
    """The settings of the runs: model, method or task, variant of the method, setting, value."""

    @property
    def models(self) -> list[str]:
        """The models in alphabetical order."""
        return sorted({ticket.model for ticket in self.tickets} | {item.model for item in self.fine_tunings})

    def skip(self, run: str, why: str) -> None:
        """Record that a run is left out."""
        self.skipped.append(Skipped(run, why))
