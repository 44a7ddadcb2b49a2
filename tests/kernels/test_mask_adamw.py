"""The operators of MaskAdamW against their definition: the same bits in scores, moments, thresholds, masked weights."""

import itertools
import math

import pytest
import torch

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.ops.gradient_norm import gradient_norm
from tamt_kernels.ops.mask_adamw import mask_adamw

from .scores import generator, same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# More than a piece, the embedding of which few rows are looked up; a vector; nothing kept of one, and an empty one.
SHAPES = [(600, 80), (70, 101), (37,), (9, 3), (0, 4)]
KEEP = [14_000, 2_100, 11, 0, 0]
PAIRS = list(itertools.product(range(3), range(3)))


class Problem:
    """Matrices in training, with their state of AdamW and their masks."""

    def __init__(
        self, keep=KEEP, weight=torch.float32, masked=torch.float32, absolute=False, spread=0.0, seed=0, shapes=SHAPES
    ):
        drawn = generator(seed)
        self.keep, self.absolute = keep, absolute
        self.weights = [(torch.randn(shape, generator=drawn) * 0.04).to(weight) for shape in shapes]
        self.scores = [(torch.rand(shape, generator=drawn) < 0.3).float() * 0.02 for shape in shapes]
        for score in self.scores:
            score.add_(torch.randn(score.shape, generator=drawn), alpha=spread)
        self.means, self.squares = ([torch.zeros_like(score) for score in self.scores] for _ in range(2))
        self.values, self.cuts = reference.topk_threshold(self.scores, keep, absolute)
        thresholds = zip(self.values, self.cuts, strict=True)
        self.masked = [
            reference.mask_weight(*each, *threshold, masked, absolute)
            for each, threshold in zip(zip(self.weights, self.scores, strict=True), thresholds, strict=True)
        ]

    def state(self):
        return [*self.scores, *self.means, *self.squares, *self.masked, self.values, self.cuts.double()]

    def step(
        self,
        kernel,
        grads,
        count,
        lr=5e-5,
        betas=(0.9, 0.999),
        factor=1.0,
        renew=True,
        decay=0.0,
        eps=1e-8,
        grad_rows=None,
    ):
        rates = [factor, lr / (1 - betas[0] ** count), math.sqrt(1 - betas[1] ** count), 1 - lr * decay]
        kernel(
            grads, self.weights, self.scores, self.means, self.squares, self.masked, self.values, self.cuts, self.keep,
            torch.tensor(rates), *betas, eps, renew, self.absolute, grad_rows,
        )  # fmt: skip


DRIFT = [0.1 * torch.randn(shape, generator=generator(1)) for shape in SHAPES]


def gradients(count, dtype=torch.float32):
    """Noise on a drift; of the embedding, rows that are never looked up get none."""
    noise = generator(count + 2)
    grads = [(each + torch.randn(each.shape, generator=noise)).to(dtype) for each in DRIFT]
    grads[0][100:] = 0
    return grads


def assert_same(ours, theirs):
    for mine, other in zip(ours.state(), theirs.state(), strict=True):
        if mine.dtype == torch.float64:
            assert torch.equal(mine, other)
        else:
            assert same_bits(mine, other)


def assert_alike(steps, grad=torch.float32, options=lambda count: {}, **problem):
    ours, theirs = Problem(**problem), Problem(**problem)
    for count in range(1, steps + 1):
        grads = gradients(count, grad)
        ours.step(mask_adamw, grads, count, **options(count))
        theirs.step(reference.mask_adamw, grads, count, **options(count))
        assert_same(ours, theirs)


@pytest.mark.parametrize(("absolute", "spread", "lr"), [(False, 0.0, 5e-5), (True, 0.0, 5e-5), (False, 0.01, 1e-2)])
def test_200_steps(absolute, spread, lr):
    assert_alike(200, options=lambda count: {"lr": lr}, absolute=absolute, spread=spread)


# Every pair of types once: the kernel converts each tensor apart from the others.
@pytest.mark.parametrize(("weight", "grad", "masked"), [(DTYPES[i], DTYPES[j], DTYPES[i - j]) for i, j in PAIRS])
def test_types(weight, grad, masked):
    assert_alike(3, grad, weight=weight, masked=masked, absolute=grad == masked)


@pytest.mark.parametrize("keep", [[0, 0, 0, 0, 0], [48_000, 7_070, 37, 27, 0], [1, 1, 1, 1, 0]])
def test_all_and_nothing_kept(keep):
    assert_alike(5, keep=keep)


def test_masks_renewed_now_and_then():
    assert_alike(12, options=lambda count: {"renew": count % 4 == 0, "lr": 1e-3})


@pytest.mark.parametrize("betas", [(0.4, 0.3), (0.5, 0.5), (0.0, 0.9)])
def test_other_betas_and_weight_decay(betas):
    assert_alike(6, options=lambda count: {"betas": betas, "decay": 0.1, "factor": 0.7})


class LookedUp:
    """The gradients of a matrix of which each step looks a few rows up, whole and without the rows of zeros."""

    def __init__(self, shape):
        self.shape = shape
        self.grad_rows = torch.full(shape[:1], reference.NO_MOMENTS, dtype=torch.int32)

    def step(self, count, dtype):
        drawn = generator(count)
        rows = torch.randperm(self.shape[0], generator=drawn)[: self.shape[0] // 20 * (count % 4)].sort().values
        grad = torch.randn((len(rows), self.shape[1]), generator=drawn).to(dtype)
        whole = torch.zeros(self.shape, dtype=dtype)
        whole[rows] = grad
        grad_rows = self.grad_rows.clone()
        grad_rows[rows] = torch.arange(len(rows), dtype=torch.int32)
        self.grad_rows[rows] = reference.NO_GRADIENT
        return whole, grad, grad_rows


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"lr": 1e-2}),
        (torch.float32, {"decay": 0.1, "lr": 1e-2}),  # moves what has no moments
        (torch.float32, {"eps": 0.0}),  # so does 0 / 0
        (torch.float32, {"betas": (0.3, 0.5)}),
        (torch.bfloat16, {"lr": 1e-3}),
    ],
)
# Rows of which a piece of the kernel holds thousands, hundreds, and not two: more entries than it moves at once.
@pytest.mark.parametrize("shape", [(3000, 7), (600, 80), (20, 20_000)])
def test_gradients_of_some_rows(shape, dtype, options):
    ours, theirs, defined = (Problem(spread=1e-3, masked=dtype, shapes=[shape, *SHAPES[1:]]) for _ in range(3))
    looked_up, none = LookedUp(shape), torch.empty(0, dtype=torch.int32)
    for count in range(1, 9):
        whole, grad, grad_rows = looked_up.step(count, dtype)
        others = gradients(count, dtype)[1:]
        some = {"grad_rows": [grad_rows, none, none, none, none], "renew": count % 3 > 0, **options}
        ours.step(mask_adamw, [grad, *others], count, **some)
        defined.step(reference.mask_adamw, [grad, *others], count, **some)
        theirs.step(reference.mask_adamw, [whole, *others], count, **{**some, "grad_rows": None})
        assert_same(ours, theirs)
        assert_same(defined, theirs)


@pytest.mark.parametrize("kernel", [mask_adamw, reference.mask_adamw])
def test_masked_weights_that_are_not_asked_for(kernel):
    """As those of embeddings that mask what they look up."""
    ours, theirs = (Problem(spread=1e-3, shapes=[(600, 80), *SHAPES[1:]]) for _ in range(2))
    looked_up, none = LookedUp((600, 80)), torch.empty(0, dtype=torch.int32)
    for left_out in (0, 3):
        ours.masked[left_out] = torch.empty(0)
    for count in range(1, 9):
        whole, grad, grad_rows = looked_up.step(count, torch.float32)
        others = gradients(count)[1:]
        options = {"lr": 1e-2 if count % 2 else 1e-5, "factor": math.nan if count == 5 else 1.0}
        ours.step(kernel, [grad, *others], count, grad_rows=[grad_rows, none, none, none, none], **options)
        theirs.step(reference.mask_adamw, [whole, *others], count, **options)
        for left_out in (0, 3):
            assert ours.masked[left_out].numel() == 0
            theirs.masked[left_out] = torch.empty(0)
        assert_same(ours, theirs)


def test_rows_without_moments_are_masked_where_the_threshold_moves_past_them():
    ours, theirs = Problem(spread=1e-3), Problem(spread=1e-3)
    grad = -torch.ones(40, 80) * ours.weights[0][:40].sign()
    grad_rows = torch.full((600,), reference.NO_MOMENTS, dtype=torch.int32)
    grad_rows[:40] = torch.arange(40)
    whole = torch.zeros(600, 80)
    whole[:40] = grad
    none = torch.empty(0, dtype=torch.int32)
    before = ours.masked[0][40:].clone()
    ours.step(mask_adamw, [grad, *gradients(1)[1:]], 1, lr=0.1, grad_rows=[grad_rows, none, none, none, none])
    theirs.step(reference.mask_adamw, [whole, *gradients(1)[1:]], 1, lr=0.1)
    assert_same(ours, theirs)
    assert not torch.equal(ours.masked[0][40:], before)


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 30_000])
def test_moments_of_all_sizes(count):
    ours, theirs = Problem(spread=1e-3), Problem(spread=1e-3)
    drawn = generator(count)
    squares = [torch.randint(0, 0x7F800001, shape, generator=drawn, dtype=torch.int32) for shape in SHAPES]
    for problem in (ours, theirs):
        problem.squares = [each.view(torch.float32).clone() for each in squares]  # zero, denormal, huge, infinite
        problem.squares[1][0, :3] = torch.tensor([0.0, math.inf, 1e-45])
        problem.means = [torch.randn(each.shape, generator=generator(5)) * each.sqrt() for each in problem.squares]
        problem.means[1][0, 1] = 1.0
    grads = [each * 1e-3 for each in gradients(count)]
    ours.step(mask_adamw, grads, count, lr=1e-3)
    theirs.step(reference.mask_adamw, grads, count, lr=1e-3)
    assert_same(ours, theirs)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_changes_nothing(factor):
    ours = Problem()
    before = [each.clone() for each in ours.state()]
    ours.step(mask_adamw, gradients(1), 1, factor=factor)
    assert all(same_bits(a.float(), b.float()) for a, b in zip(before, ours.state(), strict=True))


@pytest.mark.parametrize("factor", [1.0, math.nan])
@pytest.mark.parametrize("absolute", [False, True])
def test_gradients_in_the_place_of_masked_weights(absolute, factor):
    ours, theirs = Problem(absolute=absolute), Problem(absolute=absolute)
    for count in (1, 2):
        grads = gradients(count)
        for i in (1, 2, 3):  # the embedding's has its own memory
            ours.masked[i].copy_(grads[i])
        ours.step(mask_adamw, [grads[0], *ours.masked[1:]], count, factor=factor)
        theirs.step(reference.mask_adamw, grads, count, factor=factor)
        assert_same(ours, theirs)


@pytest.mark.parametrize("factor", [1.0, math.nan])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_definition_of_gradients_in_the_place_of_masked_weights(absolute, factor):
    overwritten, apart = Problem(absolute=absolute), Problem(absolute=absolute)
    grads = gradients(1)
    overwritten.masked[1:] = [each.clone() for each in grads[1:]]
    overwritten.step(reference.mask_adamw, [grads[0], *overwritten.masked[1:]], 1, factor=factor)
    apart.step(reference.mask_adamw, grads, 1, factor=factor)
    assert_same(overwritten, apart)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("last", [-3.0, -0.0, 1e-30, 0.02, 7.0, math.inf, math.nan])
def test_no_threshold_before_and_no_masked_weight_changes_the_result(last, absolute):
    ours, theirs = Problem(absolute=absolute), Problem(absolute=absolute)
    for problem in (ours, theirs):
        problem.values.fill_(last)
        problem.cuts.fill_(20_000)
        for masked in problem.masked:
            masked.fill_(math.nan)
    ours.step(mask_adamw, gradients(1), 1)
    theirs.step(reference.mask_adamw, gradients(1), 1)
    assert_same(ours, theirs)


def test_a_score_that_is_no_number_leaves_a_mask_of_zeros():
    ours, theirs = Problem(), Problem()
    for problem in (ours, theirs):
        problem.scores[1][3, 4] = math.nan
        problem.step(mask_adamw if problem is ours else reference.mask_adamw, gradients(1), 1)
    assert ours.values.isnan().tolist() == [False, True, False, False, False]
    assert not ours.masked[1].any()
    assert_same(ours, theirs)


def test_strided_matrices():
    ours, theirs = Problem(), Problem()
    lists = ("weights", "scores", "means", "squares", "masked")
    for name in lists:
        getattr(ours, name)[1] = getattr(ours, name)[1].t().contiguous().t()
    grads = gradients(1)
    strided = [grads[0], grads[1].t().contiguous().t(), *grads[2:]]
    ours.step(mask_adamw, strided, 1)
    theirs.step(reference.mask_adamw, grads, 1)
    assert_same(ours, theirs)
    assert gradient_norm(strided, ours.weights) == gradient_norm(grads, theirs.weights)


@pytest.mark.parametrize(("weight", "grad"), list(itertools.product(DTYPES, DTYPES)))
def test_gradient_norm(weight, grad):
    weights = Problem(weight=weight).weights
    found, expected = gradient_norm(gradients(1, grad), weights), reference.gradient_norm(gradients(1, grad), weights)
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)
    bad = gradients(1, grad)
    bad[1][2, 3] = math.inf
    assert not gradient_norm(bad, weights).isfinite()


def test_any_number_of_threads_gives_the_same_bits():
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            problem = Problem()
            norm = gradient_norm(gradients(1), problem.weights)
            problem.step(mask_adamw, gradients(1), 1)
            results.append([norm, *problem.state()])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("instructions", ["generic", "avx2", "avx512"])
def test_each_instruction_set(instructions):
    extension = pytest.importorskip("tamt_kernels._C")
    if tk.backends()["mask_adamw"]["cpu"] != "cpp" or instructions not in extension.instruction_sets():
        pytest.skip(f"the C++ kernels do not run, or the machine has no {instructions}")
    best = extension.instruction_set()
    extension.use_instruction_set(instructions)
    try:
        norm = gradient_norm(gradients(1), Problem().weights)
        assert_alike(5)
        assert_alike(3, torch.bfloat16, masked=torch.float16, absolute=True)
    finally:
        extension.use_instruction_set(best)
    assert norm == gradient_norm(gradients(1), Problem().weights)
