"""binarize, pack_mask, unpack_mask, prune_, mask_weight and ste_backward against their definitions."""

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels import reference

from .scores import DISTRIBUTIONS, gaussian, same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0,), (0, 5), (1,), (), (3, 5), (33, 1), (1001,), (257, 513)]


def score_and_threshold(shape, dtype=torch.float32, ranking="signed"):
    score = (gaussian(torch.Size(shape).numel()) * 4).round().div(4).reshape(shape).to(dtype)
    thresholds = tk.topk_threshold([score], [score.numel() // 3], ranking=ranking)
    return score, thresholds.values[0], thresholds.cuts[0]


def awkward_weight(shape, dtype):
    """Of every magnitude that the types have, of both signs, infinite and NaN here and there."""
    n = torch.Size(shape).numel()
    weight = gaussian(n) * 10 ** torch.linspace(-42, 38, n)
    weight[3::97] = torch.inf
    weight[5::97] = -torch.inf
    weight[7::97] = torch.nan
    weight[9::97] = -0.0
    return weight.reshape(shape).to(dtype)


@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_binarize(shape, dtype, ranking):
    score, value, cut = score_and_threshold(shape, dtype, ranking)
    mask = tk.binarize(score, value, cut, ranking=ranking)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, reference.binarize(score, value, cut, ranking == "abs"))
    assert int(mask.sum()) == score.numel() // 3


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_binarize_distributions(distribution):
    score = distribution(70_001)
    for keep in (0, 20_000, 70_001):
        thresholds = tk.topk_threshold([score], [keep])
        mask = tk.binarize(score, thresholds.values[0], thresholds.cuts[0])
        assert torch.equal(mask, reference.binarize(score, thresholds.values[0], thresholds.cuts[0]))
        assert int(mask.sum()) == keep


@pytest.mark.parametrize("shape", [*SHAPES, (7,), (8,), (9,), (70_001,)])
def test_pack_and_unpack(shape):
    mask = gaussian(torch.Size(shape).numel()).reshape(shape) > 0.5
    packed = tk.pack_mask(mask)
    assert torch.equal(packed, reference.pack_mask(mask))
    assert torch.equal(tk.unpack_mask(packed, mask.shape), mask)
    assert torch.equal(reference.unpack_mask(packed, list(shape)), mask)


def test_pack_puts_entry_i_into_bit_i():
    mask = torch.zeros(10, dtype=torch.bool)
    mask[[0, 3, 9]] = True
    assert tk.pack_mask(mask).tolist() == [0b00001001, 0b00000010]
    assert torch.equal(tk.pack_mask(mask.repeat(4, 1).t()), tk.pack_mask(mask.repeat(4, 1).t().contiguous()))


def test_prune():
    shapes = [*SHAPES, (7,), (9,), (70_001,)]
    tensors = [awkward_weight(shape, dtype) for shape in shapes for dtype in DTYPES]
    masks = [gaussian(tensor.numel()).reshape(tensor.shape) > 0.5 for tensor in tensors]
    expected = [torch.where(mask, each, 0).to(each.dtype) for each, mask in zip(tensors, masks, strict=True)]
    packed, defined = [tk.pack_mask(mask) for mask in masks], [tensor.clone() for tensor in tensors]
    reference.prune_(defined, packed)
    tk.prune_(tensors, packed)
    assert all(map(same_bits, defined, expected))
    assert all(map(same_bits, tensors, expected))


def test_prune_strided_and_trained():
    whole, parameter = torch.ones(9, 12), torch.ones(4).requires_grad_()
    masks = torch.zeros(6, 9, dtype=torch.bool), torch.tensor([True, False, True, False])
    tk.prune_([whole.t()[::2], parameter], [tk.pack_mask(mask) for mask in masks])
    assert whole.sum(dim=0).tolist() == [0, 9] * 6
    assert parameter.tolist() == [1, 0, 1, 0]


def test_prune_nothing():
    tk.prune_([], [])
    tk.prune_([torch.ones(0, 3)], [torch.empty(0, dtype=torch.uint8)])


@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("result", [None, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_weight(dtype, result, ranking):
    for shape in SHAPES:
        score, value, cut = score_and_threshold(shape, ranking=ranking)
        weight = awkward_weight(shape, dtype)
        found = tk.mask_weight(weight, score, value, cut, result, ranking=ranking)
        assert same_bits(found, reference.mask_weight(weight, score, value, cut, result, ranking == "abs"))
        assert found.dtype == (result or dtype)


@pytest.mark.parametrize("n", [1, 8, 1001, 70_001])
def test_ties_are_kept_up_to_the_very_last(n):
    weight, score = torch.ones(n), torch.full((n,), 0.02)
    for keep in {n, n - 1, n // 2}:
        thresholds = tk.topk_threshold([score], [keep])
        expected = torch.arange(n) < keep
        assert torch.equal(tk.mask_weight(weight, score, thresholds.values[0], thresholds.cuts[0]), expected.float())
        assert torch.equal(tk.binarize(score, thresholds.values[0], thresholds.cuts[0]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruned_entries_are_plus_zero_whatever_the_weight(dtype):
    weight = torch.tensor([torch.inf, -torch.inf, torch.nan, -1.0, -0.0], dtype=dtype)
    for result in DTYPES:
        masked = tk.mask_weight(weight, torch.zeros(5), torch.tensor(1.0), torch.tensor(0), result)
        assert same_bits(masked, torch.zeros(5, dtype=result))


def test_mask_weight_of_strided_and_half_tensors():
    score, value, cut = score_and_threshold((64, 48))
    weight = awkward_weight((64, 48), torch.float32)
    for w, s in ((weight.t(), score.t()), (weight[::3, 1::2], score[::3, 1::2]), (weight, score.t().clone().t())):
        found = tk.mask_weight(w, s, value, cut)
        assert found.is_contiguous()
        assert same_bits(found, reference.mask_weight(w, s, value, cut))
    half = score.half()  # quarters: exact
    assert same_bits(tk.mask_weight(weight, half, value, cut), tk.mask_weight(weight, score, value, cut))


@pytest.mark.parametrize("result", [None, *DTYPES])
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_ste_backward(grad_dtype, weight_dtype, result):
    for shape in SHAPES:
        grad = gaussian(torch.Size(shape).numel()).reshape(shape).to(grad_dtype)
        weight = awkward_weight(shape, weight_dtype)
        found = tk.ste_backward(grad, weight, result)
        assert same_bits(found, reference.ste_backward(grad, weight, result))
        assert found.dtype == (result or torch.promote_types(grad_dtype, weight_dtype))


def test_ste_backward_of_strided_tensors():
    grad, weight = gaussian(600).reshape(20, 30), gaussian(600).reshape(30, 20).t()
    assert same_bits(tk.ste_backward(grad, weight), grad * weight)
    assert same_bits(tk.ste_backward(grad[1:, 3::2], weight[1:, 3::2]), grad[1:, 3::2] * weight[1:, 3::2])


@pytest.mark.parametrize("result", [None, *DTYPES])
def test_ste_backward_of_many_matrices(result):
    shapes = [*SHAPES, (70_001,)]
    grads = [gaussian(torch.Size(shape).numel()).reshape(shape) for shape in shapes]
    weights = [awkward_weight(shape, torch.bfloat16) for shape in shapes]
    grads += [grads[-1].half(), gaussian(60).reshape(6, 10).t()]
    weights += [weights[-1], gaussian(60).reshape(10, 6)]
    found = tk.ste_backward_all(grads, weights, result)
    expected = [reference.ste_backward(*each, result or torch.float32) for each in zip(grads, weights, strict=True)]
    assert all(map(same_bits, found, expected))
    assert [each.shape for each in found] == [each.shape for each in weights]
    dtype = result or torch.float32
    flat = torch.ops.tamt_kernels.ste_backward_all(grads, weights, dtype)
    assert same_bits(flat, reference.ste_backward_all(grads, weights, dtype))
    assert tk.ste_backward_all([], []) == []


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_ste_backward_adds_to_a_gradient_and_sums_its_squares(grad_dtype, weight_dtype, result):
    for shape in [*SHAPES, (70_001,)]:
        n = torch.Size(shape).numel()
        grad, weight = gaussian(n).reshape(shape).to(grad_dtype), gaussian(n).flip(0).reshape(shape).to(weight_dtype)
        fresh, squares = tk.ste_backward(grad, weight, result, squared_norm=True)
        assert same_bits(fresh, reference.ste_backward(grad, weight, result))
        assert same_bits(squares, fresh.double().square().sum().float())
        total = gaussian(n).roll(1).reshape(shape).to(result)
        expected = (total.float() + grad.float() * weight.float()).to(result)
        found, squares = tk.ste_backward(grad, weight, add_to=total, squared_norm=True)
        assert found is total
        assert same_bits(total, expected)
        assert same_bits(squares, total.double().square().sum().float())


def test_memory_that_is_to_be_copied_on_a_write():
    ones = torch.ones(40)
    tk.ste_backward(ones, ones, add_to=(total := torch._lazy_clone(ones)))
    tk.prune_([pruned := torch._lazy_clone(ones)], [tk.pack_mask(torch.arange(40) < 7)])
    assert total.tolist() == [2] * 40
    assert pruned.tolist() == [1] * 7 + [0] * 33
    assert ones.tolist() == [1] * 40


def test_squares_beyond_float32_are_infinite():
    total = torch.ones(70)
    found, squares = tk.ste_backward(torch.full((70,), 1e19), torch.ones(70), add_to=total, squared_norm=True)
    assert squares.tolist() == torch.inf
    assert found.tolist() == torch.full((70,), 1e19).tolist()


def test_a_product_and_a_sum_are_rounded_apart():
    tiny = 2.0**-12
    grad, weight, total = torch.full((64,), 1 + tiny), torch.full((64,), 1 + tiny), torch.full((64,), -1.0)
    tk.ste_backward(grad, weight, add_to=total)
    assert total.tolist() == [2 * tiny] * 64  # fused: 2 tiny + tiny²


def test_squares_are_summed_to_the_same_bits_on_any_number_of_threads():
    grad, weight = gaussian(300_001), gaussian(300_001).flip(0)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(tk.ste_backward(grad, weight, squared_norm=True)[1])
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_ste_backward_adds_to_a_strided_gradient():
    grad, weight, total = gaussian(600).reshape(20, 30), gaussian(600).reshape(30, 20).t(), torch.ones(30, 20).t()
    tk.ste_backward(grad, weight, add_to=total)
    assert same_bits(total, 1 + grad * weight)
    score = torch.ones(20, 30, requires_grad=True)
    score.sum().backward()
    tk.ste_backward(grad, weight, add_to=score.grad)
    assert same_bits(score.grad, 1 + grad * weight)


def test_every_half_and_a_million_floats_are_converted_as_torch_does():
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    patterns = torch.randint(-(2**31), 2**31, (1_000_000,), generator=torch.Generator().manual_seed(0))
    floats = patterns.to(torch.int32).view(torch.float32)
    kept = torch.tensor(-torch.inf), torch.tensor(0)
    for dtype in (torch.float16, torch.bfloat16):
        half = halves.view(dtype)
        score = torch.zeros(half.shape)
        assert same_bits(tk.mask_weight(half, score, *kept, torch.float32), half.float())
        assert same_bits(tk.mask_weight(floats, torch.zeros(floats.shape), *kept, dtype), floats.to(dtype))
