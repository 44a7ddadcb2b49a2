"""A whole BERT-base: random weights and masks, which take the time of real ones."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import tamt_kernels as tk
from benchmarks.sparse.products import (
    LINEAR,
    ONNX,
    PREPACKED,
    SPARSE,
    Calls,
    Key,
    Times,
    dtypes,
    has_onnx_runtime,
    name,
    random_mask,
    timed,
)
from tamt.models import onnx_runtime
from tamt_kernels.backend import onednn


def build(quick: bool) -> BertModel:
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(**(small if quick else {}))).eval()


def masks_of(model: BertModel, sparsity: float) -> dict[str, Tensor]:
    """Those of the encoder's matrices."""
    weights = model.encoder.named_parameters(prefix="encoder")
    return {key: random_mask(each.detach(), sparsity) for key, each in weights if each.dim() == 2}


def by_onednn(model: BertModel, tokens: int) -> BertModel:
    onednn.pack_linears(model.encoder, tokens)
    return model


@torch.inference_mode()
def measured(sparsities: tuple[float, ...], tokens: int, rounds: int, quick: bool) -> tuple[Times, dict[float, float]]:
    """Milliseconds of a forward, taken by turns, and the largest difference of float32 hidden states by sparsity."""
    ids = torch.randint(1000, 2000, (1, tokens))
    contenders: dict[Key, Calls] = {}
    differences = {}

    def add(dtype: torch.dtype, sparsity: float | None, way: str, forward: Callable[[Tensor], object]) -> None:
        contenders[Key(name(dtype), tokens, sparsity, way)] = [partial(forward, ids)]

    for dtype in dtypes():
        dense = build(quick).to(dtype)
        add(dtype, None, LINEAR, dense)
        add(dtype, None, PREPACKED, by_onednn(copy.deepcopy(dense), tokens))
        if has_onnx_runtime(dtype):
            with onnx_runtime.exported(dense) as path:
                add(dtype, None, ONNX, onnx_runtime.session(path, torch.get_num_threads()))
        for sparsity in sparsities:
            sparse, difference = sparse_model(sparsity, dtype, ids, quick)
            add(dtype, sparsity, SPARSE, sparse)
            if dtype == torch.float32:
                differences[sparsity] = difference
    return timed(contenders, rounds), differences


def sparse_model(sparsity: float, dtype: torch.dtype, ids: Tensor, quick: bool) -> tuple[BertModel, float]:
    """A sparse model, and the largest difference of its hidden states from those of the dense pruned one."""
    dense = build(quick)
    masks = masks_of(dense, sparsity)
    for parameter, mask in masks.items():
        dense.get_parameter(parameter).data.masked_fill_(~mask, 0)
    dense.to(dtype)
    sparse = copy.deepcopy(dense)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.sparsify(sparse, masks, at_least=0)
    hidden = [cast("Tensor", each(ids).last_hidden_state) for each in (dense, sparse)]
    return sparse, float((hidden[0] - hidden[1]).abs().max())
