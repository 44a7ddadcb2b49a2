"""Memory of tensors on a CPU."""

import math

from tamt_kernels.backend.dispatch import find_extension


def reuse_freed_memory(spare: float = 0.0) -> bool:
    """Keep the memory that tensors on CPUs free for tensors to come, from now on and in the whole process.

    For loops whose steps take tensors of the same sizes. A block of 256 KiB or more that is freed waits for one of its
    size or up to a third less. Those that wait longest go back to the system before more memory is held than tensors
    ever used at once, and ``spare`` beyond it. glibc gives large blocks back at once, and takes a page fault for each
    of their pages when they are taken again.

    Args:
        spare: share of the most memory that was in use, from 0. Steps of many sizes need some: with 0.25 instead of 0,
            fine-tuning steps of BERT-base in bf16 took 22 % less time on two cores of a Zen 5. Those of mask training
            took the same time.

    Returns:
        Whether it is so: on Linux, with the C++ extension.

    Raises:
        ValueError: ``spare`` is negative or not finite.
    """
    if not 0 <= spare < math.inf:
        raise ValueError(f"reuse_freed_memory: spare is {spare} but must be a number from 0")
    extension, _ = find_extension()
    return extension is not None and extension.reuse_freed_memory(spare)
