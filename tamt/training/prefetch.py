"""Batches made ahead of time, so that no step waits for its data."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 4

Batch = dict[str, Tensor]


def prefetch(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Yield the same batches in the same order on `device`; a thread makes up to four of them ahead of time.

    On a GPU they come from pinned memory, and nothing waits for the copy. An error in `batches` is raised when its
    batch is due. The thread ends with the iterator.
    """

    def make() -> Batch | None:
        batch = next(batches, None)
        if batch is None or device.type == "cpu":
            return batch
        return {name: tensor.pin_memory() if tensor.is_cpu else tensor for name, tensor in batch.items()}

    thread = ThreadPoolExecutor(1, "prefetch")
    waiting = deque(thread.submit(make) for _ in range(AHEAD))
    try:
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(make))
            yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    finally:
        for future in waiting:
            future.cancel()
        thread.shutdown()
