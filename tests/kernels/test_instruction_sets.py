"""The C++ kernels as compiled for each instruction set that this machine has, against the definitions, bit for bit."""

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels import reference

from .scores import gaussian, same_bits, trained
from .test_masks import DTYPES, awkward_weight

extension = pytest.importorskip("tamt_kernels._C")


@pytest.fixture(autouse=True, params=["generic", "avx2", "avx512"])
def _instruction_set(request):
    if tk.backends()["mask_weight"]["cpu"] != "cpp":
        pytest.skip("the C++ kernels do not run")
    if request.param not in extension.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    best = extension.instruction_set()
    extension.use_instruction_set(request.param)
    assert extension.instruction_set() == request.param
    yield
    extension.use_instruction_set(best)


def problem(n):
    score = trained(n)
    thresholds = tk.topk_threshold([score], [n // 3])
    return score, thresholds.values[0], thresholds.cuts[0]


# Of less than a vector; of many tiles; of many threads.
@pytest.mark.parametrize("n", [1, 37, 70_001, 1_200_005])
def test_masks_and_masked_weights(n):
    score, value, cut = problem(n)
    expected = reference.topk_threshold([score], [n // 3])
    assert same_bits(value, expected.values[0])
    assert cut == expected.cuts[0]
    mask = tk.binarize(score, value, cut)
    assert torch.equal(mask, reference.binarize(score, value, cut))
    packed = tk.pack_mask(mask)
    assert torch.equal(packed, reference.pack_mask(mask))
    assert torch.equal(tk.unpack_mask(packed, [n]), mask)
    for dtype in DTYPES:
        weight = awkward_weight((n,), dtype)
        pruned = weight.clone()
        tk.prune_([pruned], [packed])
        assert same_bits(pruned, weight.masked_fill(~mask, 0))
        for result in DTYPES:
            found = tk.mask_weight(weight, score, value, cut, result)
            assert same_bits(found, reference.mask_weight(weight, score, value, cut, result))


@pytest.mark.parametrize("result", DTYPES)
def test_all_masked_weights_at_once(result):
    scores = [trained(n) for n in (3, 0, 70_001, 1_100_000, 16)]
    weights = [awkward_weight(score.shape, torch.float32) for score in scores]
    thresholds = tk.topk_threshold(scores, [score.numel() // 3 for score in scores])
    arguments = weights, scores, *thresholds, result, True
    found, expected = torch.ops.tamt_kernels.mask_weights(*arguments), reference.mask_weights(*arguments)
    assert same_bits(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("n", [1, 37, 1_200_005])
def test_straight_through_gradients(n):
    for grad_dtype, weight_dtype, result in zip(DTYPES, DTYPES[1:] + DTYPES[:1], DTYPES[::-1], strict=True):
        grad, weight = gaussian(n).to(grad_dtype), awkward_weight((n,), weight_dtype)
        assert same_bits(tk.ste_backward(grad, weight, result), reference.ste_backward(grad, weight, result))
        total = gaussian(n).flip(0).to(result)
        expected = total.clone()
        reference.ste_backward_into(expected, grad, weight)
        assert same_bits(tk.ste_backward(grad, weight, add_to=total), expected)


def test_embeddings():
    score, value, cut = problem(50 * 77)
    score, weight, ids = score.reshape(50, 77), awkward_weight((50, 77), torch.bfloat16), torch.arange(40) % 13
    found = tk.masked_embedding(ids, weight, score, value, cut)
    assert same_bits(found, reference.masked_embedding(ids, weight, score, value, cut))


def test_cosines():
    found = []
    for each in (extension.instruction_set(), "generic"):
        extension.use_instruction_set(each)
        for width in (1, 37, 768):
            constant, trained = gaussian(6 * width).reshape(6, width).half(), gaussian(6 * width).reshape(6, width)
            arguments = gaussian(6), constant, trained.roll(1)
            found += tk.cosine(*arguments[1:]), torch.ops.tamt_kernels.cosine_backward(*arguments)
    assert all(map(same_bits, found[:6], found[6:]))


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="no instruction set mmx"):
        extension.use_instruction_set("mmx")
