"""The processes that share a run: who this one is, what they add up, what they must agree on, and who speaks.

`torchrun` and `accelerate launch` start them, and say in the environment how many there are. In a run of one process
nothing here does anything, and torch's distributed package is not even imported.

Two groups: the sums of gradients go by NCCL between GPUs, by gloo between CPUs, and fail when a process does not answer
for SUM_PATIENCE; all else goes by gloo and waits for PATIENCE, as one process may have a model to fetch or to save.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tamt.runtime import termination
from tamt.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

SUM_PATIENCE = timedelta(seconds=45)
PATIENCE = timedelta(hours=1)
LARGE = 1 << 18
"""Entries of a tensor that travels by itself; smaller ones travel together."""
CHUNK = 1 << 22
"""Entries of which the digest is taken at once."""


class LostProcessError(UserError):
    """Another process of the run ended, or does not answer."""


class DifferError(UserError):
    """The processes do not hold the same."""


class _Group:
    patient: Any = None
    """For all but sums of gradients; None before `join`."""
    asked: tuple[Any, Any] | None = None
    """Whether a process was asked to end: the sum that is under way, and its work."""


def count() -> int:
    """How many processes share the run."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def first() -> bool:
    """Whether this is process 0, which alone writes files and speaks."""
    return rank() == 0


def join() -> None:
    """Meet the other processes of the run, once.

    Raises:
        UserError: this machine has fewer GPUs than processes.
        LostProcessError: they do not come.
    """
    if count() == 1 or _Group.patient is not None:
        return
    import torch
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} GPUs and more processes were started on it; start as "
                "many as GPUs"
            )
        torch.cuda.set_device(local)
    with _telling():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=SUM_PATIENCE)
        _Group.patient = distributed.new_group(backend="gloo", timeout=PATIENCE)


@contextmanager
def _telling() -> Iterator[None]:
    """Turn the error of a collective operation into one sentence."""
    try:
        yield
    except RuntimeError as error:  # of which torch's DistError is one
        if termination.asked():  # the others were asked too, and may be gone already
            stop = termination.Terminated()
            stop.args = ("terminated; another process has ended too; repeat the command with --resume to continue",)
            raise stop from error
        reason = " ".join(str(error).split())[:120]
        raise LostProcessError(
            f"another process of this run ended or does not answer, as process {rank()} of {count()} found ({reason}); "
            "the last checkpoint is kept; repeat the command with --resume to continue, with any number of "
            "processes"
        ) from error


def gather(value: T) -> list[T]:
    """The value of each process, in their order."""
    if count() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * count()
    with _telling():
        distributed.all_gather_object(values, value, _Group.patient)
    return values


def wait() -> None:
    """Wait until all processes are here."""
    gather(None)


def by_first(function: Callable[[], T]) -> T:
    """Call `function` in process 0 alone; what it gives, or the UserError that it raises, all processes get."""
    if count() == 1:
        return function()
    from torch import distributed

    told: list[Any] = [None, None]
    if first():
        try:
            told[0] = function()
        except UserError as error:
            told[1] = error
    failed = told[1]
    # The error itself may not survive the way, its sentence does.
    told[1] = str(failed) if failed else None
    with _telling():
        distributed.broadcast_object_list(told, 0, _Group.patient)
    if failed is not None:
        raise failed
    if told[1] is not None:
        raise UserError(told[1])
    value: T = told[0]
    return value


@contextmanager
def one_first() -> Iterator[None]:
    """Let one process of each machine go first, which may fetch and cache what the others then find."""
    leads = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not leads:
        wait()
    try:
        yield
    except UserError:
        if leads:
            wait()
        raise
    if leads:
        wait()


# Samples and evaluations


def parts_of_step(samples: int, batch_size: int) -> int:
    """Batches of at most `batch_size` that each process takes in a step of `samples`.

    Raises:
        UserError: there are more processes than samples.
    """
    if samples < count():
        raise UserError(f"a step takes {samples} samples, too few for {count()} processes; start fewer")
    return -(-samples // (batch_size * count()))


def share(samples: int, parts: int) -> list[range]:
    """This process's batches of a step: the numbers 0 … `samples` − 1 cut evenly into `parts` for each process."""
    cuts = [samples * i // (parts * count()) for i in range(parts * count() + 1)]
    mine = range(rank() * parts, (rank() + 1) * parts)
    return [range(cuts[i], cuts[i + 1]) for i in mine]


def dealt() -> slice:
    """Which of a sequence of evaluation batches this process does: they are dealt out in turn."""
    return slice(rank(), None, count())


def collect(results: Sequence[T]) -> list[T]:
    """The results of what was dealt out, of all processes, in the order of one process."""
    hands = gather(list(results))
    longest = max(map(len, hands))
    return [hand[i] for i in range(longest) for hand in hands if i < len(hand)]


# What training adds up and agrees on


def add_up(tensors: Sequence["Tensor"]) -> None:
    """Replace each tensor by its sum over the processes; all must pass like ones in the same order.

    Large ones, such as the gradients of matrices, travel as they are, small ones of a type together.
    """
    if count() == 1:
        return
    from torch import distributed
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

    small: dict[torch.dtype, list[Tensor]] = {}
    large = []
    for tensor in tensors:
        if tensor.numel() >= LARGE and tensor.is_contiguous():
            large.append(tensor)
        else:
            small.setdefault(tensor.dtype, []).append(tensor)
    packed = [_flatten_dense_tensors(group) for group in small.values()]
    with _telling():
        for work in [distributed.all_reduce(tensor, async_op=True) for tensor in [*large, *packed]]:
            work.wait()
    for group, flat in zip(small.values(), packed, strict=True):
        for tensor, summed in zip(group, _unflatten_dense_tensors(flat, group), strict=True):
            tensor.copy_(summed)


def check_termination(step: int) -> None:
    """Raise Terminated if a process was asked to end, after the same step in all of them; call it before every step.

    What is asked goes round while a step is taken, over the CPU, so that no step waits for it and no GPU.
    """
    if count() == 1:
        return termination.check(step)
    import torch
    from torch import distributed

    if _Group.asked is not None:
        flag, work = _Group.asked
        _Group.asked = None
        with _telling():
            work.wait()
        if flag.item():
            raise termination.Terminated(step)
    flag = torch.tensor([int(termination.asked())])
    with _telling():
        _Group.asked = flag, distributed.all_reduce(flag, group=_Group.patient, async_op=True)
    return None


@contextmanager
def stepping() -> Iterator[None]:
    """Forget at the end the question of `check_termination` that is under way: no step follows."""
    group = _Group  # whose name is gone where steps are left unfinished until the interpreter ends
    try:
        yield
    finally:
        if group.asked is not None:
            _, work = group.asked
            group.asked = None
            with suppress(RuntimeError):  # told by whatever comes next
                work.wait()


def check_same(what: str, value: object) -> None:
    """Check that all processes hold the same value.

    Raises:
        DifferError: naming those that differ from most, or from process 0.
    """
    values = gather(value)
    if all(other == values[0] for other in values):
        return
    common = max(values, key=values.count)  # of equally many the first, process 0's
    others = [number for number, other in enumerate(values) if other != common]
    named = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(map(str, others))}"
    raise DifferError(f"{named} of {count()} {'has' if len(others) == 1 else 'have'} another {what} than the others")


def check_trained(step: int, tensors: Iterable["Tensor"]) -> None:
    """Check that what trains is the same in all processes, to the bit.

    Raises:
        DifferError: it is not.
    """
    if count() == 1:
        return
    try:
        check_same("digest of what trains", digest(tensors))
    except DifferError as error:
        raise DifferError(
            f"after step {step} {error}, so the run stopped and the last checkpoint, where all were the same, is kept; "
            "look at the memory of that machine, then continue with --resume"
        ) from error


def digest(tensors: Iterable["Tensor"]) -> int:
    """A number of 64 bits that changes with any one entry of tensors of 32 bits an entry, and hardly stays with more.

    Taken on their device: each entry's bits are multiplied by an odd number of its place, modulo 2⁶⁴.
    """
    import torch

    total = 0
    for tensor in tensors:
        bits = tensor.detach().contiguous().flatten().view(torch.int32)
        places = torch.arange(min(CHUNK, bits.numel()), device=bits.device, dtype=torch.int64)
        odd = (places * 0x1E3779B97F4A7C15) | 1
        for chunk in bits.split(CHUNK):
            total = (total * 0x5851F42D4C957F2D + int((chunk.long() * odd[: len(chunk)]).sum())) % (1 << 64)
    return total


def own_dropout() -> None:
    """Give torch's generators, which are alike in all processes, a state of this process's own, for dropout.

    It follows from the state before and the process's number, so that it is the same at the same step of a run.
    """
    if count() == 1:
        return
    import torch

    state = torch.get_rng_state().numpy().tobytes()
    seed = hashlib.sha256(state + rank().to_bytes(4, "little")).digest()
    torch.manual_seed(int.from_bytes(seed[:8], "little") >> 1)


# Who speaks


def first_to_tell() -> bool:
    """Whether no process of the run has told yet why it ended; where that cannot be known, True.

    One process is asked by the store of the launcher, which outlives those that end.
    """
    if count() == 1:
        return True
    try:
        from torch.distributed import TCPStore

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        run = f"{os.environ.get('TORCHELASTIC_RUN_ID')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
        return bool(store.add(f"tamt/{run}/told", 1) == 1)
    except (KeyError, RuntimeError):
        return True
