"""Where a run computes and in which precision, set up once for each run."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import set_seed

import tamt_kernels as tk
from tamt.runtime import processes
from tamt.runtime.choices import Precision
from tamt.runtime.console import say
from tamt.runtime.errors import UserError, check_choice
from tamt.training.loss_scale import LossScale
from tamt.training.precision import DTYPES, report_precision
from tamt_kernels.backend import onednn, product_library


@dataclass
class Compute:
    """Where a run computes and in which precision.

    Attributes:
        device: a GPU if there is one, else the CPU.
        precision: "fp32", "bf16" or "fp16".
        loss_scale: of the training; it changes in fp16 only.
    """

    device: torch.device
    precision: Precision
    loss_scale: LossScale = field(init=False)

    def __post_init__(self) -> None:
        self.loss_scale = LossScale(self.device, dynamic=self.precision == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in; weights and updates are float32."""
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which the model computes in the run's precision."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, self.dtype)

    @property
    def chooses_products(self) -> bool:
        """Whether this run computes float32 products on a CPU, for which there is a choice of library."""
        return self.device.type == "cpu" and self.precision == "fp32"


def set_up(precision: Precision, seed: int, spare_memory: float = 0.0) -> Compute:
    """Seed all generators with `seed`, join the other processes, and choose the device.

    On a CPU, `tk.reuse_freed_memory` manages the memory of tensors from now on; `spare_memory` is its `spare`.

    Raises:
        UserError: the precision is unknown; fp16 was requested on a machine without a GPU, or bf16 on a GPU that has
            none; or TAMT_PRODUCTS asks for what this torch cannot do. See also `processes.join`.
    """
    check_choice("precision", precision, DTYPES)
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU and there is none; use --precision bf16 or fp32")
    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise UserError("this GPU has no bf16 arithmetic; use --precision fp16 or fp32")
    processes.join()
    set_seed(seed)
    device = _device()
    if device.type == "cpu":
        # Otherwise the gradient of the word embedding, 47 MB for MiniLM, is faulted in again in every step: 44 of the
        # 370 ms of a fine-tuning step on 2 cores. glibc, told to keep freed memory, held 0.3 GB of holes for BERT-base.
        tk.reuse_freed_memory(spare_memory)
    compute = Compute(device, precision)
    if compute.chooses_products:
        choose_products({})
    return compute


def _device() -> torch.device:
    if torch.cuda.is_available():  # `processes.join` has set the device of this process
        return torch.device("cuda", torch.cuda.current_device()) if processes.count() > 1 else torch.device("cuda")
    if torch.backends.mps.is_available() and processes.count() == 1:
        return torch.device("mps")
    return torch.device("cpu")


def report_compute(compute: Compute, asked: Precision) -> None:
    """Log the precision that "auto" chose and the library of the float32 products.

    Call it once everything that can be refused was loaded, so that a mistake is answered by one line.
    """
    report_precision(compute.precision, asked)
    if not compute.chooses_products:
        return
    others = [name for name, row in product_library.chosen().items() if set(row) != {"eager"}]
    if others:
        say(f"oneDNN computes {', '.join(others)} in float32, as it is faster here (TAMT_PRODUCTS=eager turns it off)")
    elif problem := onednn.problem():
        say(f"torch's own library computes all float32 products, because oneDNN cannot: {problem}")


def choose_products(table: Mapping[str, Sequence[str]]) -> None:
    """Choose the library of float32 products on this CPU: by the `table` of a checkpoint, or by measuring if empty.

    Raises:
        UserError: TAMT_PRODUCTS asks for what is not there.
    """
    try:
        missing = product_library.choose(table)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    if missing:
        say(f"this torch cannot compute {', '.join(missing)} as the run did before, so results differ by rounding")
