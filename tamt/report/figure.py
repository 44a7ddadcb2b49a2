"""A figure as data: the page, the PNG, the PDF and the CSV are all drawn from it."""

from dataclasses import dataclass
from typing import NamedTuple

from tamt.report.statistics import Summary


class Point(NamedTuple):
    """A mark at x: the mean of `runs` runs and their standard deviation, None for one run; `about` is shown with it."""

    x: float
    y: float
    spread: float | None = None
    runs: int = 1
    about: str = ""

    @classmethod
    def of(cls, x: float, summary: Summary, about: str = "") -> "Point":
        """The point of some runs."""
        return cls(x, summary.mean, summary.std, summary.runs, about)


@dataclass(frozen=True)
class Series:
    """Points in one colour. `style` names it: a method, or `model-0`, `model-1`, … where models are compared.

    `variant` names the variant of the method, so that several have colours of their own; empty where there is none.
    """

    label: str
    style: str
    points: tuple[Point, ...]
    line: bool = True
    dashed: bool = False
    variant: str = ""


@dataclass(frozen=True)
class Chart:
    """One panel of points and lines. `reference` is the label and the height of a horizontal line: the full model's."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    reference: tuple[str, Summary] | None = None
    log_x: bool = False


@dataclass(frozen=True)
class HeatMap:
    """One panel of coloured cells: values[row][column] between `low` and `high`; None is an empty cell."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A figure of a report. `name` is the stem of its files; `paper` is the figure of the paper that it repeats."""

    name: str
    title: str
    paper: str
    caption: str
    panels: tuple[Chart | HeatMap, ...]


@dataclass(frozen=True)
class Missing:
    """A figure for which there are no runs, and the runs that it needs."""

    title: str
    paper: str
    needs: str
