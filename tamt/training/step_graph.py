"""Training steps as CUDA graphs, which launch all kernels of a step at once instead of one by one from Python.

On an H100 Python takes 45 ms to launch the kernels of a step of BERT-base; the device runs them in 20 ms in a search at
16 × 512 tokens, and in 8 ms in a fine-tuning at 32 × 32.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.training.prefetch import Batch

Outcome = tuple[dict[str, Tensor], Tensor]
"""The parts of a step's loss, and the norm of its gradient; 0-dim."""
Take = Callable[[Iterable[Batch]], Outcome]
"""Takes a step with its batches."""

WARM_UP = 3
"""Steps taken before one is recorded: they compile kernels and create the state of the optimizer."""
MOST = 8
"""Graphs at most, one for each shape of a step's batches; steps of further shapes run without a graph."""


def starts_from_graphs(refused: bool, activation_checkpointing: bool = False) -> bool:
    """Whether steps start from CUDA graphs, which is logged: on a GPU, in one process, without `--no-cuda-graphs`.

    Several processes would have to wait for each other inside a graph.

    Raises:
        UserError: they would, but activations are computed again, which sets generators back.
    """
    from_graphs = not refused and _gpu_is_there() and processes.count() == 1
    if from_graphs and activation_checkpointing:
        raise UserError(
            "--activation-checkpointing sets generators back, which a CUDA graph cannot hold; give --no-cuda-graphs too"
        )
    if from_graphs:
        say("each step starts as one CUDA graph; --no-cuda-graphs starts its kernels one by one")
    return from_graphs


def _gpu_is_there() -> bool:
    return torch.cuda.is_available()


class Recorded(NamedTuple):
    """A graph, and the batches that it reads."""

    inputs: list[dict[str, Tensor]]
    replay: Callable[[], Outcome]


class StepGraph:
    """Takes steps, from a CUDA graph once batches of the same shapes came a few times.

    Everything that a step reads and changes must stay at its place in memory, and a step must wait for nothing. The
    learning rates are those in the optimizer's groups when a step is taken. An optimizer of torch must count its steps
    on the device, as a fused one does.

    Args:
        take: takes a step, and forgets its gradients.
        optimizer: whose learning rates the step follows.
        device: a GPU.
    """

    def __init__(self, take: Take, optimizer: Optimizer, device: torch.device) -> None:
        self._take, self._optimizer = take, optimizer
        self._recorder = Recorder(device)
        self._rates = [torch.zeros((), dtype=torch.float64, device=device) for _ in optimizer.param_groups]
        self._seen: Counter[object] = Counter()
        self._recorded: dict[object, Recorded] = {}

    def __call__(self, batches: Iterable[Batch]) -> Outcome:
        """Take a step.

        Raises:
            UserError: a graph cannot hold the step, which is not taken; torch's generators and memory become unusable.
        """
        batches = list(batches)
        shape = tuple(tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items()) for batch in batches)
        if shape not in self._recorded:
            self._seen[shape] += 1
            if len(self._recorded) == MOST:
                return self._take(batches)
            if self._seen[shape] <= WARM_UP:
                return self._recorder.warm_up(lambda: self._take(batches))
            try:
                self._recorded[shape] = self._record(batches)
            except RuntimeError as error:
                why = (str(error).splitlines() or [""])[0]
                raise UserError(f"a CUDA graph cannot hold a step here ({why}); give --no-cuda-graphs") from error
        return self._replay(self._recorded[shape], batches)

    def _record(self, batches: list[Batch]) -> Recorded:
        inputs = [{name: tensor.clone() for name, tensor in batch.items()} for batch in batches]
        groups = self._optimizer.param_groups
        saved = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate  # a graph would keep the number
                group["capturable"] = (
                    True  # otherwise torch's optimizers refuse; set earlier, they would warn in other steps
                )
            return Recorded(inputs, self._recorder.record(lambda: self._take(inputs)))
        finally:
            for group, before in zip(groups, saved, strict=True):
                group.clear()
                group.update(before)

    def _replay(self, recorded: Recorded, batches: list[Batch]) -> Outcome:
        for read, batch in zip(recorded.inputs, batches, strict=True):
            for name, tensor in batch.items():
                read[name].copy_(tensor, non_blocking=True)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        parts, norm = recorded.replay()
        # The next replay overwrites them.
        return {name: value.clone() for name, value in parts.items()}, norm.clone()


class Recorder:
    """Records what a function does on a GPU. Graphs of one recorder share memory, so they must not run concurrently.

    The function is warmed up and recorded on the same side stream: autograd remembers the stream on which it first met
    a tensor, and the default stream cannot be recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], Outcome]) -> Outcome:
        """Run a function on the side stream, ordered with the main stream."""
        main = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            outcome = run()
        main.wait_stream(self._stream)
        parts, norm = outcome
        for tensor in (*parts.values(), norm):
            tensor.record_stream(main)
        return outcome

    def record(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        """A function that does on the GPU what `run` would, with all results in the same memory; nothing runs yet.

        Raises:
            RuntimeError: `run` waits for the GPU, or does something that a graph cannot hold.
        """
        graph = torch.cuda.CUDAGraph()
        # Another thread makes batches meanwhile, and may call what a capture forbids.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outcome = run()

        def replay() -> Outcome:
            graph.replay()
            return outcome

        return replay
