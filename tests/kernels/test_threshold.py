"""The fast selection against its definition, and the definition against a sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.ops import threshold

from .scores import DISTRIBUTIONS, gaussian, same_bits, trained


def mask_by_sorting(score: torch.Tensor, keep: int) -> torch.Tensor:
    """The mask from its meaning alone: the first ``keep`` entries of a stable descending sort."""
    order = score.float().reshape(-1).add(0.0).sort(descending=True, stable=True).indices
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.reshape(score.shape)


def keeps(n: int) -> list[int]:
    return sorted({0, min(1, n), n // 3, int(0.7 * n), max(n - 1, 0), n})


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("n", [1, 2, 7, 9, 255, 4095, 40_001, 300_001])
def test_equals_the_definition(distribution, ranking, n):
    score = distribution(n)
    counts = keeps(n)
    found = tk.topk_threshold([score] * len(counts), counts, ranking=ranking)
    expected = reference.topk_threshold([score] * len(counts), counts, ranking == "abs")
    assert same_bits(found.values, expected.values)
    assert torch.equal(found.cuts, expected.cuts)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_definition_is_a_stable_sort(distribution):
    score = distribution(5000).reshape(50, 100)
    for keep in keeps(5000):
        thresholds = reference.topk_threshold([score], [keep])
        mask = reference.binarize(score, thresholds.values[0], thresholds.cuts[0])
        assert torch.equal(mask, mask_by_sorting(score, keep))


def test_many_matrices_at_once_of_all_sizes():
    scores = [trained(n) for n in (0, 1, 31, 33_000, 1_200_000)] + [gaussian(65_536).reshape(256, 256)]
    keep = [0, 1, 20, 9_900, 360_000, 19_661]
    found = tk.topk_threshold(scores, keep)
    expected = reference.topk_threshold(scores, keep)
    assert same_bits(found.values, expected.values)
    assert torch.equal(found.cuts, expected.cuts)


def sampled_positions(n: int) -> list[int]:
    """Where the C++ kernel samples n scores, by the generator in csrc/cpu/threshold_kernel.cpp."""
    samples, random, positions = int(0.5 * n ** (2 / 3)), 0x9E3779B97F4A7C15, []
    for i in range(samples):
        random = (random * 6364136223846793005 + 1442695040888963407) % 2**64
        begin, end = i * n // samples, (i + 1) * n // samples
        positions.append(begin + (random >> 33) % (end - begin))
    return positions


@pytest.mark.parametrize("seen", [-100.0, 100.0])
def test_a_sample_that_misleads_entirely(seen):
    score = trained(100_000)
    score[sampled_positions(100_000)] = seen
    found = tk.topk_threshold([score, gaussian(50_000)], [30_000, 7])
    expected = reference.topk_threshold([score, gaussian(50_000)], [30_000, 7])
    assert same_bits(found.values, expected.values)
    assert torch.equal(found.cuts, expected.cuts)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("n", [9, 40_001, 300_001])
def test_thresholds_that_may_be_near_change_no_result(distribution, ranking, n):
    score = distribution(n)
    counts = keeps(n)
    expected = reference.topk_threshold([score] * len(counts), counts, ranking == "abs")
    near = expected.values.nan_to_num()
    for last in (near, near + 1e-3, near * -1e6, near.fill_(torch.nan), near.fill_(torch.inf)):
        thresholds = tk.Thresholds(last, torch.zeros(len(counts), dtype=torch.int64))
        found = tk.topk_threshold([score] * len(counts), counts, ranking=ranking, last=thresholds)
        assert same_bits(found.values, expected.values)
        assert torch.equal(found.cuts, expected.cuts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_are_compared_exactly(dtype):
    score = gaussian(20_000).to(dtype)
    found = tk.topk_threshold([score], [6000])
    assert found.values.dtype == torch.float32
    assert found.values[0].to(dtype).float() == found.values[0]
    assert torch.equal(tk.binarize(score, found.values[0], found.cuts[0]), mask_by_sorting(score, 6000))


def test_a_strided_score_is_ranked_in_logical_order():
    score = torch.randint(0, 3, (60, 50), generator=torch.Generator().manual_seed(0)).float()
    for view in (score.t(), score[::2, 1::3], score[0].expand(4, 50)):
        found = tk.topk_threshold([view], [77 if view.numel() > 77 else 5])
        again = tk.topk_threshold([view.clone(memory_format=torch.contiguous_format)], [77])
        assert torch.equal(found.values, again.values)
        assert torch.equal(found.cuts, again.cuts)


def test_conventions():
    found = tk.topk_threshold([torch.ones(3), torch.zeros(0, 4), torch.tensor([-0.0, -0.0])], [0, 0, 1])
    assert found.values.tolist() == [torch.inf, torch.inf, 0.0]
    assert not found.values[2].signbit()
    assert found.cuts.tolist() == [0, 0, 1]
    assert tk.topk_threshold([], []).values.shape == (0,)


@pytest.mark.parametrize("position", [0, 17, 99_999])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("keep", [0, 500, 100_000])
def test_nan_is_an_error_that_names_the_matrix(position, sign, keep):
    score = gaussian(100_000)
    score[position] = sign * torch.nan
    for ranking in ("signed", "abs"):
        with pytest.raises(ValueError, match=r"scores\[1\] has NaN"):
            tk.topk_threshold([gaussian(100_000), score], [5, keep], ranking=ranking)
        last = tk.Thresholds(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]))
        with pytest.raises(ValueError, match=r"scores\[1\] has NaN"):
            tk.topk_threshold([gaussian(100_000), score], [5, keep], ranking=ranking, last=last, check_nan=False)
        found = threshold.unchecked([gaussian(100_000), score], [5, keep], last.values, ranking == "abs")
        expected = reference.topk_threshold_unchecked([gaussian(100_000), score], [5, keep], None, ranking == "abs")
        assert all(same_bits(a.float(), b.float()) for a, b in zip(found, expected, strict=True))


def test_gradients_do_not_flow():
    score = gaussian(10).requires_grad_()
    assert not tk.topk_threshold([score], [3]).values.requires_grad


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
    repeats=st.integers(1, 400),
    share=st.floats(0, 1),
    ranking=st.sampled_from(["signed", "abs"]),
)
def test_every_mask_has_exactly_keep_ones(values, repeats, share, ranking):
    score = torch.tensor(values, dtype=torch.float32).repeat(repeats)
    keep = round(share * score.numel())
    thresholds = tk.topk_threshold([score], [keep], ranking=ranking)
    mask = tk.binarize(score, thresholds.values[0], thresholds.cuts[0], ranking=ranking)
    assert int(mask.sum()) == keep
    assert torch.equal(mask, mask_by_sorting(score.abs() if ranking == "abs" else score, keep))
