"""`tamt bench`: time, file and memory of a model with zeros, dense and sparse, on this CPU."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.finetuning.saved import run_of
from tamt.masks.file import load_masks
from tamt.masks.masking import apply_masks, magnitude_masks, prunable_weights
from tamt.masks.origin import say_if_of_another
from tamt.masks.sparse_file import sparse_bytes
from tamt.models import onnx_runtime
from tamt.models.loading import load_as_saved
from tamt.models.shrink import as_subnetwork
from tamt.models.sparse import running_sparse
from tamt.models.tokenizer import longest_input
from tamt.options.base import command
from tamt.options.bench import BenchOptions
from tamt.runtime.choices import Values
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.training.precision import DTYPES
from tamt_kernels.backend import onednn
from tamt_kernels.backend.choices import cpu_model
from tamt_kernels.backend.timing import times_by_turns

TOKENS = (1, 8, 32, 128, 512)
Forward = Callable[[], object]
DENSE, ONEDNN, ONNX, SPARSE, SHRUNK = "dense", "dense by oneDNN", "dense by ONNX Runtime", "sparse", "shrunk"
"""The ways to run a model; one that is shrunk is dense."""


@command(BenchOptions)
def bench(options: BenchOptions) -> dict:
    """Run `tamt bench`."""
    model, shrunk = _load(options)
    longest = longest_input(model)
    for tokens in options.tokens or ():
        if tokens > longest:
            raise UserError(f"--tokens {tokens} is more than the {longest} tokens of {options.model}")
    lengths = options.tokens or [tokens for tokens in TOKENS if tokens <= longest]
    threads = options.threads or sorted({1, os.cpu_count() or 1})
    sparse = _sparse_twin(model, options)
    sizes = _sizes(model, sparse or model)
    for name, (dense_size, sparse_size) in sizes.items() if sparse else ():
        say(f"{name}: dense {dense_size:.1f} MB, sparse {sparse_size:.1f} MB, {dense_size / sparse_size:.1f} × smaller")
    before = torch.get_num_threads()
    try:
        rows = []
        with _onnx_file(options, model) as path:
            for count in threads:
                onnx = onnx_runtime.session(path, count) if path else None
                rows += [_row(options, model, sparse, onnx, count, tokens) for tokens in lengths]
        for row in rows:
            if shrunk:
                row["fastest"] = row["fastest"].replace(DENSE, SHRUNK)
            row |= {"megabytes": sizes["file in float32"][row["fastest"] == SPARSE], "cpu": cpu_model()}
    finally:
        torch.set_num_threads(before)
    megabytes = {
        name: {"dense": dense_size, "sparse": size if sparse else None} for name, (dense_size, size) in sizes.items()
    }
    return {"results": rows, "megabytes": megabytes}


def _load(options: BenchOptions) -> tuple[PreTrainedModel, bool]:
    """The dense model with its zeros, in the precision of the benchmark, and whether a structured mask shrank it."""
    source, _ = run_of(options.model)
    model = load_as_saved(source)
    shrunk = False
    if options.mask is not None:
        masks, info = load_masks(options.mask)
        say_if_of_another(masks, info.model, model)
        if info.structure:
            model, masks = as_subnetwork(model, masks)
            shrunk = not masks
        else:
            apply_masks(model, masks)
    elif options.sparsity is not None:
        apply_masks(model, magnitude_masks(prunable_weights(model), options.sparsity))
    return model.eval().to(DTYPES[options.precision]), shrunk


def _sparse_twin(model: PreTrainedModel, options: BenchOptions) -> PreTrainedModel | None:
    """The model with sparse matrices; what stays dense is shared. None if no matrix can run sparse, which is said."""
    twin = _sharing_copy(model)
    tk.sparsify(twin)
    sparse, matrices = running_sparse(twin)
    if not sparse:
        say(
            f"no matrix of {options.model} has zeros enough to run sparse, so it is measured dense; give the --mask of "
            "a subnetwork, or --sparsity for what one would gain"
        )
        return None
    say(f"{sparse} of {matrices} matrices run sparse, the others dense")
    return twin


def _onednn_twin(model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """The dense model with products by oneDNN, whose weights are in its own layout."""
    twin = _sharing_copy(model)
    onednn.pack_linears(twin, tokens)
    return twin


@contextmanager
def _onnx_file(options: BenchOptions, model: PreTrainedModel) -> Iterator[Path | None]:
    """The dense model as an ONNX file; None where ONNX Runtime cannot run it, which is said."""
    problem = onnx_runtime.problem() if options.precision == "fp32" else "it has no products of bfloat16 on CPUs"
    with ExitStack() as stack:
        path = None
        if problem is None:
            try:
                path = stack.enter_context(onnx_runtime.exported(model))
                onnx_runtime.session(path, threads=1)
            except Exception as error:  # nearly anything, of a model that torch cannot trace, or that ONNX lacks
                path, why = None, (str(error).splitlines() or [""])[0][:200]
                problem = f"{options.model} cannot be exported to it ({type(error).__name__}: {why})"
        if problem:
            say(f"ONNX Runtime is not measured, as {problem}")
        yield path


def _sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def _sizes(dense: nn.Module, sparse: nn.Module) -> dict[str, tuple[float, float]]:
    """Megabytes of the dense and of the sparse model, in memory and in a file, by what they are."""
    memory = [
        sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) / 1e6 for model in (dense, sparse)
    ]
    counts = [(tensor.dim() == 2, tensor.numel(), int((tensor != 0).sum())) for tensor in dense.parameters()]
    entries = sum(total for _, total, _ in counts)

    def file(values: Values, width: int) -> float:
        whole = (
            min(sparse_bytes(total, kept, values), total * width) if matrix else total * width
            for matrix, total, kept in counts
        )
        return sum(whole) / 1e6

    return {
        "memory": (memory[0], memory[1]),
        "file in float32": (entries * 4 / 1e6, file("float32", 4)),
        "file in float16": (entries * 2 / 1e6, file("float16", 2)),
    }


def _row(
    options: BenchOptions,
    dense: PreTrainedModel,
    sparse: PreTrainedModel | None,
    onnx: Callable[[Tensor], object] | None,
    threads: int,
    tokens: int,
) -> dict[str, Any]:
    """The row of results for a number of threads and of tokens."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(dense.config.vocab_size, (options.batch_size, tokens), generator=generator)
    models: dict[str, Callable[[Tensor], object]] = {DENSE: dense} | ({SPARSE: sparse} if sparse else {})
    if options.precision == "fp32" and onednn.problem() is None:
        models[ONEDNN] = _onednn_twin(dense, options.batch_size * tokens)
    if onnx:
        models[ONNX] = onnx
    with torch.inference_mode():
        times = _times({name: partial(model, ids) for name, model in models.items()}, options.rounds)
    best = min(time for way, time in times.items() if way != SPARSE)
    gain = best / times[SPARSE] if sparse else None
    fastest = min(times, key=times.__getitem__)
    return {
        "model": options.model,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "threads": threads,
        "tokens": tokens,
        "dense_ms": times[DENSE],
        "dense_onednn_ms": times.get(ONEDNN),
        "dense_onnx_ms": times.get(ONNX),
        "sparse_ms": times.get(SPARSE),
        "dense_tokens_per_s": 1000 * ids.numel() / best,
        "sparse_tokens_per_s": 1000 * ids.numel() / times[SPARSE] if sparse else None,
        "times_faster": gain,
        "fastest": fastest,
        "fastest_ms": times[fastest],
    }


def _times(forwards: Mapping[str, Forward], rounds: int) -> dict[str, float]:
    """The median milliseconds of each; see `times_by_turns`."""
    return {name: 1000 * median(times) for name, times in times_by_turns(forwards, rounds).items()}
