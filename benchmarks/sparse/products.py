"""The products of a layer: its contenders, and their times taken by turns."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import tamt_kernels as tk
from benchmarks import scores
from benchmarks.clocks import keep_freed_memory
from benchmarks.sparse import instructions
from tamt.models import onnx_runtime
from tamt_kernels.backend import onednn
from tamt_kernels.backend.timing import times_by_turns

LAYERS = 4  # 113 MB of float32 weights, more than any cache holds
SPARSE, LINEAR, ONEDNN, PREPACKED, CSR = "tamt_kernels", "F.linear", "oneDNN", "oneDNN, prepacked", "torch.sparse CSR"
ONNX = "ONNX Runtime"  # where it is installed; it has no bfloat16 on CPUs
OFF, HUGGING_FACE = "tamt --sparse off", "Hugging Face"  # steps of fine-tuning
DENSE = (LINEAR, ONEDNN, PREPACKED, ONNX, OFF, HUGGING_FACE)

Run = Callable[[], object]
Calls = Sequence[Run]
Times = dict["Key", float]  # milliseconds


class Key(NamedTuple):
    """What was timed. Dense contenders have no sparsity."""

    dtype: str
    tokens: int
    sparsity: float | None
    contender: str


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random_mask(weight: Tensor, sparsity: float) -> Tensor:
    """A mask with an exact number of zeros, at random places: real masks of this sparsity take the same time."""
    order = torch.rand(weight.shape, generator=scores.generator(weight.device))
    return order > order.flatten().kthvalue(round(weight.numel() * sparsity)).values


def csr_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product by torch.sparse, which takes the input by columns."""
    return (weight @ x.t()).t() + bias


def has_onnx_runtime(dtype: torch.dtype) -> bool:
    """Whether ONNX Runtime is there, has products of the type, and takes no newer instructions than the others."""
    return dtype == torch.float32 and onnx_runtime.problem() is None and not instructions.limited()


def onnx_linear(weight: Tensor, bias: Tensor) -> Callable[[Tensor], object]:
    """A dense product by ONNX Runtime, which arranges the weight as it likes once."""
    from onnx import TensorProto, helper, numpy_helper

    kept = [numpy_helper.from_array(each.numpy(), each_name) for each, each_name in ((weight, "w"), (bias, "b"))]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["tokens", None]) for end in "xy"]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = helper.make_graph([node], "linear", ends[:1], ends[1:], kept)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx_runtime.session(made.SerializeToString(), torch.get_num_threads())


def dtypes() -> tuple[torch.dtype, ...]:
    """float32, and bfloat16 where the instructions in use multiply it: elsewhere torch's own products of it are no
    contenders, and oneDNN has none.
    """
    multiplied = torch.ops.mkldnn._is_mkldnn_bf16_supported() and instructions.used() != "avx2"
    return (torch.float32, torch.bfloat16) if multiplied else (torch.float32,)


class Layers:
    """The weights of LAYERS layers, dense and by sparsity."""

    def __init__(self, dtype: torch.dtype, sparsities: tuple[float, ...], quick: bool) -> None:
        shapes = (
            scores.bert_shapes(hidden=32, intermediate=64, vocabulary=300, layers=1) if quick else scores.bert_shapes()
        )
        weights = [scores.weight(shape, torch.device("cpu")) for _ in range(LAYERS) for shape in shapes[1:7]]
        self.dtype, self.name, self.inputs = dtype, name(dtype), sorted({weight.shape[1] for weight in weights})
        self.weights = [weight.to(dtype) for weight in weights]
        self.biases = [torch.randn(weight.shape[0]).to(dtype) for weight in weights]
        self.masked = {each: [weight * random_mask(weight, each) for weight in self.weights] for each in sparsities}
        self.sparse = {each: [tk.pack_sparse(weight) for weight in self.masked[each]] for each in sparsities}

    def contenders(self, tokens: int) -> Iterator[tuple[Key, Calls]]:
        """Each goes over all layers once; results are dropped one by one, as a model drops them."""
        x = {width: torch.randn(tokens, width).to(self.dtype) for width in self.inputs}
        prepacked = [torch.ops.mkldnn._reorder_linear_weight(weight, tokens) for weight in self.weights]
        calls: dict[tuple[float | None, str], Calls] = {
            (None, LINEAR): self._calls(F.linear, x, self.weights),
            (None, ONEDNN): self._calls(onednn.linear, x, self.weights),
            (None, PREPACKED): self._calls(onednn.linear, x, prepacked),
        }
        if has_onnx_runtime(self.dtype):
            calls[None, ONNX] = [
                partial(onnx_linear(weight, bias), x[weight.shape[1]])
                for weight, bias in zip(self.weights, self.biases, strict=True)
            ]
        for sparsity, packed in self.sparse.items():
            calls[sparsity, SPARSE] = self._calls(tk.sparse_linear, x, packed)
            if self.dtype == torch.float32 and tokens <= 128:
                csr = [weight.to_sparse_csr() for weight in self.masked[sparsity]]
                calls[sparsity, CSR] = self._calls(csr_linear, x, csr)
        yield from ((Key(self.name, tokens, *which), each) for which, each in calls.items())

    def _calls(self, product: Callable[..., object], x: dict[int, Tensor], weights: Sequence[Any]) -> Calls:
        inputs = [x[weight.shape[1]] for weight in self.weights]
        return [partial(product, *each) for each in zip(inputs, weights, self.biases, strict=True)]

    def largest_difference(self, sparsity: float) -> float:
        """From the dense product of float64, over the largest entry of a result."""
        weight, packed = self.masked[sparsity][0], self.sparse[sparsity][0]
        x = torch.randn(64, weight.shape[1]).to(self.dtype)
        expected = x.double() @ weight.double().t()
        return float((tk.sparse_linear(x, packed).double() - expected).abs().max() / expected.abs().max())

    def times_smaller(self, sparsity: float) -> float:
        """Bytes of the dense weights over those of the sparse ones."""
        return sum(each.nbytes for each in self.weights) / sum(each.nbytes for each in self.sparse[sparsity])


@torch.no_grad()
def timed(contenders: dict[Key, Calls], rounds: int) -> Times:
    """The milliseconds of each contender's calls, all of them taken by turns.

    With one thread, of the median of each call; with more, of the shortest, as threads wait for each other whenever
    another program holds a core.
    """
    keep_freed_memory()
    typical = median if torch.get_num_threads() == 1 else min
    calls = {(key, i): call for key, each in contenders.items() for i, call in enumerate(each)}
    times = dict.fromkeys(contenders, 0.0)
    for (key, _), seconds in times_by_turns(calls, rounds).items():
        times[key] += 1000 * typical(seconds)
    return times


def best_dense(times: Times, dtype: str, tokens: int) -> float:
    """The shortest time of a dense contender."""
    return min(time_ for key, time_ in times.items() if key[:2] == (dtype, tokens) and key.contender in DENSE)


def gain(times: Times, dtype: str, tokens: int, sparsity: float, contender: str = SPARSE) -> float:
    """How many times faster than the best dense contender; NaN where it was not measured."""
    return best_dense(times, dtype, tokens) / times.get(Key(dtype, tokens, sparsity, contender), math.nan)


def break_even(times: Times, dtype: str, tokens: int, contender: str = SPARSE) -> float:
    """The sparsity from which a contender is faster than the best dense one: where the line through its times at the
    lowest and the highest sparsity meets it.
    """
    points = sorted(
        (key.sparsity or 0.0, time_)
        for key, time_ in times.items()
        if key[:2] == (dtype, tokens) and key.contender == contender
    )
    (low, slow), (high, fast) = points[0], points[-1]
    fall = (slow - fast) / (high - low)
    return min(1.0, max(0.0, low + (slow - best_dense(times, dtype, tokens)) / fall)) if fall > 0 else math.nan
