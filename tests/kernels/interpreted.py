"""The Triton kernels against the definitions, on the CPU, by Triton's interpreter.

Not collected by itself: ``test_triton.py`` runs it in a process of its own, as the interpreter takes the place
of the compiler for a whole process.
"""

import copy
import os
from dataclasses import replace
from random import Random

import pytest
import torch
from triton._C import libtriton
from triton.runtime import interpreter
from triton.runtime.interpreter import interpreter_builder

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.backend import dispatch
from tamt_kernels.triton_kernels import (
    binarize,
    common,
    cosine,
    mask_adamw,
    mask_weight,
    mask_weights,
    masked_embedding,
    masked_linear,
    pack,
    pattern,
    pattern_adamw,
    prune,
    ste_backward,
    threshold,
    threshold_keys,
)

from .scores import DISTRIBUTIONS, constant, gaussian, initial, same_bits, trained
from .steps import a_step, check_step, exact_roots, gradients, rates_of
from .test_masked_layers import IDS
from .test_masks import DTYPES, awkward_weight
from .test_pattern import PATTERNS, Problem
from .test_pattern import gradients as gradients_of_groups

soak = pytest.mark.skipif("TAMT_SOAK" not in os.environ, reason="a minute or two each; make soak has it")

SHAPES = [(0,), (), (1,), (3, 5), (33, 1), (257, 33)]
operators = torch.ops.tamt_kernels


@pytest.fixture(autouse=True)
def small_and_poisoned(monkeypatch):
    """Tiles so small that a few thousand entries are many; outputs that hold NaN where nothing is written."""
    assert dispatch.interpreted()
    for module in (binarize, mask_weight, mask_weights, pack, prune, ste_backward):
        monkeypatch.setattr(module, "TILE", 256)
    monkeypatch.setattr(threshold, "TILE", 512)
    monkeypatch.setattr(threshold, "MIN_ROOM", 16)
    monkeypatch.setattr(threshold, "SHARE", 512)
    monkeypatch.setattr(mask_adamw, "PART", 128)
    monkeypatch.setattr(pattern, "TILE", 64)
    monkeypatch.setattr(pattern_adamw, "PART", 32)
    monkeypatch.setattr(pattern_adamw, "PARTS", 2)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """The interpreter without work that changes nothing, two thirds of its time.

    It replaces the functions of Triton's language at each call of a function, and puts them back after each launch:
    once is enough in this process. And it computes whether integers overflow, but never looks at the answer.
    """
    real, done = interpreter._patch_lang, set()

    def patch_once(function):
        if function.__module__ not in done:
            done.add(function.__module__)
            real(function)
        return getattr(interpreter, "_LangPatchScope", lambda: None)()  # which has nothing to put back

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        patch.setattr(interpreter_builder, "options", replace(interpreter_builder.options, sanitize_overflow=False))
        yield


@pytest.fixture(autouse=True)
def programs_in_any_order(monkeypatch):
    """The programs of a launch run in a random order, as a GPU keeps none."""
    in_order, random = interpreter_builder.set_grid_idx, Random(0)
    order = []

    def set_grid_idx(x, y, z):
        if (x, y, z) == (0, 0, 0):
            order[:] = random.sample(range(interpreter_builder.grid_dim[0]), interpreter_builder.grid_dim[0])
        in_order(order[x], y, z)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)


def test_outputs_are_poisoned():
    assert torch.empty(3).isnan().all()
    assert torch.empty(3, dtype=torch.uint8).tolist() == [255] * 3


def test_triton_runs():
    found = tk.backends()
    assert {name for name, each in found.items() if each["cpu"] == "triton"} >= {
        "topk_threshold", "topk_threshold_unchecked", "binarize", "pack_mask", "unpack_mask", "prune_",
        "mask_weight", "mask_weights", "cosine", "cosine_backward", "ste_backward_all",
        "masked_embedding", "masked_embedding_backward", "gradient_norm", "mask_adamw",
        "pattern_mask", "pattern_weight", "pattern_adamw",
        "masked_matmul", "masked_matmul_backward_x", "masked_matmul_backward_score",
    }  # fmt: skip


def score_and_threshold(shape, dtype=torch.float32, absolute=False):
    score = (gaussian(torch.Size(shape).numel()) * 4).round().div(4).reshape(shape).to(dtype)
    values, cuts = reference.topk_threshold([score], [score.numel() // 3], absolute)
    return score, values[0], cuts[0]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_binarize_and_pack(dtype, absolute):
    for shape in SHAPES:
        score, value, cut = score_and_threshold(shape, dtype, absolute)
        mask = operators.binarize(score, value, cut, absolute)
        assert torch.equal(mask, reference.binarize(score, value, cut, absolute))
        assert torch.equal(tk.pack_mask(mask), reference.pack_mask(mask))
        assert torch.equal(tk.unpack_mask(reference.pack_mask(mask), shape), mask)
    strided = score.t()[::2]
    assert torch.equal(tk.binarize(strided, value, cut), reference.binarize(strided, value, cut))
    assert torch.equal(tk.pack_mask(mask.t()[::2]), reference.pack_mask(mask.t()[::2]))


def test_prune():
    tensors = [awkward_weight(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    tensors.append(tensors[-1].clone().t()[::2])
    masks = [tensor > 0.01 for tensor in tensors]
    expected = [tensor.masked_fill(~mask, 0) for tensor, mask in zip(tensors, masks, strict=True)]
    tk.prune_(tensors, [reference.pack_mask(mask) for mask in masks])
    assert all(map(same_bits, tensors, expected))


def test_prune_tensors_that_share_memory():
    whole = torch.ones(6, 6)
    masks = [gaussian(36).reshape(6, 6) > 0, gaussian(36).flip(0).reshape(6, 6) > 0]
    expected = (masks[0] & masks[1].t()).float()
    tk.prune_([whole, whole.t()], [reference.pack_mask(mask) for mask in masks])
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("trained_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine(dtype, trained_dtype, monkeypatch):
    monkeypatch.setattr(cosine, "LARGEST_BLOCK", 32)
    for shape in [(0, 5), (3, 0), (7,), (2, 3, 32), (3, 75)]:
        constant, trained = (gaussian(torch.Size(shape).numel()).reshape(shape) for _ in range(2))
        constant, trained = constant.to(dtype), (trained.roll(1, dims=-1) + 0.5).to(trained_dtype).requires_grad_()
        constant[:1].mul_(0)  # a cosine with nothing is 0, and does not train
        if len(shape) == 2 and trained.numel():
            trained.data[1, 0] = torch.nan
        found, expected = tk.cosine(constant, trained), reference.cosine(constant, trained)
        torch.testing.assert_close(found, expected, equal_nan=True)
        grad = torch.linspace(-1, 2, found.numel()).reshape(found.shape)
        found.backward(grad)
        torch.testing.assert_close(
            trained.grad, reference.cosine_backward(grad, constant, trained.detach()), equal_nan=True
        )


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_binarize_distributions(distribution):
    score = distribution(1001)
    for keep in (0, 300, 1001):
        values, cuts = reference.topk_threshold([score], [keep])
        assert torch.equal(tk.binarize(score, values[0], cuts[0]), reference.binarize(score, values[0], cuts[0]))


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_weight(dtype, result):
    for shape in SHAPES:
        score, value, cut = score_and_threshold(shape)
        weight = awkward_weight(shape, dtype)
        found = operators.mask_weight(weight, score, value, cut, result, True)
        assert same_bits(found, reference.mask_weight(weight, score, value, cut, result, True))
    for w, s in ((weight.t(), score.t()), (weight[::3, 1::2], score[::3, 1::2]), (weight, score.half())):
        assert same_bits(tk.mask_weight(w, s, value, cut), reference.mask_weight(w, s, value, cut))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_and_many_floats_are_converted_as_torch_does(dtype, monkeypatch):
    monkeypatch.setattr(mask_weight, "TILE", 16384)
    half = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    patterns = torch.randint(-(2**31), 2**31, (65_536,), generator=torch.Generator().manual_seed(0))
    floats = patterns.to(torch.int32).view(torch.float32)
    kept = torch.tensor(-torch.inf), torch.tensor(0)
    assert same_bits(tk.mask_weight(half, torch.zeros(65536), *kept, torch.float32), half.float())
    assert same_bits(tk.mask_weight(floats, torch.zeros(65536), *kept, dtype), floats.to(dtype))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("result", DTYPES)
def test_mask_weights(result, pack):
    shapes = [(33, 20), (), (0, 4), (256,), (7, 37), (16, 64)]
    scores = [score_and_threshold(shape)[0] for shape in shapes]
    weights = [awkward_weight(shape, torch.float32) for shape in shapes]
    cases = [
        (weights, scores),
        ([each.half() for each in weights], scores),
        (weights, [each.bfloat16() for each in scores]),
        ([weights[0].half(), *weights[1:]], scores),
        ([weights[0].t(), weights[5][1:, 3:]], [scores[0].t(), scores[5][1:, 3:]]),
        ([weights[3][1:]], [scores[3][1:]]),  # not aligned
    ]
    for w, s in cases:
        thresholds = reference.topk_threshold(s, [each.numel() // 3 for each in s])
        found = operators.mask_weights(w, s, *thresholds, result, pack)
        expected = reference.mask_weights(w, s, *thresholds, result, pack)
        assert same_bits(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("result", DTYPES)
def test_ste_backward_all(result):
    shapes = [(33, 20), (), (0, 4), (256,), (7, 37), (16, 64)]
    grads = [gaussian(torch.Size(shape).numel()).reshape(shape) for shape in shapes]
    weights = [awkward_weight(shape, torch.float32) for shape in shapes]
    for g, w in [
        (grads, weights),
        ([each.bfloat16() for each in grads], [each.half() for each in weights]),
        ([grads[0].half(), *grads[1:]], weights),
        ([grads[0].t(), grads[5][1:, 3:]], [weights[0].t(), weights[5][1:, 3:]]),
        ([grads[3][1:]], [weights[3][1:]]),  # not aligned
    ]:
        found = operators.ste_backward_all(g, w, result)
        assert same_bits(found, reference.ste_backward_all(g, w, result))


def check_thresholds(scores, keep, last=None, absolute=False):
    found = operators.topk_threshold_unchecked(scores, keep, last, absolute)
    expected = reference.topk_threshold_unchecked(scores, keep, None, absolute)
    assert same_bits(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    return found[0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_thresholds_cold_and_warm(distribution):
    sizes = (1, 600)
    scores = [distribution(n) for n in sizes for _ in range(2)]
    keep = [k for n in sizes for k in (n // 3 + 1, n)]
    found = check_thresholds(scores, keep)
    check_thresholds(scores, keep, found)
    # Near: the threshold has moved a little since.
    found = check_thresholds(scores, keep, found * 1.01, absolute=True)
    check_thresholds(scores, keep, found, absolute=True)


def unfavourable(n):
    """For a sample of 64: sorted, periodic in its parts, all but a few entries alike, two humps with exact ties."""
    part = torch.arange(n) % -(-n // 64)
    humps = torch.where(gaussian(n) > 0.5, 0.02, 0.0) + 1e-3 * gaussian(n) * (torch.arange(n) % 3 > 0)
    few = torch.full((n,), 0.5)
    few[::97] = gaussian(few[::97].numel())
    return [gaussian(n).sort().values, -gaussian(n).sort().values, part.float(), -part.float(), few, humps]


def served(scores, keep, last=None, absolute=False):
    """Of which matrices the window held the threshold, and few enough entries."""
    search = threshold.ThresholdSearch(scores, keep, absolute)
    search.open(last)
    search.count()
    state, rows = search.state, search.rows
    above, candidates = state[:, threshold_keys.ABOVE.value], state[:, threshold_keys.CANDIDATES.value]
    ties = state[:, threshold_keys.AT_FIRST.value] + state[:, threshold_keys.AT_SECOND.value]
    kept, room = rows[:, threshold_keys.KEEP.value], rows[:, threshold_keys.ROOM.value]
    return ((above < kept) & (kept <= above + candidates + ties) & (candidates <= room)).tolist()


def test_thresholds_of_nothing():
    last = tk.Thresholds(torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert tk.topk_threshold([], [], last=last).values.shape == (0,)


@soak
def test_thresholds_of_samples(monkeypatch):
    monkeypatch.setattr(threshold, "SAMPLES", 64)
    monkeypatch.setattr(threshold, "COMPACTED", 1)
    scores = unfavourable(1500)
    for keep in (1, 450, 1499, 1500):
        check_thresholds(scores, [keep] * len(scores))
    assert all(served(scores, [450] * len(scores)))


@soak
def test_thresholds_whose_window_missed_or_overflowed(monkeypatch):
    monkeypatch.setattr(threshold, "SAMPLES", 64)
    scores = [gaussian(1500), trained(1500), gaussian(1500)]
    keep = [450, 450, 450]
    monkeypatch.setattr(threshold, "sample_ranks", lambda size, kept: (1, 2))
    assert not any(served(scores, keep))
    check_thresholds(scores, keep)
    scores = [score.clone() for score in scores]
    monkeypatch.setattr(threshold, "sample_ranks", lambda size, kept: (0, 65))  # all of it: no room
    assert not served(scores, keep)[0]
    check_thresholds(scores, keep)
    scores = [score.clone() for score in scores]
    found = iter([(1, 2), (8, 40), (64, 64)])
    monkeypatch.setattr(threshold, "sample_ranks", lambda size, kept: next(found))
    check_thresholds(scores, keep)


@soak
def test_a_sample_of_the_usual_size_serves():
    scores = [gaussian(30_000), trained(30_000), initial(30_000), constant(30_000)]
    assert served(scores, [9_000] * 4) == [True] * 4
    check_thresholds(scores, [9_000] * 4)


def test_thresholds_where_the_last_one_is_far_or_no_number():
    for distribution in (trained, gaussian):
        check_thresholds([distribution(900)] * 5, [300] * 5, torch.tensor([0, -3, torch.inf, -torch.inf, torch.nan]))


def test_thresholds_at_the_ends():
    scores = [gaussian(300), gaussian(0), trained(300), gaussian(0), trained(300)]
    keep = [0, 0, 300, 0, 1]
    check_thresholds(scores, keep, check_thresholds(scores, keep))


@pytest.mark.parametrize("dtype", DTYPES)
def test_thresholds_of_other_types_and_strides(dtype):
    score = trained(1200).reshape(40, 30).to(dtype)
    check_thresholds([score, score.t(), score[::2, 1::3], score[0].expand(4, 30)], [400, 400, 77, 40])
    check_thresholds([score.reshape(-1)[3:], trained(300)], [500, 7], torch.tensor([0.02, 0.02]))


def test_a_window_with_too_many_entries_is_left():
    score = 1 + gaussian(2000) * 1e-4  # all inside
    check_thresholds([score, gaussian(500)], [600, 100], torch.tensor([1.0, 0.5]))


def key_of(value):
    return (1 if value > 0 else -1) * value.abs().view(torch.int32).item()


def candidates_of(score, keep, last, absolute=False):
    """What a warm search counted and compacted of one matrix: above, ties, the ties of each tile, and keys by index."""
    search = threshold.ThresholdSearch([score], [keep], absolute)
    search.open(last)
    search.count()
    counts = search.state[0]
    number = counts[threshold_keys.CANDIDATES.value].item()
    found = dict(zip(search.indices[:number].tolist(), search.keys[:number].tolist(), strict=True))
    assert len(found) == number
    assert not search.ties.any()
    at = (
        threshold_keys.ABOVE.value,
        threshold_keys.AT_FIRST.value,
        threshold_keys.AT_SECOND.value,
        threshold_keys.IS_NAN.value,
    )
    return counts[list(at)].tolist(), search.window_ties.tolist(), found


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    ("n", "dtype"), zip([1, 127, 128, 129, 300, 511, 512, 513, 640, 1000, 1100], 4 * DTYPES, strict=False)
)
def test_a_window_counts_every_entry_of_whole_and_other_parts(n, dtype, absolute, monkeypatch):
    monkeypatch.setattr(threshold, "COMPACTED", 1)
    monkeypatch.setattr(threshold, "REACH", 1 << 22)
    last = torch.tensor([0.25 if absolute else -0.25])
    score = ((gaussian(n) * 16).round() / 16 + gaussian(n).flip(0).mul(8).round() / 4096).to(dtype)
    score[-1] = last
    for some in (score, torch.cat([score, score])[n:] if n % 2 else score, torch.cat([score[:1], score])[1:]):
        rank = some.float().abs() if absolute else some.float()
        key = torch.where(rank < 0, -1, 1) * rank.abs().view(torch.int32)
        low, high = (key_of(last) + sign * (1 << 22) for sign in (-1, 1))
        tied = rank == last
        inside = (key >= low) & (key <= high) & ~tied
        counts, ties, found = candidates_of(some, 1, last, absolute)
        assert counts == [(key > high).sum(), tied.sum(), 0, 0]
        assert ties == [each.sum() for each in tied.split(threshold.TILE)]
        assert found == dict(zip(inside.nonzero().flatten().tolist(), key[inside].tolist(), strict=True))


def reach_of(scores, keep):
    return threshold.ThresholdSearch(scores, keep, False).reach.tolist()


@soak
def test_the_window_reaches_as_far_as_thresholds_move(monkeypatch):
    scores, keep = [1.5 + 0.1 * gaussian(2000), torch.zeros(2000)], [600, 5]
    monkeypatch.setattr(threshold, "REACH", 1 << 14)
    values = check_thresholds(scores, keep)
    assert reach_of(scores, keep) == [1 << 14] * 2  # that was cold
    reach = 1 << 14
    # Not at all, within the window, out of it, and so far that it takes in too many; each twice.
    for move in (0.0, 0.0, 2e-4, -2e-4, 5e-3, 1e-2, 0.02, 0.02, 1.0, 0.0, 0.0, 0.0):
        scores[0] += move
        search = threshold.ThresholdSearch(scores, keep, False)
        search.open(values)
        search.count()
        crowded = search.state[0, threshold_keys.CANDIDATES.value] > search.rows[0, threshold_keys.ROOM.value]
        before, values = values, check_thresholds(scores, keep, values)
        moved = abs(key_of(values[0]) - key_of(before[0]))
        reach = max(reach // 4, moved + moved // 4) if crowded else max(reach - reach // 32, 4 * moved)
        reach = min(max(reach, 1 << 10), 1 << 20)
        assert reach_of(scores, keep)[0] == reach
    assert reach_of(scores, keep)[1] < 1 << 14


def test_the_window_reaches_no_further_than_it_may():
    score, keep = 1.5 + 0.1 * gaussian(2000), [600]
    values = check_thresholds([score], keep)
    check_thresholds([score], keep, values * 8)
    assert reach_of([score], keep) == [1 << 20]
    for _ in range(6):
        check_thresholds([score], keep, values)
    assert reach_of([score], keep)[0] < 1 << 16  # crowded


@soak
def test_the_window_reaches_no_less_than_it_may():
    constant = torch.zeros(300)
    for _ in range(200):
        check_thresholds([constant], [5], torch.zeros(1))
    assert reach_of([constant], [5]) == [1 << 10]


@soak
def test_a_crowded_window_narrows_until_it_serves():
    """As after the first steps: few move so that they pass the threshold, and many lie where the window reaches."""
    score, keep = 1.5 + 1e-2 * gaussian(4000), [1200]
    values = check_thresholds([score], keep)
    inside = []
    for _ in range(6):
        score += 1e-5
        search = threshold.ThresholdSearch([score], keep, False)
        search.open(values)
        search.count()
        inside.append(search.state[0, threshold_keys.CANDIDATES.value].item())
        values = check_thresholds([score], keep, values)
    assert inside[0] > 4000 // 16
    assert 0 < inside[-1] < 4000 // 16


@pytest.mark.parametrize("keep", [40, 900, *(pytest.param(keep, marks=soak) for keep in (1, 5, 300, 899))])
def test_the_last_program_finds_a_cut_among_ties_in_all_shares(keep):
    """The ties are candidates, and lie in many tiles: none of them equals a key whose ties the window counts."""
    score = torch.where(torch.arange(3000) % 10 < 3, 1.0, gaussian(3000).abs() * 0.5)
    for last in (torch.tensor([1.0 + 1e-4]), torch.tensor([3.0]), None):
        check_thresholds([gaussian(700), score], [70, keep], last if last is None else torch.cat([last * 0, last]))


@pytest.mark.parametrize("keep", [1, 1023, 1024, 1025, 2900, 3000])
def test_ties_over_many_tiles(keep, monkeypatch):
    monkeypatch.setattr(threshold, "TILES_AT_ONCE", 4)
    for last in (None, torch.tensor([0.5])):
        found = threshold.topk_threshold_unchecked([torch.full((3000,), 0.5)], [keep], last)
        assert (found[0].item(), found[1].item()) == (0.5, keep)


def test_nan():
    bad = gaussian(700)
    bad[600] = torch.nan
    for last in (None, torch.tensor([0.0, 0.5])):
        check_thresholds([gaussian(300), bad], [100, 70], last)
        check_thresholds([bad, -bad], [0, 700], last)
    with pytest.raises(ValueError, match=r"scores\[1\] has NaN"):
        tk.topk_threshold([gaussian(300), bad], [100, 70])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_masked_embedding(ids, dtype, monkeypatch):
    monkeypatch.setattr(masked_embedding, "LARGEST_BLOCK", 16)
    monkeypatch.setattr(masked_embedding, "LARGEST_GRADIENT_BLOCK", 16)
    ids = ids[:2, :20] if ids.dim() == 2 else ids
    weight = awkward_weight((8, 37), dtype)
    score, value, cut = score_and_threshold((8, 37))
    for w, s in ((weight, score), (weight.t().contiguous().t(), score.half())):
        for absolute in (False, True):
            found = operators.masked_embedding(ids, w, s, value, cut, None, absolute)
            assert same_bits(found, reference.masked_embedding(ids, w, s, value, cut, None, absolute))
    grad = torch.randn(*ids.shape, 37, generator=torch.Generator().manual_seed(4)).to(dtype)
    for padding, result in ((None, torch.float32), (1, dtype)):
        found = operators.masked_embedding_backward(grad, ids, weight, padding, result)
        expected = reference.masked_embedding_backward(grad, ids, weight, padding, result)
        torch.testing.assert_close(found, expected, equal_nan=True)
        untouched = [row for row in range(8) if row == padding or row not in ids]
        assert same_bits(found[untouched], torch.zeros(len(untouched), 37, dtype=result))


@pytest.mark.parametrize("columns", [32, 37])
def test_ties_of_an_embedding_are_cut_anywhere(columns, monkeypatch):
    monkeypatch.setattr(masked_embedding, "LARGEST_BLOCK", 16)
    ids, weight, score = torch.tensor([5, 0, 7, 3, 4]), torch.ones(8, columns), torch.zeros(8, columns)
    for cut in (0, 1, 3 * columns + 7, 4 * columns, 5 * columns + 17, 8 * columns - 1, 8 * columns, 2**40):
        threshold = torch.tensor(0.0), torch.tensor(cut)
        found = operators.masked_embedding(ids, weight, score, *threshold)
        assert torch.equal(found, reference.masked_embedding(ids, weight, score, *threshold))


def test_an_id_out_of_range_gives_nan():
    score, value, cut = score_and_threshold((8, 37))
    found = operators.masked_embedding(torch.tensor([-1, 3, 8]), torch.ones(8, 37), score, value, cut)
    assert found.isnan().all(dim=1).tolist() == [True, False, True]
    grad = operators.masked_embedding_backward(
        torch.ones(2, 37), torch.tensor([-1, 8]), torch.ones(8, 37), None, torch.float32
    )
    assert not grad.any()


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def close(found, expected, dtype):
    """To the rounding of the type, of the largest entries: a sum may cancel."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(
        found.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "outputs", "length"),
    [(1, 33, 70), (17, 100, 130), (64, 16, 300), (70, 5, 3), (16, 32, 512), (32, 64, 128), (64, 64, 256)],
)
def test_masked_matmul(rows, outputs, length, dtype):
    score, value, cut = score_and_threshold((outputs, length))
    weight = gaussian(outputs * length).flip(0).reshape(outputs, length)
    x = torch.randn(rows, length, generator=torch.Generator().manual_seed(1)).to(dtype)
    grad = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(2)).to(dtype)
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(3)).to(dtype)
    strided = weight.t().contiguous().t().to(dtype), score.t().contiguous().t(), x.t().contiguous().t()
    for w, s, each_x, b, absolute in ((weight, score, x, bias, False), (*strided, None, True)):
        double = [t.double() for t in (each_x, reference.mask_weight(w, s, value, cut, dtype, absolute), bias, grad)]
        expected = double[0] @ double[1].t() + (double[2] if b is not None else 0)
        close(operators.masked_matmul(each_x, w, s, value, cut, b, absolute), expected.to(dtype), dtype)
        found = operators.masked_matmul_backward_x(grad, w, s, value, cut, absolute)
        close(found, (double[3] @ double[1]).to(dtype), dtype)
        for result in (torch.float32, dtype):
            found = operators.masked_matmul_backward_score(grad, each_x, w, result)
            close(found, (double[3].t() @ double[0] * w.double()).to(result), result)


def test_masked_matmul_of_any_stride_and_many_rows():
    score, value, cut = score_and_threshold((5, 3))
    weight = gaussian(15).flip(0).reshape(5, 3)
    x = torch.randn(2_049, 3, generator=torch.Generator().manual_seed(1))
    masked = reference.mask_weight(weight, score, value, cut)
    close(operators.masked_matmul(x, weight, score, value, cut), x @ masked.t(), torch.float32)
    grad = torch.ones(1, 1).expand(7, 5)  # as of a sum: one entry for all
    columns, rows = x[:14].t().contiguous().t()[::2], torch.randn(7, 6)[:, ::2]
    for each in (columns, rows, x[:1].expand(7, 3)):
        wide = weight.repeat_interleave(2, 1)[:, ::2], score.repeat_interleave(2, 0)[::2]
        close(operators.masked_matmul(each, *wide, value, cut), each @ masked.t(), torch.float32)
        close(operators.masked_matmul_backward_x(grad, *wide, value, cut), grad @ masked, torch.float32)
        found = operators.masked_matmul_backward_score(grad, each, wide[0], torch.float32)
        close(found, grad.t() @ each * weight, torch.float32)


def test_ties_are_cut_anywhere_in_a_tile():
    outputs, length = 35, 300
    weight, score = torch.ones(outputs, length), torch.zeros(outputs, length)
    x, grad = torch.ones(2, length), torch.ones(2, outputs)
    numel = outputs * length
    for cut in (0, 1, length - 1, length, 5 * length + 131, 16 * length, 20 * length + 257, numel - 1, numel, 2**40):
        threshold = torch.tensor(0.0), torch.tensor(cut)
        kept = reference.mask_weight(weight, score, *threshold)
        assert torch.equal(operators.masked_matmul(x, weight, score, *threshold), x @ kept.t())
        assert torch.equal(operators.masked_matmul_backward_x(grad, weight, score, *threshold), grad @ kept)


def test_masked_matmul_of_nothing():
    threshold = torch.tensor(0.0), torch.tensor(0)
    for rows, outputs, length in ((0, 5, 7), (3, 0, 7), (3, 5, 0)):
        weight, bias = torch.ones(outputs, length), torch.arange(float(outputs))
        found = operators.masked_matmul(torch.ones(rows, length), weight, weight, *threshold, bias)
        assert torch.equal(found, length + bias.expand(rows, outputs))
        found = operators.masked_matmul_backward_x(torch.ones(rows, outputs), weight, weight, *threshold)
        assert torch.equal(found, torch.full((rows, length), float(outputs)))


def test_pruned_weights_have_no_part_in_a_product():
    score, value, cut = score_and_threshold((20, 30))
    weight = torch.where(reference.binarize(score, value, cut), 1.0, torch.inf)
    assert operators.masked_matmul(torch.ones(3, 30), weight, score, value, cut).isfinite().all()


def test_a_long_sum_is_split_and_always_the_same(monkeypatch):
    score, value, cut = score_and_threshold((8, 1000))
    weight, x = gaussian(8000).reshape(8, 1000), gaussian(2000).reshape(2, 1000)
    started = []
    real = masked_linear.launch
    record = lambda kernel, *rest, **options: (started.append(kernel.__name__), real(kernel, *rest, **options))  # noqa: E731
    monkeypatch.setattr(masked_linear, "launch", record)
    monkeypatch.setattr(masked_linear, "PARTS_AT_ONCE", 2)
    found = [operators.masked_matmul(x, weight, score, value, cut, gaussian(8)) for _ in range(2)]
    assert same_bits(*found)
    assert started == ["product_kernel", "sum_kernel"] * 2
    monkeypatch.setattr(masked_linear, "ENOUGH_TILES", 1)
    close(operators.masked_matmul(x, weight, score, value, cut, gaussian(8)), found[0], torch.float32)
    assert started[4:] == ["product_kernel"]


@pytest.mark.parametrize("outputs", [6, 0])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,), (65,)])
def test_masked_linear(leading, outputs):
    score, value, cut = score_and_threshold((outputs, 9))
    weight, bias = gaussian(outputs * 9).flip(0).reshape(outputs, 9), torch.randn(outputs, requires_grad=True)
    x = torch.randn(*leading, 9, requires_grad=True)
    score.requires_grad_()
    y = tk.masked_linear(x, weight, score, value, cut, bias)
    expected = torch.nn.functional.linear(x, tk.mask_weight(weight, score, value, cut), bias)
    assert ("matmul" in y.grad_fn.name()) == (leading in [(), (5,), (2, 3)])
    grad = torch.randn(y.shape)
    torch.testing.assert_close(y, expected)
    inputs = x, score, bias
    for a, b in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_masked_linear_under_autocast_and_compiled():
    score, value, cut = score_and_threshold((6, 9))
    weight, x = gaussian(54).reshape(6, 9), torch.randn(4, 9)
    compiled = torch.compile(tk.masked_linear, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        y = tk.masked_linear(x, weight, score, value, cut)
        assert same_bits(compiled(x, weight, score, value, cut), y)
    assert y.dtype == torch.bfloat16
    close(y, reference.masked_matmul(x.bfloat16(), weight, score, value, cut), torch.bfloat16)


# Older interpreters multiply, round and add; a GPU rounds a fused multiply-add once.
fma_is_exact = hasattr(libtriton.interpreter, "fma_fp32")


@pytest.mark.skipif(not fma_is_exact, reason="this Triton's interpreter rounds a fused multiply-add twice")
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("types", [(DTYPES[i], DTYPES[i - 2], DTYPES[i - 1]) for i in range(3)])
def test_mask_adamw_over_several_steps(types, absolute):
    found = a_step(*types)
    for step in range(1, 4):
        found[0] = gradients(types[0], step)
        check_step(found, rates_of(step), renew=step != 2, absolute=absolute)


@pytest.mark.skipif(not fma_is_exact, reason="this Triton's interpreter rounds a fused multiply-add twice")
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.0)])
def test_mask_adamw_wherever_the_thresholds_go(betas):
    for values in (0.02, 3.0, torch.nan):
        found = a_step(torch.float32, torch.float32, torch.bfloat16)
        found[6].fill_(values)
        check_step(found, [1.0, 0.01, 0.3, 1.0], betas)
    found = a_step(torch.float32, torch.float32, torch.float32)
    for i in (3, 4, 0):  # nothing moves: all ties stay
        for each in found[i]:
            each.zero_()
    check_step(found, [1.0, 0.01, 0.3, 1.0], betas)
    check_step(found, [1.0, 0.01, 0.3, 1.0], betas, eps=0.0)  # 0 / 0


@pytest.mark.parametrize("absolute", [False, True])
def test_thresholds_of_a_step_that_moves_nothing(absolute):
    """Whatever an interpreter makes of a fused multiply-add: only moments change."""
    step = a_step(torch.float32, torch.float32, torch.float32)
    found, rates = copy.deepcopy(step), torch.tensor([0.8, 0.0, 0.3, 1.0])
    for values in (0.02, -1.0, torch.nan):
        found[6].fill_(values)
        operators.mask_adamw(*found, rates, 0.9, 0.999, 1e-8, True, absolute)
        reference.mask_adamw(*step, rates, 0.9, 0.999, 1e-8, True, absolute)
        for position in (2, 5):
            assert all(same_bits(a, b) for a, b in zip(found[position], step[position], strict=True))
        assert same_bits(found[6], step[6])
        assert torch.equal(found[7], step[7])


def test_steps_share_a_window_that_follows_them_and_one_that_is_not_taken_leaves_it():
    found = a_step(torch.float32, torch.float32, torch.float32)
    scores, keep = found[2], found[8]
    reaches = []
    for step, factor in enumerate((1.0, torch.nan, 1.0, 1.0), 1):
        rates = torch.tensor([factor, 1e-6, 0.3, 1.0])
        operators.mask_adamw(*found, rates, 0.9, 0.999, 1e-8)
        reaches.append(reach_of(scores, keep))
        values, cuts = reference.topk_threshold(scores, keep)
        assert same_bits(found[6], values), step
        assert torch.equal(found[7], cuts)
    assert reaches[0] != [threshold.REACH] * len(scores)
    assert reaches[1] == reaches[0]
    assert reaches[2] != reaches[1]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("passed", [-3, 40, *(pytest.param(passed, marks=soak) for passed in (-40, 0, 3))])
def test_weights_between_the_last_threshold_and_the_new_are_masked_again(passed, absolute, monkeypatch):
    """The scores stay where they are: the last threshold is that of some more or some fewer entries."""
    monkeypatch.setattr(threshold, "REACH", 1 << 16)
    step = a_step(torch.float32, torch.float32, torch.float16, [(50, 40), (40, 50), (1999,), (600,), (2000,)])
    step[2][0].copy_((1.5 + 0.1 * gaussian(2000)).reshape(50, 40))
    step[2][1].copy_((2 + 0.01 * (20 * gaussian(2000)).round()).reshape(40, 50))  # some 35 a score
    step[2][2].copy_(torch.where(torch.arange(1999) % 3 > 0, 0.5, step[2][0].flatten()[:1999]))
    step[2][4].copy_(step[2][0].flatten())
    step[8][:] = [600, 600, 1000, 0, 600]
    ranked = [each.flatten().sort(descending=True).values for each in step[2]]
    if absolute:
        for each in step[2]:
            each.view(-1)[::2].neg_()
    step[6] = torch.stack([each[keep - 1 + passed] for each, keep in zip(ranked, step[8], strict=True)])
    step[6][3] = 0.0123  # no tie of which would have weights masked again, of which none is to be kept
    step[2][4][1000] = torch.nan
    step[7] = torch.zeros_like(step[7])
    assert served(step[2], step[8], step[6], absolute)[::2] == [True] * 3
    assert passed == 40 or served(step[2], step[8], step[6], absolute)[1]
    found = copy.deepcopy(step)
    operators.mask_adamw(*found, torch.tensor([0.8, 0.0, 0.3, 1.0]), 0.9, 0.999, 1e-8, True, absolute)
    for weight, score, masked, keep, value, cut in zip(*found[1:3], found[5], found[8], *found[6:8], strict=True):
        expected = reference.topk_threshold_unchecked([score], [keep], None, absolute)
        assert same_bits(value, expected[0][0])
        assert cut == expected[1][0]
        assert same_bits(masked, reference.mask_weight(weight, score, value, cut, torch.float16, absolute))
    assert not found[5][3].any()
    assert not found[5][4].any()


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, -torch.inf])
def test_a_step_that_is_not_finite_writes_nothing(factor):
    for renew in (True, False):
        check_step(a_step(torch.float32, torch.float32, torch.float16), [factor, 0.01, 0.3, 1.0], renew=renew)


@pytest.mark.parametrize(
    "factor",
    [
        pytest.param(0.8, marks=pytest.mark.skipif(not fma_is_exact, reason="it rounds a fused multiply-add twice")),
        torch.nan,
    ],
)
def test_gradients_in_the_place_of_masked_weights(factor):
    found = a_step(torch.float32, torch.float32, torch.float32)
    for masked, grad in zip(found[5], found[0], strict=True):
        masked.copy_(grad)
    found[0] = [found[0][0], *found[5][1:]]  # the first has a memory of its own
    found[5][0].copy_(reference.mask_weight(found[1][0], found[2][0], found[6][0], found[7][0]))
    check_step(found, [factor, 0.01, 0.3, 1.0])


@pytest.mark.skipif(not fma_is_exact, reason="this Triton's interpreter rounds a fused multiply-add twice")
def test_mask_adamw_of_mixed_types_and_rows():
    found = a_step(torch.float32, torch.float32, torch.float16)
    found[0][0], found[1][3] = found[0][0].bfloat16(), found[1][3].half()
    found[0][4], found[1][4] = found[0][4].t().contiguous().t(), found[1][4].t().contiguous().t()
    found[2][3], found[5] = torch.cat([found[2][3], torch.zeros(1)])[1:], [each.clone() for each in found[5]]
    check_step(found, [1.0, 0.01, 0.3, 1.0])
    found[3][4] = found[3][4].t().contiguous().t()
    with pytest.raises(ValueError, match=r"means\[4\] has strides \(1, 7\) but must be contiguous"):
        check_step(found, [1.0, 0.01, 0.3, 1.0])


@pytest.mark.skipif(not fma_is_exact, reason="this Triton's interpreter rounds a fused multiply-add twice")
@pytest.mark.parametrize("kept", [(3, 4), ()])
def test_masked_weights_that_are_not_asked_for(kept):
    found = a_step(torch.float32, torch.float32, torch.float16)
    found[5] = [each if i in kept else each.new_empty(0) for i, each in enumerate(found[5])]
    check_step(found, [0.8, 0.01, 0.3, 1.0])


@pytest.mark.skipif(not fma_is_exact, reason="this Triton's interpreter rounds a fused multiply-add twice")
def test_mask_adamw_of_gradients_of_some_rows():
    found = a_step(torch.float32, torch.float32, torch.float32)
    matrix = next(i for i, weight in enumerate(found[1]) if weight.dim() == 2 and len(weight) > 4)
    grad_rows = [torch.empty(0, dtype=torch.int32) for _ in found[0]]
    grad_rows[matrix] = torch.full((len(found[1][matrix]),), reference.NO_MOMENTS, dtype=torch.int32)
    grad_rows[matrix][2:4] = torch.tensor([1, 0])
    found[0][matrix] = found[0][matrix][:2].clone()
    for each in (found[3], found[4]):
        each[matrix].zero_()
    check_step(found, [1.0, 0.01, 0.3, 1.0], grad_rows=grad_rows)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_patterns(n, m):
    score = gaussian(18 * m).mul(3).round().reshape(6, 3 * m)  # with ties
    score[0, ::7], score[1, ::5], score[2, ::3], score[3] = torch.nan, torch.inf, -torch.inf, -0.0
    score[4] = score[3].abs()
    weight = awkward_weight(score.shape, torch.float32)
    for dtype, result, absolute in zip(DTYPES, DTYPES[::-1], (False, True, False), strict=True):
        arguments = (score.to(dtype), n, m, absolute)
        assert torch.equal(operators.pattern_mask(*arguments), reference.pattern_mask(*arguments))
        arguments = (weight.to(result), score.to(dtype), n, m, dtype, absolute)
        assert same_bits(operators.pattern_weight(*arguments), reference.pattern_weight(*arguments))
    strided = score.t().contiguous().t()
    assert torch.equal(operators.pattern_mask(strided, n, m), reference.pattern_mask(score, n, m))
    assert operators.pattern_mask(score[:0], n, m).shape == (0, 3 * m)


GROUPED = [(3, 40), (1, 80), (0, 40), (2, 120)]


def check_step_of_a_pattern(problem, grads, count=1, **options):
    """Take a step by the kernel; it has the bits of the definition, or, where fma is rounded twice, its masks."""
    defined = copy.deepcopy(problem)
    problem.step(operators.pattern_adamw, grads, count, **options)
    with exact_roots():
        defined.step(reference.pattern_adamw, grads, count, **options)
    if fma_is_exact:
        problem.assert_same(defined)
        return
    for name in ("scores", "means", "squares"):
        torch.testing.assert_close(getattr(problem, name), getattr(defined, name), rtol=1e-5, atol=1e-8)
    for weight, score, masked in zip(problem.weights, problem.scores, problem.masked, strict=True):
        if masked.numel():
            options = (*problem.pattern, masked.dtype, problem.absolute)
            assert same_bits(masked, reference.pattern_weight(weight, score, *options))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 5), (7, 8), (3, 10)])
def test_steps_of_a_pattern(pattern, absolute):
    problem = Problem(absolute=absolute, pattern=pattern, shapes=GROUPED)
    for count in range(1, 4):
        before = copy.deepcopy(problem)
        options = {"factor": torch.nan if count == 2 else 0.7, "decay": 0.1 * (count % 2), "betas": (0.9, 0.99)}
        check_step_of_a_pattern(problem, gradients_of_groups(count, shapes=GROUPED), count, **options)
        if count == 2:
            problem.assert_same(before)
    for masked in problem.masked:
        assert (masked.reshape(-1, pattern[1]) != 0).sum(1).eq(pattern[0]).all()


@pytest.mark.parametrize(("weight", "grad", "masked"), [(DTYPES[i], DTYPES[i - 2], DTYPES[i - 1]) for i in range(3)])
def test_types_of_steps_of_a_pattern(weight, grad, masked):
    problem, grads = Problem(weight, masked, shapes=GROUPED), gradients_of_groups(1, grad, GROUPED)
    grads[0] = grads[0].float()  # beside gradients of another type
    problem.masked[3] = torch.empty(0, dtype=masked)  # not asked for
    check_step_of_a_pattern(problem, grads)
    problem.means[0] = problem.means[0].t().contiguous().t()
    with pytest.raises(ValueError, match=r"pattern_adamw: means\[0\] has strides \(1, 3\) but must be contiguous"):
        check_step_of_a_pattern(problem, grads)


@pytest.mark.parametrize("masked", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.8, torch.inf])
def test_gradients_in_the_place_of_masked_weights_of_a_pattern(factor, masked):
    problem, grads = Problem(masked=masked, shapes=GROUPED), gradients_of_groups(1, masked, shapes=GROUPED)
    grads[0] = grads[0].float()  # apart, and maybe of another type
    check_step_of_a_pattern(problem, grads)
    before = copy.deepcopy(problem)
    for i in (1, 3):
        problem.masked[i].copy_(grads[i])
    problem.step(operators.pattern_adamw, [grads[0], *problem.masked[1:]], 2, factor=factor)
    before.step(operators.pattern_adamw, grads, 2, factor=factor)
    problem.assert_same(before)


def test_masked_weights_of_two_types_are_refused():
    problem, grads = Problem(shapes=GROUPED), gradients_of_groups(1, shapes=GROUPED)
    problem.masked[1] = problem.masked[1].bfloat16()
    message = "_adamw: masked has torch.float32 and torch.bfloat16 but must have one dtype"
    with pytest.raises(ValueError, match=f"pattern{message}"):
        problem.step(operators.pattern_adamw, grads, 1)
    parts = a_step(torch.float32, torch.float32, torch.float32)
    parts[5][1] = parts[5][1].bfloat16()
    with pytest.raises(ValueError, match=f"mask{message}"):
        operators.mask_adamw(*parts, torch.tensor([1.0, 0.01, 0.3, 1.0]), 0.9, 0.999, 1e-8)


def test_gradient_norm():
    for grad_type in DTYPES:
        for weight_type in DTYPES:
            grads, weights = a_step(grad_type, weight_type, torch.float32)[:2]
            found = operators.gradient_norm(grads, weights)
            torch.testing.assert_close(found, reference.gradient_norm(grads, weights), rtol=1e-7, atol=0)
            assert same_bits(found, operators.gradient_norm(grads, weights))
    assert operators.gradient_norm([torch.tensor([3e30, 4e30])], [torch.tensor([1e5, 1e5])]) == pytest.approx(5e35)
    assert operators.gradient_norm([torch.tensor([torch.inf, 1.0])], [torch.tensor([0.0, 1.0])]).isnan()
    assert operators.gradient_norm([torch.zeros(0)], [torch.zeros(0)]) == 0


def test_the_launches_of_a_step_do_not_grow_with_the_matrices(monkeypatch):
    started = []
    for module in (common, mask_adamw, mask_weights, ste_backward, threshold):
        real = module.launch
        record = lambda kernel, *rest, real=real, **options: (started.append(kernel), real(kernel, *rest, **options))  # noqa: E731
        monkeypatch.setattr(module, "launch", record)
    found = a_step(torch.float32, torch.float32, torch.float32)
    several = []
    for some in (found, [each[3:4] for each in found]):
        started.clear()
        operators.gradient_norm(*some[:2])
        operators.mask_adamw(*some, torch.tensor([1.0, 0.01, 0.3, 1.0]), 0.9, 0.999, 1e-8)
        several.append(len(started))
    assert several[0] == several[1]
    # The addresses and the norm; the addresses, the window and the step; four digits and the ties; the masked weights.
    assert several[0] == 2 + 3 + 5 + 1
    monkeypatch.setattr(pattern_adamw, "launch", record)
    started.clear()
    Problem(shapes=GROUPED).step(operators.pattern_adamw, gradients_of_groups(1, shapes=GROUPED), 1)
    assert len(started) == 2


def test_a_table_is_made_again_on_another_stream_but_not_while_a_graph_captures(monkeypatch):
    made = []

    def find():
        return common.table(("test", 1), lambda: made.append(1) or common.Table([[1]], [1], torch.device("cpu")))

    first = find()
    assert find() is first
    monkeypatch.setattr(common, "_stream", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert find() is first
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert find() is not first
    assert len(made) == 2


def test_addresses_of_many_tensors(monkeypatch):
    monkeypatch.setattr(common, "ADDRESSES_AT_ONCE", 2)
    tensors = [torch.zeros(3, dtype=dtype) for dtype in (*DTYPES, *DTYPES)][:5]
    assert common.addresses(tensors).tolist() == [each.data_ptr() for each in tensors]
