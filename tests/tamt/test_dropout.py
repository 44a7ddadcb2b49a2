"""Dropout is that of torch but for the numbers that are drawn."""

import pytest
import torch

from tamt.models.dropout import Dropout, drop


@pytest.mark.parametrize(("p", "dtype"), [(0.1, torch.float32), (0.5, torch.bfloat16), (0.37, torch.float64)])
def test_drops_the_share_that_is_asked_for_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.full((999, 101), 2.0, dtype=dtype, requires_grad=True)
    dropped = drop(x, p)
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    kept = dropped[dropped != 0].double()
    torch.testing.assert_close(
        kept, torch.full_like(kept, 2 / (1 - p)), rtol=0.005 if dtype == torch.bfloat16 else 1e-4, atol=0
    )
    (dropped * 3).sum().backward()
    assert torch.equal(x.grad == 0, dropped == 0)
    torch.testing.assert_close(x.grad, dropped.detach() * 1.5)


def test_neighbours_and_calls_are_drawn_apart():
    torch.manual_seed(0)
    first, second = (drop(torch.ones(4, 50_000), 0.5).flatten() == 0 for _ in range(2))
    for distance in (1, 2, 3, 4, 8):
        agree = (first[distance:] == first[:-distance]).double().mean().item()
        assert abs(agree - 0.5) < 0.005
    assert abs((first == second).double().mean().item() - 0.5) < 0.005


def test_seeded():
    x = torch.ones(7, 9)
    torch.manual_seed(3)
    first, other = drop(x, 0.5), drop(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(drop(x, 0.5), first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("x", [torch.ones(0, 3), torch.ones(()), torch.ones(3, 5).t()])
def test_any_shape(x):
    assert drop(x, 0.5).shape == x.shape


def test_nothing_and_all():
    x = torch.ones(1000)
    assert torch.equal(drop(x, 0.0), x)
    assert not drop(x, 1.0).any()
    assert drop(x, 1e-9).sum() > 990


def test_does_nothing_in_evaluation():
    x = torch.ones(100)
    assert Dropout(0.5).eval()(x) is x
    assert (Dropout(0.5)(x) == 0).any()
