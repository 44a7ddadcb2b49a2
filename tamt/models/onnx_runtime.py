"""Dense models by ONNX Runtime, the fastest way that many users know: what sparse ones are measured against."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
IDS = "input_ids"
ERRORS = 3
"""The least severe messages of ONNX Runtime that are printed."""


def problem() -> str | None:
    """What is missing to run a model by ONNX Runtime; None if nothing is."""
    missing = [name for name in PACKAGES if not find_spec(name)]
    return f"{missing[0]} is not installed (pip install 'tamt[onnx]')" if missing else None


@contextmanager
def exported(model: PreTrainedModel) -> Iterator[Path]:
    """The model as an ONNX file, for any number of rows and tokens, while the context lasts.

    Args:
        model: in eval mode, float32; it takes ids of tokens alone.

    Raises:
        Exception: of any kind, where torch cannot export the model.
    """
    ids = torch.full((2, 8), 2)
    any_length = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with _quietly():
            torch.onnx.export(
                model,
                (ids,),
                path,
                input_names=[IDS],
                dynamic_shapes=(any_length,),
                dynamo=True,
                optimize=False,  # ONNX Runtime does it
                external_data=True,  # one file holds 2 GB at most
                verbose=False,
            )
        yield path


def session(model: Path | bytes, threads: int) -> Callable[[Tensor], object]:
    """Makes a forward pass of an ONNX model with one input, on `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS
    # Its threads would look for work for a while after a pass, on the cores of what is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source = model if isinstance(model, bytes) else str(model)
    made = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (only,) = made.get_inputs()
    return partial(_forward, made.run, only.name)


def _forward(run: Callable[..., object], name: str, x: Tensor) -> object:
    return run(None, {name: x.numpy()})


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter prints of packages that are not there, and of its own steps."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
