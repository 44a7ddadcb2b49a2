"""Memory of tensors on a CPU."""

from tamt_kernels.dispatch import find_extension


def reuse_freed_memory() -> bool:
    """Keep the memory that tensors on CPUs free for tensors to come, from now on and in the whole process.

    For loops whose steps take tensors of the same sizes. A block of 256 KiB or more that is freed waits for one of its
    size or up to a third less. Those that wait longest go back to the system before a quarter more memory is held than
    tensors ever used at once. glibc gives large blocks back at once, and takes a page fault for each of their pages
    when they are taken again.

    Returns:
        Whether it is so: on Linux, with the C++ extension.
    """
    extension, _ = find_extension()
    return extension is not None and extension.reuse_freed_memory()
