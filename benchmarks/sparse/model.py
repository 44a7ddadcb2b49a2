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
def measured(sparsity: float, tokens: int, rounds: int, quick: bool) -> tuple[Times, float]:
    """Milliseconds of a forward, and how far the float32 hidden states are from those of the dense pruned model."""
    ids = torch.randint(1000, 2000, (1, tokens))
    contenders: dict[Key, Calls] = {}
    difference = 0.0
    for dtype in dtypes():
        model = build(quick)
        masks = masks_of(model, sparsity)
        for parameter, mask in masks.items():
            model.get_parameter(parameter).data.masked_fill_(~mask, 0)
        model.to(dtype)
        sparse = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tk.sparsify(sparse, masks, at_least=0)
        ways: dict[str, Callable[[Tensor], object]] = {
            LINEAR: model,
            PREPACKED: by_onednn(copy.deepcopy(model), tokens),
            SPARSE: sparse,
        }
        if dtype == torch.float32:
            hidden = [cast("Tensor", each(ids).last_hidden_state) for each in (model, sparse)]
            difference = float((hidden[0] - hidden[1]).abs().max())
        if dtype == torch.float32 and onnx_runtime.problem() is None:
            with onnx_runtime.exported(model) as path:
                ways[ONNX] = onnx_runtime.session(path, torch.get_num_threads())
        for way, each in ways.items():
            key = Key(name(dtype), tokens, sparsity if way == SPARSE else None, way)
            contenders[key] = [partial(each, ids)]
    return timed(contenders, rounds), difference
