"""Where runs are executed: in this process, one after the other, or on a Ray cluster, many at a time."""

import logging
from pathlib import Path
from typing import Any, Protocol

from tamt.runtime.errors import UserError
from tamt.sweep.plan import Run
from tamt.sweep.runs import Attempt, attempt


class Engine(Protocol):
    """Executes runs. Call `start` for as many as there are `workers`, then `finished` for each of them."""

    @property
    def workers(self) -> int:
        """Number of runs at the same time."""

    def start(self, run: Run) -> None:
        """Start a run."""

    def finished(self) -> Attempt:
        """Wait until a run ends."""

    def close(self) -> None:
        """Stop the runs that are still going and free all resources."""


class Here:
    """Runs in this process."""

    workers = 1

    def __init__(self, output: Path, keep_models: bool) -> None:
        self._output, self._keep_models = output, keep_models
        self._run: Run | None = None

    def start(self, run: Run) -> None:
        self._run = run

    def finished(self) -> Attempt:
        assert self._run is not None
        return attempt(self._output, self._run, self._keep_models)

    def close(self) -> None:
        pass


class OnRay:
    """Runs on a Ray cluster: that of this process, of RAY_ADDRESS or of `ray start`, else this machine.

    A run takes one GPU if the cluster has GPUs, else `cores` cores. Every machine must see the study's folder, the
    models and the texts under the same paths.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or it has fewer cores than one run takes.
    """

    def __init__(self, output: Path, keep_models: bool, cores: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray; install it with pip install 'tamt[ray]'") from error
        self._ray: Any = ray
        self._cores = cores
        self._running: dict[Any, Run] = {}
        self._started = not ray.is_initialized()
        try:
            if self._started:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises almost anything when it cannot start or connect
            raise UserError(f"Ray cannot be started or reached ({error}); see RAY_ADDRESS and ray status") from error
        if self.workers == 0:
            cpus = ray.cluster_resources().get("CPU", 0)
            self.close()
            raise UserError(f"--cores {cores} is more than the {cpus:g} cores of the Ray cluster; lower it")
        needs = {"num_gpus": 1} if self._gpus() else {"num_cpus": cores}

        def work(run: Run) -> Attempt:
            import torch

            torch.set_num_threads(cores)
            return attempt(output, run, keep_models)

        # A worker that dies, for example for lack of memory, is tried once more; the run continues from its checkpoint.
        self._work = ray.remote(**needs, max_retries=1)(work)

    def _gpus(self) -> int:
        return int(self._ray.cluster_resources().get("GPU", 0))

    @property
    def workers(self) -> int:
        return self._gpus() or int(self._ray.cluster_resources().get("CPU", 0)) // self._cores

    def start(self, run: Run) -> None:
        self._running[self._work.remote(run)] = run

    def finished(self) -> Attempt:
        (done, *_), _ = self._ray.wait(list(self._running))
        run = self._running.pop(done)
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            return Attempt(run, error=f"its Ray worker failed: {type(error).__name__}: {first}")

    def close(self) -> None:
        for work in self._running:
            self._ray.cancel(work, force=True)
        if self._started:
            self._ray.shutdown()
