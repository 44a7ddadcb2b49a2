"""Masks of n of each m neighbours: the operators against their definition, the layers, and the step of MaskAdamW."""

import io
import itertools
import math

import pytest
import torch
from torch import nn

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.ops.pattern_adamw import pattern_adamw

from .scores import DISTRIBUTIONS, gaussian, generator, same_bits
from .test_mask_adamw import LookedUp

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 5), (4, 8), (6, 7), (1, 16), (15, 16)]


def by_hand(score, n, m, absolute=False):
    """The mask of each group by Python's sort."""
    mask = torch.zeros(score.shape, dtype=torch.bool).reshape(-1, m)
    for group, kept in zip(score.float().reshape(-1, m).tolist(), mask, strict=True):
        ranks = [-math.inf if math.isnan(s) else abs(s) if absolute else s for s in group]
        for i in sorted(range(m), key=lambda i: (-ranks[i], i))[:n]:
            kept[i] = True
    return mask.reshape(score.shape)


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_each_group_keeps_its_n_largest_ties_by_lower_index(draw, n, m):
    score = draw(30 * m).reshape(6, 5 * m)
    for absolute, ranking in ((False, "signed"), (True, "abs")):
        expected = by_hand(score, n, m, absolute)
        assert torch.equal(reference.pattern_mask(score, n, m, absolute), expected)
        assert torch.equal(tk.pattern_mask(score, tk.Pattern(n, m), ranking=ranking), expected)


@pytest.mark.parametrize("m", range(2, 17))
def test_more_than_a_block_of_groups(m):
    score = gaussian(400 * m).mul(3).round().reshape(4, 100 * m)  # with ties
    score[0, ::7], score[1, ::5], score[2, ::3] = math.nan, math.inf, -math.inf
    score[3, ::2] *= -0.0
    for n in (1, m // 2, m - 1):
        mask = tk.pattern_mask(score, tk.Pattern(n, m))
        assert torch.equal(mask, reference.pattern_mask(score, n, m))
        assert mask.reshape(-1, m).sum(1).eq(n).all()
        for some in (score, score[:3, : 33 * m]):  # the latter ends within a vector
            for absolute, ranking in ((False, "signed"), (True, "abs")):
                weight = 1 + some.nan_to_num(0, 2, -2).abs()
                masked = tk.pattern_weight(weight, some, tk.Pattern(n, m), ranking=ranking)
                assert same_bits(masked, reference.pattern_weight(weight, some, n, m, None, absolute))


@pytest.mark.parametrize(("weight", "score", "out"), list(itertools.product(DTYPES, DTYPES, DTYPES)))
def test_masked_weights(weight, score, out):
    w, s = gaussian(480).flip(0).reshape(20, 24).to(weight), gaussian(480).reshape(20, 24).to(score)
    w[0, 0] = -0.0
    for arguments in ((w, s), (w.t().contiguous().t(), s.t().contiguous().t())):
        found = tk.pattern_weight(*arguments, tk.Pattern(2, 4), out)
        assert same_bits(found, reference.pattern_weight(w, s, 2, 4, out))
        assert found.is_contiguous()


def test_the_gradient_goes_straight_through_to_every_score():
    weight, score = gaussian(48).flip(0).reshape(4, 12), gaussian(48).reshape(4, 12).requires_grad_()
    grad = gaussian(48).reshape(4, 12).square()
    tk.pattern_weight(weight, score, tk.Pattern(1, 3)).backward(grad)
    assert torch.equal(score.grad, grad * weight)


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        (tk.Pattern(4, 4), ValueError, "pattern is 4:4 but must be n:m with 1 <= n < m <= 16"),
        (tk.Pattern(0, 4), ValueError, "pattern is 0:4"),
        (tk.Pattern(1, 17), ValueError, "pattern is 1:17"),
        (tk.Pattern(2, 5), ValueError, "its last dimension must be a multiple of 5, as pattern is 2:5"),
        (tk.Pattern(2.0, 4), TypeError, "pattern is a float but must be an int"),
        ("2:4", TypeError, "pattern is '2:4' but must be a Pattern"),
    ],
)
def test_patterns_that_cannot_be(pattern, error, message):
    with pytest.raises(error, match=message):
        tk.pattern_mask(gaussian(48).reshape(4, 12), pattern)
    with pytest.raises(error, match=message):
        tk.pattern_weight(gaussian(48).reshape(4, 12), gaussian(48).reshape(4, 12), pattern)


SHAPES = [(600, 80), (70, 120), (9, 40), (0, 40)]


class Problem:
    """Matrices in training, with their state of AdamW and their masks."""

    def __init__(self, weight=torch.float32, masked=torch.float32, absolute=False, pattern=(2, 4), shapes=SHAPES):
        drawn = generator()
        self.pattern, self.absolute = pattern, absolute
        self.weights = [(torch.randn(shape, generator=drawn) * 0.04).to(weight) for shape in shapes]
        self.scores = [(torch.rand(shape, generator=drawn) < 0.3).float() * 0.02 for shape in shapes]
        self.means, self.squares = ([torch.zeros_like(score) for score in self.scores] for _ in range(2))
        pairs = zip(self.weights, self.scores, strict=True)
        self.masked = [reference.pattern_weight(*pair, *pattern, masked, absolute) for pair in pairs]

    def step(self, kernel, grads, count, betas=(0.9, 0.999), factor=1.0, decay=0.0, lr=1e-3, grad_rows=None):
        rates = [factor, lr / (1 - betas[0] ** count), math.sqrt(1 - betas[1] ** count), 1 - lr * decay]
        kernel(
            grads, self.weights, self.scores, self.means, self.squares, self.masked, *self.pattern,
            torch.tensor(rates, device=self.scores[0].device), *betas, 1e-8, self.absolute, grad_rows,
        )  # fmt: skip

    def to(self, device):
        for name in ("weights", "scores", "means", "squares", "masked"):
            setattr(self, name, [tensor.to(device) for tensor in getattr(self, name)])
        return self

    def assert_same(self, other):
        for name in ("scores", "means", "squares", "masked"):
            for mine, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                assert same_bits(mine.cpu(), theirs), name


def gradients(count, dtype=torch.float32, shapes=SHAPES):
    noise = generator(count)
    return [torch.randn(shape, generator=noise).to(dtype) for shape in shapes]


@pytest.mark.parametrize("pattern", [(1, 2), (2, 4), (1, 5), (7, 8), (3, 10)])
@pytest.mark.parametrize("absolute", [False, True])
def test_steps(pattern, absolute):
    ours, theirs = (Problem(absolute=absolute, pattern=pattern) for _ in range(2))
    before = [masked.clone() for masked in ours.masked]
    for count in range(1, 30):
        options = {"factor": math.nan if count == 4 else 0.7, "decay": 0.1 * (count % 2), "betas": (0.9, 0.99)}
        ours.step(pattern_adamw, gradients(count), count, **options)
        theirs.step(reference.pattern_adamw, gradients(count), count, **options)
        ours.assert_same(theirs)
    assert not torch.equal(before[1] != 0, ours.masked[1] != 0)
    for masked in ours.masked[1:]:  # no weight is 0
        assert (masked.reshape(-1, pattern[1]) != 0).sum(1).eq(pattern[0]).all()


@pytest.mark.parametrize(("weight", "grad", "masked"), list(itertools.product(DTYPES, DTYPES, DTYPES)))
def test_types_of_steps(weight, grad, masked):
    ours, theirs = Problem(weight, masked), Problem(weight, masked)
    for count in (1, 2):
        ours.step(pattern_adamw, gradients(count, grad), count)
        theirs.step(reference.pattern_adamw, gradients(count, grad), count)
        ours.assert_same(theirs)


@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"betas": (0.3, 0.5)}])
@pytest.mark.parametrize("shape", [(600, 80), (40, 20_000), (3000, 8)])
def test_gradients_of_some_rows(shape, options):
    shapes = [shape, *SHAPES[1:]]
    ours, theirs, defined = (Problem(shapes=shapes) for _ in range(3))
    looked_up, none = LookedUp(shape), torch.empty(0, dtype=torch.int32)
    for count in range(1, 6):
        whole, grad, grad_rows = looked_up.step(count, torch.float32)
        others = gradients(count, shapes=shapes)[1:]
        some = {"grad_rows": [grad_rows, none, none, none], **options}
        ours.step(pattern_adamw, [grad, *others], count, **some)
        defined.step(reference.pattern_adamw, [grad, *others], count, **some)
        theirs.step(reference.pattern_adamw, [whole, *others], count, **options)
        ours.assert_same(theirs)
        defined.assert_same(theirs)


@pytest.mark.parametrize("factor", [1.0, math.inf])
@pytest.mark.parametrize("kernel", [pattern_adamw, reference.pattern_adamw])
def test_gradients_in_the_place_of_masked_weights(kernel, factor):
    ours, theirs = Problem(), Problem()
    ours.masked[0] = theirs.masked[0] = torch.empty(0)  # as of an embedding that masks what it looks up
    grads = gradients(1)
    for i in (1, 2):
        ours.masked[i].copy_(grads[i])
    ours.step(kernel, [grads[0], *ours.masked[1:]], 1, factor=factor)
    theirs.step(reference.pattern_adamw, grads, 1, factor=factor)
    ours.assert_same(theirs)


@pytest.mark.parametrize("instructions", ["generic", "avx2", "avx512"])
def test_each_instruction_set(instructions):
    extension = pytest.importorskip("tamt_kernels._C")
    if tk.backends()["pattern_adamw"]["cpu"] != "cpp" or instructions not in extension.instruction_sets():
        pytest.skip(f"the C++ kernels do not run, or the machine has no {instructions}")
    best = extension.instruction_set()
    extension.use_instruction_set(instructions)
    try:
        test_steps((2, 4), False)
        test_types_of_steps(torch.bfloat16, torch.bfloat16, torch.float16)
        for m in (2, 4, 7):
            test_more_than_a_block_of_groups(m)
    finally:
        extension.use_instruction_set(best)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        tk.MaskedEmbedding.from_embedding(nn.Embedding(11, 8, padding_idx=0), tk.Pattern(2, 4)),
        tk.MaskedLinear.from_linear(nn.Linear(8, 16), tk.Pattern(2, 4)),
        nn.GELU(),
        tk.MaskedLinear.from_linear(nn.Linear(16, 4, bias=False), tk.Pattern(2, 4)),
    )


IDS = torch.tensor([[1, 2, 0], [10, 2, 2]])


def groups_of(layer):
    return layer.mask.reshape(-1, 4).sum(1)


def test_layers_begin_with_the_largest_weights_of_each_group(model):
    for layer in (model[0], model[1], model[3]):
        assert torch.equal(layer.mask, tk.pattern_mask(layer.weight, tk.Pattern(2, 4), ranking="abs"))
        assert torch.equal(layer.masked_weight(), layer.weight * layer.mask)
        assert layer.sparsity == 0.5
    assert "pattern=2:4" in repr(model[1])


def test_layers_compute_with_the_masked_weight(model):
    x, bias = gaussian(24).reshape(3, 8), model[1].bias
    assert torch.equal(model[1](x), torch.nn.functional.linear(x, model[1].masked_weight(), bias))
    assert torch.equal(model[0](IDS), model[0].masked_weight()[IDS])
    model[0](IDS).sum().backward()
    assert torch.count_nonzero(model[0].score.grad[0]) == 0
    assert torch.equal(model[0].score.grad[2], 3 * model[0].weight[2])
    with torch.autocast("cpu", torch.bfloat16):
        y = model[1](x)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("overwrite", [False, True])
def test_mask_adamw_takes_the_steps_of_torchs_and_keeps_each_pattern(model, overwrite):
    other = nn.Sequential(*[
        tk.MaskedEmbedding(nn.Parameter(model[0].weight.clone()), tk.Pattern(2, 4), padding_idx=0),
        tk.MaskedLinear(nn.Parameter(model[1].weight.clone()), model[1].bias, tk.Pattern(2, 4)),
        nn.GELU(),
        tk.MaskedLinear(nn.Parameter(model[3].weight.clone()), None, tk.Pattern(2, 4)),
    ])  # fmt: skip
    layers = [model[0], model[1], model[3]]
    first = [layer.mask for layer in layers]
    optimizer = tk.MaskAdamW(model, lr=0.01, overwrite=overwrite)
    plain = torch.optim.AdamW([layer.score for layer in tk.nn.masked_modules(other)], lr=0.01, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        plain.zero_grad()
        model(IDS).square().sum().backward()
        optimizer.step()
        other(IDS).square().sum().backward()
        torch.nn.utils.clip_grad_norm_([layer.score for layer in tk.nn.masked_modules(other)], 1.0)
        plain.step()
        for layer, twin in zip(layers, tk.nn.masked_modules(other), strict=True):
            torch.testing.assert_close(layer.score, twin.score, rtol=1e-4, atol=1e-6)
            assert groups_of(layer).eq(2).all()
            if not layer.masked.at_lookup:
                assert same_bits(layer.masked.tensor.detach(), layer.masked_weight().detach())
    assert any(not torch.equal(layer.mask, mask) for layer, mask in zip(layers, first, strict=True))


def test_update_masks_renews_masked_weights(model):
    optimizer = tk.MaskAdamW(model)
    with torch.no_grad():
        model[1].score.copy_(gaussian(128).reshape(16, 8))
    tk.update_masks(model)
    assert same_bits(optimizer.masked_weights[1].tensor.detach(), model[1].masked_weight().detach())


def test_what_a_pattern_cannot_do(model):
    optimizer = tk.MaskAdamW(model)
    model(IDS).sum().backward()
    with pytest.raises(RuntimeError, match="renew is False but must be True for masks of a pattern"):
        optimizer.step(renew=False)
    with pytest.raises(ValueError, match="module 1 has the pattern None but must have 2:4"):
        tk.MaskAdamW([model[1], tk.MaskedLinear.from_linear(nn.Linear(4, 4), 8)])
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        tk.MaskedLinear.from_linear(nn.Linear(6, 4), tk.Pattern(2, 4))
    mask = torch.tensor([[True, True, True, False, True, False, False, False]])
    with pytest.raises(ValueError, match="mask keeps 3 entries of group 0 but must keep 2:4"):
        tk.MaskedLinear.from_linear(nn.Linear(8, 1), tk.Pattern(2, 4), mask)


def test_a_state_belongs_to_its_pattern(model):
    buffer = io.BytesIO()
    torch.save(model[1].state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    twin = tk.MaskedLinear.from_linear(nn.Linear(8, 16), tk.Pattern(2, 4))
    twin.load_state_dict(state)
    assert torch.equal(twin.mask, model[1].mask)
    with pytest.raises(ValueError, match=r"the state's keep is \[2, 4\] but must be \[4, 8\]"):
        tk.MaskedLinear.from_linear(nn.Linear(8, 16), tk.Pattern(4, 8)).load_state_dict(state)


def test_half_leaves_scores_as_they_are(model):
    before = model[1].mask
    assert model[1].half().score.dtype == torch.float32
    assert torch.equal(model[1].mask, before)
