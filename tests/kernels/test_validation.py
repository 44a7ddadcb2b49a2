"""Bad arguments: an exception that names the argument, what it was and what it must be."""

import pytest
import torch
from torch import nn

import tamt_kernels as tk

W = torch.ones(4, 6)
S = torch.ones(4, 6)
VALUE, CUT = torch.tensor(0.5), torch.tensor(3)
IDS = torch.tensor([0, 1])
HUGE = torch.ones(1).expand(2**31 + 1)
HUGE_MASK = torch.ones(1, dtype=torch.bool).expand(2**31 + 1)
META = torch.ones(4, 6, device="meta")
DOUBLE = W.double()
PARAMETER = nn.Parameter(W.clone())

CASES = {
    "threshold: lengths": (tk.topk_threshold, ([S, S], [1]), ValueError, "keep has length 1 but must have 2"),
    "threshold: keep above": (tk.topk_threshold, ([S], [25]), ValueError, r"keep\[0\] is 25 .* 0 to 24.*\(4, 6\)"),
    "threshold: keep below": (tk.topk_threshold, ([S, S], [1, -1]), ValueError, r"keep\[1\] is -1"),
    "threshold: keep type": (tk.topk_threshold, ([S], [1.5]), TypeError, r"keep\[0\] is a float"),
    "threshold: dtype": (tk.topk_threshold, ([S, DOUBLE], [1, 1]), TypeError, r"scores\[1\] has dtype float64"),
    "threshold: no tensor": (tk.topk_threshold, ([[1.0]], [1]), TypeError, r"scores\[0\] is a list"),
    "threshold: devices": (tk.topk_threshold, ([S, META], [1, 1]), ValueError, r"scores\[1\] is on meta"),
    "threshold: size": (tk.topk_threshold, ([HUGE], [1]), ValueError, r"scores\[0\] .*2147483649 entries.*2\*\*31"),
    "threshold: NaN": (tk.topk_threshold, ([S, S / 0 * 0], [1, 1]), ValueError, r"scores\[1\] has NaN entries"),
    "binarize: dtype": (tk.binarize, (DOUBLE, VALUE, CUT), TypeError, "score has dtype float64"),
    "binarize: value dtype": (tk.binarize, (S, CUT, CUT), TypeError, "value has dtype int64 but must have float32"),
    "binarize: cut dtype": (tk.binarize, (S, VALUE, VALUE), TypeError, "cut has dtype float32 but must have int64"),
    "binarize: value shape": (tk.binarize, (S, VALUE[None], CUT), ValueError, r"value has shape \(1,\)"),
    "binarize: value number": (tk.binarize, (S, 0.5, CUT), TypeError, "value is a float but must be a Tensor"),
    "binarize: devices": (tk.binarize, (S, VALUE.to("meta"), CUT), ValueError, "value is on meta"),
    "binarize: size": (tk.binarize, (HUGE, VALUE, CUT), ValueError, "entries"),
    "pack: dtype": (tk.pack_mask, (W,), TypeError, "mask has dtype float32 but must have bool"),
    "pack: size": (tk.pack_mask, (HUGE_MASK,), ValueError, r"mask has shape .*2147483649 entries.*2\*\*31"),
    "unpack: dtype": (tk.unpack_mask, (W, (4,)), TypeError, "packed has dtype float32 but must have uint8"),
    "unpack: length": (
        tk.unpack_mask,
        (torch.zeros(2, dtype=torch.uint8), (4, 6)),
        ValueError,
        r"packed has shape \(2,\) but must have \(3,\)",
    ),
    "cosine: dtype": (tk.cosine, (W.long(), W), TypeError, "constant has dtype int64 but must have float32"),
    "cosine: shape": (
        tk.cosine,
        (torch.zeros(3, 4), torch.zeros(4)),
        ValueError,
        r"trained has shape \(4,\) but must have \(3, 4\), the shape of constant",
    ),
    "cosine: dimensions": (
        tk.cosine,
        (W[0, 0], W[0, 0]),
        ValueError,
        r"constant has shape \(\) but must have at least 1 dim",
    ),
    "cosine: device": (
        tk.cosine,
        (torch.zeros(3, 4), torch.zeros(3, 4, device="meta")),
        ValueError,
        "trained is on meta but must be on cpu, as constant is",
    ),
    "prune: number": (tk.prune_, ([W], []), ValueError, "packed has length 0 but must have 1, as tensors has"),
    "prune: dtype": (tk.prune_, ([W.long()], [W]), TypeError, r"tensors\[0\] has dtype int64 but must have float32"),
    "prune: packed": (tk.prune_, ([W], [W]), TypeError, r"packed\[0\] has dtype float32 but must have uint8"),
    "prune: length": (
        tk.prune_,
        ([torch.zeros(3, 4)], [torch.zeros(3, dtype=torch.uint8)]),
        ValueError,
        r"packed\[0\] has shape \(3,\) but must have \(2,\), one bit per entry of \(3, 4\)",
    ),
    "prune: device": (
        tk.prune_,
        ([torch.zeros(3, 4)], [torch.zeros(2, dtype=torch.uint8, device="meta")]),
        ValueError,
        r"packed\[0\] is on meta but must be on cpu, as tensors\[0\] is",
    ),
    "prune: devices": (
        tk.prune_,
        ([torch.zeros(8), torch.zeros(8, device="meta")], [torch.zeros(1, dtype=torch.uint8)] * 2),
        ValueError,
        r"tensors\[1\] is on meta but must be on cpu, as tensors\[0\] is",
    ),
    "unpack: no shape": (tk.unpack_mask, (torch.zeros(1, dtype=torch.uint8), 8), TypeError, "shape is a int"),
    "unpack: extents": (
        tk.unpack_mask,
        (torch.zeros(1, dtype=torch.uint8), (2.0, 4)),
        TypeError,
        "an extent of shape is a float but must be an int",
    ),
    "unpack: shape": (tk.unpack_mask, (torch.zeros(1, dtype=torch.uint8), (-1,)), ValueError, r"shape is \(-1,\)"),
    "unpack: size": (
        tk.unpack_mask,
        (torch.zeros(1, dtype=torch.uint8), (2**16, 2**15, 2)),
        ValueError,
        r"shape is \(65536, 32768, 2\), 4294967296 entries, but must have at most 2\*\*31",
    ),
    "mask_weight: size": (
        tk.mask_weight,
        (HUGE, HUGE, VALUE, CUT),
        ValueError,
        "weight has shape .*2147483649 entries",
    ),
    "mask_weight: shapes": (
        tk.mask_weight,
        (W, S.t(), VALUE, CUT),
        ValueError,
        r"score has shape \(6, 4\) but must have \(4, 6\)",
    ),
    "mask_weight: dtype": (tk.mask_weight, (DOUBLE, S, VALUE, CUT), TypeError, "weight has dtype float64"),
    "mask_weight: result": (tk.mask_weight, (W, S, VALUE, CUT, torch.int8), TypeError, "dtype is torch.int8"),
    "mask_weight: devices": (tk.mask_weight, (W, META, VALUE, CUT), ValueError, "score is on meta but must be on cpu"),
    "ste_backward_all: lengths": (
        tk.ste_backward_all,
        ([W], []),
        ValueError,
        "weights has length 0 but must have 1, as grads has",
    ),
    "ste_backward_all: dtype": (
        tk.ste_backward_all,
        ([W, W.long()], [W, W]),
        TypeError,
        r"grads\[1\] has dtype int64 but must have float32",
    ),
    "ste_backward_all: shape": (
        tk.ste_backward_all,
        ([W[0]], [W]),
        ValueError,
        r"grads\[0\] has shape \(6,\) but must have \(4, 6\), the shape of weights\[0\]",
    ),
    "ste_backward_all: device": (
        tk.ste_backward_all,
        ([W, W.to("meta")], [W, W.to("meta")]),
        ValueError,
        r"weights\[1\] is on meta but must be on cpu, as weights\[0\] is",
    ),
    "mask_weights: lengths": (
        tk.mask_weights,
        ([W, W], [S], tk.Thresholds(torch.ones(2), torch.ones(2).long())),
        ValueError,
        "scores has length 1 but must have 2",
    ),
    "mask_weights: shapes": (
        tk.mask_weights,
        ([W, W], [S, S.t()], tk.Thresholds(torch.ones(2), torch.ones(2).long())),
        ValueError,
        r"scores\[1\] has shape \(6, 4\) but must have \(4, 6\)",
    ),
    "mask_weights: devices": (
        tk.mask_weights,
        ([W, META], [S, META], tk.Thresholds(torch.ones(2), torch.ones(2).long())),
        ValueError,
        r"weights\[1\] is on meta but must be on cpu",
    ),
    "mask_weights: thresholds": (
        tk.mask_weights,
        ([W], [S], tk.Thresholds(torch.ones(2), torch.ones(2).long())),
        ValueError,
        r"thresholds.values has shape \(2,\) but must have \(1,\)",
    ),
    "mask_weights: no pair": (
        tk.mask_weights,
        ([W], [S], (torch.ones(1),)),
        TypeError,
        "thresholds is .* but must be Thresholds, a pair",
    ),
    "threshold: last": (
        lambda last: tk.topk_threshold([S], [1], last=last),
        (tk.Thresholds(torch.ones(1), torch.ones(1)),),
        TypeError,
        "topk_threshold: last.cuts has dtype float32 but must have int64",
    ),
    "ste: shapes": (tk.ste_backward, (W.t(), W), ValueError, r"grad_masked_weight has shape \(6, 4\)"),
    "ste: dtype": (tk.ste_backward, (W, W.int()), TypeError, "weight has dtype int32"),
    "ste: devices": (tk.ste_backward, (META, W), ValueError, "grad_masked_weight is on meta"),
    "ste: size": (tk.ste_backward, (HUGE, HUGE), ValueError, "grad_masked_weight has shape .*2147483649 entries"),
    "ste: add_to shape": (
        lambda total: tk.ste_backward(W, W, add_to=total),
        (S.t(),),
        ValueError,
        r"ste_backward: add_to has shape \(6, 4\) but must have \(4, 6\)",
    ),
    "ste: add_to dtype": (
        lambda total: tk.ste_backward(W, W, torch.float32, add_to=total),
        (S.half(),),
        TypeError,
        "ste_backward: add_to has dtype float16 but must have float32",
    ),
    "linear: x": (
        tk.masked_linear,
        (torch.ones(2, 5), W, S, VALUE, CUT),
        ValueError,
        r"x has shape \(2, 5\) but must have \(..., 6\)",
    ),
    "linear: x dtype": (tk.masked_linear, (torch.ones(2, 6).half(), W, S, VALUE, CUT), TypeError, "x has dtype"),
    "linear: devices": (tk.masked_linear, (META, W, S, VALUE, CUT), ValueError, "x is on meta but must be on cpu"),
    "linear: size": (
        tk.masked_linear,
        (torch.ones(1, 6).expand(2**29, 6), W, S, VALUE, CUT),
        ValueError,
        r"x has shape \(536870912, 6\), 3221225472 entries",
    ),
    "linear: weight": (
        tk.masked_linear,
        (torch.ones(6), W[0], S[0], VALUE, CUT),
        ValueError,
        r"weight has shape \(6,\) but must have 2 dimensions",
    ),
    "linear: bias dtype": (
        tk.masked_linear,
        (torch.ones(6), W, S, VALUE, CUT, torch.ones(4).half()),
        TypeError,
        "bias has dtype float16 but must have float32",
    ),
    "linear: value dtype": (tk.masked_linear, (torch.ones(6), W, S, CUT, CUT), TypeError, "value has dtype int64"),
    "linear: bias": (
        tk.masked_linear,
        (torch.ones(6), W, S, VALUE, CUT, torch.ones(6)),
        ValueError,
        r"bias has shape \(6,\) but must have \(4,\)",
    ),
    "embedding: ids": (tk.masked_embedding, (W, W, S, VALUE, CUT), TypeError, "ids has dtype float32"),
    "embedding: devices": (
        tk.masked_embedding,
        (IDS.to("meta"), W, S, VALUE, CUT),
        ValueError,
        "ids is on meta but must be on cpu",
    ),
    "embedding: size": (
        tk.masked_embedding,
        (IDS, torch.ones(1, 2).expand(2**30 + 1, 2), torch.ones(1, 2).expand(2**30 + 1, 2), VALUE, CUT),
        ValueError,
        r"weight has shape \(1073741825, 2\), 2147483650 entries",
    ),
    "embedding: padding": (
        tk.masked_embedding,
        (IDS, W, S, VALUE, CUT, 4),
        ValueError,
        "padding_idx is 4 but must be from -4 to 3",
    ),
    "embedding: padding type": (tk.masked_embedding, (IDS, W, S, VALUE, CUT, 1.5), TypeError, "padding_idx is a float"),
    "MaskedLinear: weight": (
        tk.MaskedLinear,
        (W, None, 1),
        TypeError,
        "weight is a Tensor but must be an nn.Parameter",
    ),
    "MaskedLinear: weight dtype": (
        tk.MaskedLinear,
        (nn.Parameter(DOUBLE), None, 24, W > 0),
        TypeError,
        "weight has dtype float64",
    ),
    "MaskedLinear: dimensions": (
        tk.MaskedLinear,
        (nn.Parameter(W[0]), None, 1),
        ValueError,
        r"weight has shape \(6,\) but must have 2 dimensions",
    ),
    "MaskedLinear: keep": (tk.MaskedLinear, (PARAMETER, None, 25), ValueError, "keep is 25 but must be from 0 to 24"),
    "MaskedLinear: keep type": (tk.MaskedLinear, (PARAMETER, None, 24.0, W > 0), TypeError, "keep is a float"),
    "MaskedLinear: NaN": (tk.MaskedLinear, (nn.Parameter(W / 0 * 0), None, 1), ValueError, "weight has NaN entries"),
    "MaskedLinear: bias": (
        tk.MaskedLinear,
        (PARAMETER, nn.Parameter(W[0]), 1),
        ValueError,
        r"bias has shape \(6,\) but must have \(4,\)",
    ),
    "MaskedLinear: bias type": (tk.MaskedLinear, (PARAMETER, W[:, 0], 1), TypeError, "bias is a Tensor but must be an"),
    "MaskedEmbedding: padding": (
        tk.MaskedEmbedding,
        (PARAMETER, 1, None, 9),
        ValueError,
        "padding_idx is 9 but must be from -4 to 3",
    ),
}


@pytest.mark.parametrize(("function", "arguments", "error", "message"), CASES.values(), ids=CASES.keys())
def test_bad_arguments(function, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        function(*arguments)
    operation = message.partition(":")[0] if function.__name__ == "<lambda>" else function.__name__
    assert str(caught.value).startswith(operation + ": ")


def test_what_cannot_be_wrapped_stays_trainable():
    weight = nn.Parameter(W.clone())
    with pytest.raises(TypeError, match="keep is a float"):
        tk.MaskedLinear(weight, None, 24.0, W > 0)
    assert weight.requires_grad


def test_an_unknown_ranking():
    for call in (
        lambda: tk.topk_threshold([S], [1], ranking="largest"),
        lambda: tk.mask_weight(W, S, VALUE, CUT, ranking="largest"),
    ):
        with pytest.raises(ValueError, match="ranking is 'largest' but must be 'signed' or 'abs'"):
            call()
