"""How long the runs of a study will take, judged by those that are done."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tamt.sweep.plan import Run


class Forecast:
    """Estimates the time of a run from finished runs with the same `like`, per unit of work.

    Runs that an earlier sweep finished count with the seconds in their results, which do not include loading; a
    measurement of time does not count, as its results have none.
    """

    def __init__(self, runs: Sequence[Run], rows: Mapping[str, list[dict]]) -> None:
        self._left = {run.path: run for run in runs if run.path not in rows}
        self._speeds: dict[tuple[Any, ...], list[float]] = {}
        self._spent = 0.0
        for run in runs:
            if run.path in rows and (seconds := rows[run.path][-1].get("seconds")) is not None:
                self._add(run, float(seconds))

    def done(self, run: Run, seconds: float) -> None:
        """Count a run that took `seconds`."""
        del self._left[run.path]
        self._add(run, seconds)

    def drop(self, run: Run) -> None:
        """Leave out a run that failed or will not be run."""
        del self._left[run.path]

    def estimate(self, run: Run) -> float | None:
        """Estimated seconds of a run; None if no run like it is done."""
        speeds = self._speeds.get(run.like)
        return statistics.mean(speeds) * run.work if speeds else None

    def describe(self, workers: int) -> str:
        """The share of the time that has passed and the time that is left, in words, for `workers` runs at a time."""
        estimates = [self.estimate(run) for run in self._left.values()]
        if not estimates:
            return "nothing left to do"
        known = [seconds for seconds in estimates if seconds is not None]
        left = sum(known)
        unknown = len(estimates) - len(known)
        if unknown == len(estimates):
            return "time left unknown"
        if unknown:
            return f"about {duration(left / workers)} left, plus {unknown} runs of unknown length"
        share = self._spent / (self._spent + left) if self._spent + left else 0
        return f"{share:.0%} of the time, about {duration(left / workers)} left"

    def _add(self, run: Run, seconds: float) -> None:
        self._spent += seconds
        self._speeds.setdefault(run.like, []).append(seconds / run.work)


def duration(seconds: float) -> str:
    """A time in words: 45 s, 22 min, 3 h 20 min, 5 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
