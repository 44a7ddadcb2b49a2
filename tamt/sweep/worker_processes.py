"""Runs in processes of this machine, several at a time."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tamt.runtime import termination
from tamt.runtime.console import console
from tamt.runtime.errors import UserError
from tamt.sweep.plan import Run
from tamt.sweep.runs import Attempt, attempt


@dataclass
class _Worker:
    """A process, and the run that it has at the moment."""

    process: BaseProcess
    connection: Connection
    run: Run | None = None


class WorkerProcesses:
    """Runs in `workers` processes of this machine, which share its GPU where it has one.

    Each process takes `cores` cores. By default there are as many as the cores allow. A process that dies loses its
    own run and is replaced.

    Raises:
        UserError: the machine has fewer than `cores` cores.
    """

    def __init__(self, output: Path, keep_models: bool, cores: int, workers: int | None = None) -> None:
        there = os.cpu_count() or 1
        if cores > there:
            raise UserError(f"--cores {cores} is more than the {there} cores of this machine; lower it")
        self.workers = workers or there // cores
        self._given = (output, keep_models, cores)
        self._context = multiprocessing.get_context("spawn")  # a fork of a process that has used CUDA cannot use it
        self._team: list[_Worker] = []

    def start(self, run: Run) -> None:
        idle = [worker for worker in self._team if worker.run is None and worker.process.is_alive()]
        worker = idle[0] if idle else self._hire()
        worker.run = run
        worker.connection.send(run)

    def finished(self) -> Attempt:
        busy = [worker for worker in self._team if worker.run is not None]
        ready = wait([worker.connection for worker in busy])
        worker = next(worker for worker in busy if worker.connection in ready)
        assert worker.run is not None
        run, worker.run = worker.run, None
        try:
            return worker.connection.recv()
        except (EOFError, ConnectionError):
            self._team.remove(worker)
            worker.process.join()
            return Attempt(run, error=f"its process ended with exit code {worker.process.exitcode}")

    def close(self) -> None:
        """End the processes; a training saves after its step first."""
        for worker in self._team:
            worker.connection.close()  # ends one that waits for a run
            if worker.run is not None:
                worker.process.terminate()
        for worker in self._team:
            worker.process.join()

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, *self._given))
        process.start()
        theirs.close()  # so that the end of the process ends the connection
        self._team.append(_Worker(process, ours))
        return self._team[-1]


def _work(connection: Connection, output: Path, keep_models: bool, cores: int) -> None:
    """Do the runs that come, until no more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    torch.set_num_threads(cores)
    console.quiet = True
    with termination.handled():
        try:
            while True:
                run = connection.recv()
                connection.send(attempt(output, run, keep_models))
        except (EOFError, ConnectionError, termination.Terminated):
            return
