"""The report's statistics against figures worked by hand."""

import pytest

from tamt.report.statistics import paired_difference, rank_correlation, share_won_back, summarise


def test_mean_and_sample_deviation() -> None:
    assert summarise([1.0, 2.0, 3.0, 6.0]).mean == 3.0
    assert summarise([1.0, 2.0, 3.0, 6.0]).std == pytest.approx((14 / 3) ** 0.5)  # (4 + 1 + 0 + 9) / (4 − 1)
    assert summarise([1.0]).std is None


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    found = paired_difference([(mask, 2.0) for mask in (0, 1, 2) for _ in range(3)])
    assert (found.mean, found.interval, found.pairs, found.masks) == (2.0, (2.0, 2.0), 9, 3)


def test_masks_are_drawn_before_runs() -> None:
    # Two masks of two runs each, all alike within a mask: a draw has mean −1, 0 or 1 with chances 1/4, 1/2, 1/4, so
    # that 95 % reach from −1 to 1. Runs drawn as if independent would nearly never all be of one mask.
    found = paired_difference([(0, -1.0)] * 20 + [(1, 1.0)] * 20)
    assert found.mean == 0
    assert found.interval == (-1.0, 1.0)


def test_the_interval_of_independent_pairs() -> None:
    # One mask, five pairs, two values: the mean of a draw is k / 5, k binomial(5, 2/5). P(k = 0) = 0.078 > 0.025, and
    # P(k = 5) = 0.010 < 0.025 < P(k >= 4) = 0.087.
    found = paired_difference([(0, 1.0), (0, 1.0), (0, 0.0), (0, 0.0), (0, 0.0)])
    assert found.interval == pytest.approx((0.0, 0.8))
    assert found == paired_difference([(0, 1.0), (0, 1.0), (0, 0.0), (0, 0.0), (0, 0.0)])


def test_masks_with_unlike_numbers_of_runs() -> None:
    found = paired_difference([(0, 1.0), (1, 3.0), (1, 3.0), (1, 3.0), (1, 3.0)])
    assert found.mean == pytest.approx(2.6)
    assert found.interval == (1.0, 3.0)  # a draw of the first mask alone, or of the second


def test_no_interval_of_few_pairs() -> None:
    found = paired_difference([(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)])
    assert (found.mean, found.interval, found.pairs) == (2.5, None, 4)


def test_rank_correlation_by_hand() -> None:
    # ρ = 1 − 6 Σd² / (n (n² − 1)); d = 0, 0, 0, 1, −1 gives 1 − 12 / 120.
    found = rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 50, 40])
    assert found.rho == pytest.approx(0.9)
    # |ρ| of 5 ranks reaches 0.9 for 5 of the 120 orders at each end: 10 / 120.
    assert found.p == pytest.approx(10 / 120, abs=0.01)
    assert rank_correlation([5, 4, 3, 2, 1], [1, 2, 3, 4, 5]).rho == pytest.approx(-1)
    # Ties take their mean rank: 1, 2.5, 2.5, 4, 5 against 1 to 5: Σxy = 9.5, √(Σx² Σy²) = √(9.5 · 10).
    assert rank_correlation([1, 2, 2, 3, 4], [1, 2, 3, 4, 5]).rho == pytest.approx(9.5 / 95**0.5)


def test_the_interval_of_a_rank_correlation() -> None:
    clear = rank_correlation(range(20), range(20)).interval
    assert clear == (pytest.approx(1), pytest.approx(1))
    mixed = rank_correlation(range(6), [1, 0, 3, 2, 5, 4])
    assert mixed.interval is not None
    assert mixed.interval[0] < mixed.rho < mixed.interval[1] <= 1


def test_the_share_won_back_by_hand() -> None:
    # Means over runs: 2 of 4 and 0 of 1, so 2 of 5 over both tasks.
    found = share_won_back([[(1, 3), (3, 5)], [(0, 1), (0, 1)]])
    assert found is not None
    assert found.share == pytest.approx(0.4)
    # Of these tasks, runs alone vary: (1, 3) twice to (3, 5) twice, beside (0, 1) twice.
    assert found.these_tasks == (pytest.approx(1 / 4), pytest.approx(3 / 6))
    # Of such tasks, the second one may be drawn twice, or the first: four times (3, 5) is rarer than 1 in 40.
    assert found.such_tasks == (pytest.approx(0), pytest.approx(10 / 18))


def test_one_run_or_one_task_has_no_interval_of_the_share_won_back() -> None:
    one_run = share_won_back([[(1, 3), (3, 5)], [(0, 1)]])
    assert one_run is not None
    assert one_run.these_tasks is None
    assert one_run.such_tasks is not None
    one_task = share_won_back([[(1, 3), (3, 5)]])
    assert one_task is not None
    assert one_task.these_tasks is not None
    assert one_task.such_tasks is None


def test_nothing_is_won_back_where_nothing_was_lost() -> None:
    assert share_won_back([[(1, 1)], [(1, -1)]]) is None


def test_no_rank_correlation_of_few_masks_or_of_a_constant() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]).rho is None
    assert rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]).rho is None
