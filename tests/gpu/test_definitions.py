"""Masks, thresholds and masked weights on the GPU against their definitions on the CPU, bit for bit."""

import pytest
import torch
from kernels.scores import DISTRIBUTIONS, gaussian, same_bits, trained
from kernels.test_masks import DTYPES, SHAPES, awkward_weight, score_and_threshold

import tamt_kernels as tk
from tamt_kernels import reference


def on_gpu(*tensors):
    return [tensor.cuda() for tensor in tensors]


def test_no_operation_that_has_a_kernel_runs_on_plain_torch():
    plain = {operation for operation, device in tk.backends().items() if device["cuda"] == "eager"}
    # Dense products are torch's own on a GPU, and sparse ones have kernels for CPUs alone.
    assert {operation for operation in plain if not operation.startswith(("linear", "sparse_"))} == set()


def assert_thresholds(found, scores, keep, ranking="signed"):
    expected = reference.topk_threshold(scores, keep, ranking == "abs")
    assert found.values.is_cuda
    assert same_bits(found.values.cpu(), expected.values)
    assert torch.equal(found.cuts.cpu(), expected.cuts)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("n", [1, 7, 255, 4095, 40_001, 300_001])
def test_threshold(distribution, ranking, n):
    score, keep = distribution(n), sorted({0, 1, n // 3, int(0.7 * n), n - 1, n})
    found = tk.topk_threshold([score.cuda()] * len(keep), keep, ranking=ranking)
    assert_thresholds(found, [score] * len(keep), keep, ranking)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threshold_of_many_matrices_of_all_sizes(dtype):
    scores = [trained(n).to(dtype) for n in (0, 1, 31, 33_000, 1_200_000)] + [gaussian(65_536).reshape(256, 256).t()]
    keep = [0, 1, 20, 9_900, 360_000, 19_661]
    for _ in range(5):  # what differs from call to call is a race
        assert_thresholds(tk.topk_threshold(on_gpu(*scores), keep), scores, keep)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shift", [0.0, 1e-4, -1e-4, 1.0, torch.inf, -torch.inf])
def test_the_last_threshold_never_changes_the_result(distribution, shift):
    scores = [distribution(n) for n in (1, 999, 200_001)]
    keep = [1, 300, 60_000]
    last = tk.topk_threshold(on_gpu(*scores), keep)
    last = tk.Thresholds(last.values + shift, last.cuts)
    assert_thresholds(tk.topk_threshold(on_gpu(*scores), keep, last=last), scores, keep)
    assert_thresholds(tk.topk_threshold(on_gpu(*scores), keep, last=last, check_nan=False), scores, keep)


def test_nan_is_an_error_or_a_result():
    score = gaussian(100_000).cuda()
    score[17] = torch.nan
    with pytest.raises(ValueError, match=r"scores\[1\] has NaN"):
        tk.topk_threshold([gaussian(1000).cuda(), score], [5, 500])
    found = tk.topk_threshold([gaussian(1000).cuda(), score], [5, 500], check_nan=False)
    assert found.values.isnan().tolist() == [False, True]
    assert found.cuts[1] == 0


@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_binarize_and_pack(shape, dtype, ranking):
    score, value, cut = score_and_threshold(shape, dtype, ranking)
    mask = tk.binarize(*on_gpu(score, value, cut), ranking=ranking)
    expected = reference.binarize(score, value, cut, ranking == "abs")
    assert torch.equal(mask.cpu(), expected)
    packed = tk.pack_mask(mask)
    assert torch.equal(packed.cpu(), reference.pack_mask(expected))
    assert torch.equal(tk.unpack_mask(packed, shape), mask)


def test_prune():
    tensors = [awkward_weight(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    masks = [tensor > 0.01 for tensor in tensors]
    pruned = on_gpu(*tensors)
    tk.prune_(pruned, [tk.pack_mask(mask.cuda()) for mask in masks])
    for found, tensor, mask in zip(pruned, tensors, masks, strict=True):
        assert same_bits(found.cpu(), tensor.masked_fill(~mask, 0))


@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("result", [None, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_weight(dtype, result, ranking):
    for shape in SHAPES:
        score, value, cut = score_and_threshold(shape, ranking=ranking)
        weight = awkward_weight(shape, dtype)
        found = tk.mask_weight(*on_gpu(weight, score, value, cut), result, ranking=ranking)
        assert same_bits(found.cpu(), reference.mask_weight(weight, score, value, cut, result, ranking == "abs"))


def test_mask_weight_of_strided_tensors():
    score, value, cut = score_and_threshold((64, 48))
    weight = awkward_weight((64, 48), torch.float32)
    w, s, value_on_gpu, cut_on_gpu = on_gpu(weight, score, value, cut)
    for view in (lambda t: t.t(), lambda t: t[::3, 1::2], lambda t: t.flatten()[1:], lambda t: t[:1].expand(9, 48)):
        found = tk.mask_weight(view(w), view(s), value_on_gpu, cut_on_gpu)
        assert found.is_contiguous()
        assert same_bits(found.cpu(), reference.mask_weight(view(weight), view(score), value, cut))


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_weights_and_their_bits(dtype, result):
    scores = [score_and_threshold(shape)[0] for shape in SHAPES]
    weights = [awkward_weight(shape, dtype) for shape in SHAPES]
    keep = [score.numel() // 3 for score in scores]
    thresholds = tk.topk_threshold(on_gpu(*scores), keep)
    found, packed = tk.mask_weights(on_gpu(*weights), on_gpu(*scores), thresholds, result, pack=True)
    for i, (weight, score) in enumerate(zip(weights, scores, strict=True)):
        value, cut = thresholds.values[i].cpu(), thresholds.cuts[i].cpu()
        assert same_bits(found[i].cpu(), reference.mask_weight(weight, score, value, cut, result))
        assert torch.equal(packed[i].cpu(), reference.pack_mask(reference.binarize(score, value, cut)))


@pytest.mark.parametrize("trained_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine(dtype, trained_dtype):
    for shape in [(0, 5), (7,), (2, 3, 768), (300, 1500)]:
        constant, trained = (gaussian(torch.Size(shape).numel()).reshape(shape) for _ in range(2))
        constant, trained = constant.to(dtype), (trained.roll(1, dims=-1) + 0.5).to(trained_dtype)
        with torch.inference_mode():
            there = constant.cuda()
        found = tk.cosine(there, on_device := trained.cuda().requires_grad_())
        torch.testing.assert_close(found.cpu(), reference.cosine(constant, trained))
        grad = torch.linspace(-1, 2, found.numel()).reshape(found.shape)
        found.backward(grad.cuda())
        torch.testing.assert_close(on_device.grad.cpu(), reference.cosine_backward(grad, constant, trained))


@pytest.mark.parametrize("result", [None, *DTYPES])
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_ste_backward(grad_dtype, weight_dtype, result):
    for shape in SHAPES:
        grad = gaussian(torch.Size(shape).numel()).reshape(shape).to(grad_dtype)
        weight = awkward_weight(shape, weight_dtype)
        assert same_bits(tk.ste_backward(*on_gpu(grad, weight), result).cpu(), tk.ste_backward(grad, weight, result))


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_ste_backward_of_many_matrices(grad_dtype, result):
    shapes = [*SHAPES, (70_001,), (256, 64)]
    grads = [gaussian(torch.Size(shape).numel()).reshape(shape).to(grad_dtype) for shape in shapes]
    weights = [awkward_weight(shape, torch.float32) for shape in shapes]
    found = tk.ste_backward_all(on_gpu(*grads), on_gpu(*weights), result)
    for each, grad, weight in zip(found, grads, weights, strict=True):
        assert same_bits(each.cpu(), reference.ste_backward(grad, weight, result))


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_ste_backward_adds_to_a_gradient_and_sums_its_squares(grad_dtype, weight_dtype, result):
    for shape in [*SHAPES, (3_000_001,)]:
        n = torch.Size(shape).numel()
        grad, weight = gaussian(n).reshape(shape).to(grad_dtype), gaussian(n).flip(0).reshape(shape).to(weight_dtype)
        total = gaussian(n).roll(1).reshape(shape).to(result)
        on_device = total.cuda()
        for add_to in (None, on_device):
            expected, squares = tk.ste_backward(
                grad, weight, result, add_to=None if add_to is None else total, squared_norm=True
            )
            found, found_squares = tk.ste_backward(*on_gpu(grad, weight), result, add_to=add_to, squared_norm=True)
            assert same_bits(found.cpu(), expected)
            torch.testing.assert_close(found_squares.cpu(), squares, rtol=2e-7, atol=0)  # a rounding, at the most


def test_squares_are_summed_to_the_same_bits_each_time():
    grad, weight = torch.randn(2, 1_000_003, device="cuda")
    found = [tk.ste_backward(grad, weight, squared_norm=True)[1].item() for _ in range(5)]
    assert len(set(found)) == 1


def test_ste_backward_of_strided_tensors():
    grad, weight = gaussian(600).reshape(20, 30), gaussian(600).reshape(30, 20).t()
    g, w = on_gpu(grad, weight)
    for view in (lambda t: t, lambda t: t[1:, 3::2], lambda t: t.reshape(-1)[1:]):
        assert same_bits(tk.ste_backward(view(g), view(w)).cpu(), view(grad) * view(weight))
        total = torch.ones_like(g)
        tk.ste_backward(view(g), view(w), add_to=view(total))
        assert same_bits(view(total).cpu(), 1 + view(grad) * view(weight))


def test_every_half_and_a_million_floats_are_converted_as_on_the_cpu():
    patterns = torch.randint(-(2**31), 2**31, (1_000_000,), generator=torch.Generator().manual_seed(0))
    floats = patterns.to(torch.int32).view(torch.float32)
    kept = torch.tensor(-torch.inf).cuda(), torch.tensor(0).cuda()
    for dtype in (torch.float16, torch.bfloat16):
        half = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        found = tk.mask_weight(half.cuda(), torch.zeros(half.shape).cuda(), *kept, torch.float32)
        assert same_bits(found.cpu(), half.float())
        found = tk.mask_weight(floats.cuda(), torch.zeros(floats.shape).cuda(), *kept, dtype)
        assert same_bits(found.cpu(), floats.to(dtype))


@pytest.mark.usefixtures("no_host_sync")
def test_nothing_waits_for_the_gpu():
    score, weight = torch.randn(1000, 64, device="cuda"), torch.randn(1000, 64, device="cuda")
    ids = torch.arange(50, device="cuda")
    first = tk.topk_threshold([score, weight], [20_000, 9], check_nan=False)
    thresholds = tk.topk_threshold([score, weight], [20_000, 9], last=first, check_nan=False)
    value, cut = thresholds.values[0], thresholds.cuts[0]
    tk.mask_weights([weight, score], [score, weight], thresholds, torch.float16, pack=True)
    tk.unpack_mask(tk.pack_mask(tk.binarize(score, value, cut)), score.shape)
    trained_score, x = score.clone().requires_grad_(), torch.randn(7, 64, device="cuda")
    tk.masked_linear(x, weight, trained_score, value, cut).sum().backward()
    tk.masked_embedding(ids, weight, trained_score, value, cut).sum().backward()
