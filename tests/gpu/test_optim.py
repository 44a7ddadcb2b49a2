"""MaskAdamW on the GPU: its kernels against their definition on the CPU, and whole steps of a model."""

import contextlib
import copy

import pytest
import torch
from kernels.steps import a_step, check_step, gradients, rates_of
from kernels.test_masks import DTYPES
from torch import nn

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.triton_kernels import common

LARGE = [(1000, 768), (300, 300), (33, 10), (), (0, 4), (257,)]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("types", [(DTYPES[i], DTYPES[i - 2], DTYPES[i - 1]) for i in range(3)])
def test_a_step_has_the_bits_of_the_definition(types, absolute):
    step = a_step(*types, LARGE)
    for number in range(1, 5):
        step[0] = gradients(types[0], number, LARGE)
        check_step(step, rates_of(number), renew=number != 2, absolute=absolute, device=CUDA)


@pytest.mark.parametrize("last", [0.0, 0.02, 3.0, torch.inf, -torch.inf, torch.nan])
def test_a_step_from_a_threshold_that_is_far(last):
    step = a_step(torch.float32, torch.float32, torch.bfloat16, LARGE)
    step[6].fill_(last)
    check_step(step, rates_of(1), device=CUDA)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("lr", [0.0, 1e-6, 1e-5])
def test_small_steps_mask_again_what_the_threshold_has_passed(lr, absolute):
    step = a_step(torch.float32, torch.float32, torch.bfloat16, LARGE)
    for number in range(1, 4):
        step[0] = gradients(torch.float32, number, LARGE)
        check_step(step, [*rates_of(number, lr)[:3], 1.0], absolute=absolute, device=CUDA)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, -torch.inf])
def test_a_step_that_is_not_finite_writes_nothing(factor):
    check_step(a_step(torch.float32, torch.float32, torch.float16, LARGE), [factor, *rates_of(1)[1:]], device=CUDA)


def test_the_norm_is_that_of_the_definition_and_repeats():
    for dtype in DTYPES:
        grads, weights = a_step(dtype, torch.float32, torch.float32, LARGE)[:2]
        on_gpu = [each.cuda() for each in grads], [each.cuda() for each in weights]
        found = [torch.ops.tamt_kernels.gradient_norm(*on_gpu) for _ in range(5)]
        torch.testing.assert_close(found[0].cpu(), reference.gradient_norm(grads, weights), rtol=1e-6, atol=0)
        assert len({float(each) for each in found}) == 1


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        tk.MaskedEmbedding.from_embedding(nn.Embedding(500, 64), 10_000),
        tk.MaskedLinear.from_linear(nn.Linear(64, 256), 5_000),
        nn.GELU(),
        tk.MaskedLinear.from_linear(nn.Linear(256, 64, bias=False), 5_000),
        nn.LayerNorm(64),
    ).cuda()


IDS = torch.randint(500, (12, 4, 32), generator=torch.Generator().manual_seed(0))


def masked(model):
    return [module for module in model if hasattr(module, "mask")]


def make_step(model, ids, half=None, lr=3e-3, overwrite=False):
    """A whole step of mask training as a function, its optimizer, and the masked weights' outputs for the next one."""
    optimizer = tk.MaskAdamW(model, model[4].parameters(), lr=lr, dtype=half, overwrite=overwrite)
    target = torch.linspace(-1, 1, 64, device=ids.device)

    def forward():
        # Casts are kept for a whole autocast, and so for the next step, if they are kept.
        with torch.autocast("cuda", half or torch.float16, enabled=half is not None, cache_enabled=False):
            return (model(ids).float() - target).square().mean()

    def step():
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        with torch.no_grad():
            return forward()

    return step, optimizer


def assert_exact(model):
    """Every mask has its number of ones, in the right places, and the masked weight is of it."""
    for module in masked(model):
        score = module.score.detach().cpu()
        (value,), (cut,) = reference.topk_threshold([score], [module.keep])
        mask = reference.binarize(score, value, cut)
        assert torch.equal(module.mask.cpu(), mask)
        assert int(mask.sum()) == module.keep
        made = torch.where(mask, module.weight.cpu(), 0.0)
        assert torch.equal(module.masked.tensor.detach().cpu(), made.to(module.masked.tensor.dtype))


@contextlib.contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("half", [None, torch.float16])
def test_a_step_of_a_model_waits_for_nothing_from_the_first_on(half):
    model, ids = make(), IDS[0].cuda()
    step, optimizer = make_step(model, ids, half)
    scale = torch.ones((), device=CUDA)
    with waiting_is_an_error():
        for _ in range(3):
            step()
        optimizer.step(scale=scale, renew=False)
        tk.update_masks(model)
    assert_exact(model)


@pytest.mark.parametrize("half", [None, torch.float16])
def test_a_step_whose_gradients_lie_over_masked_weights(half):
    model, ids = make(), IDS[0].cuda()
    twin = copy.deepcopy(model)
    step, optimizer = make_step(model, ids, half, overwrite=True)
    twin_step, _ = make_step(twin, ids, half)
    with waiting_is_an_error():
        outputs = [(step(), twin_step()) for _ in range(3)]
    for found, expected in outputs:  # a comparison waits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert_exact(model)
    with torch.autocast("cuda", half or torch.float16, enabled=half is not None):
        loss = model(ids).float().square().mean()
    loss.backward()
    assert model[1].masked.holds_gradient
    before = [score.clone() for score in optimizer.param_groups[0]["params"]]
    optimizer.step(scale=torch.full((), torch.nan, device=CUDA))
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True))
    assert_exact(model)


@pytest.mark.parametrize("half", [None, torch.float16])
def test_a_cuda_graph_of_a_whole_step(half):
    model, ids = make(), IDS[0].cuda()
    twin, lr = copy.deepcopy(model), torch.tensor(3e-3, device=CUDA)
    first = [module.mask for module in masked(model)]
    step, _ = make_step(model, ids, half, lr)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    twin_ids, twin_lr = ids.clone(), lr.clone()
    twin_step, _ = make_step(twin, twin_ids, half, twin_lr)
    for _ in range(3):
        twin_step()
    for number in range(7):  # with other tokens, and a learning rate that falls
        for each, rate in ((ids, lr), (twin_ids, twin_lr)):
            each.copy_(IDS[number])
            rate.fill_(3e-3 / (1 + number))
        graph.replay()
        torch.testing.assert_close(loss, twin_step(), rtol=1e-3, atol=1e-4)
        assert_exact(model)
    assert any(not torch.equal(a, module.mask) for a, module in zip(first, masked(model), strict=True))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a - b).norm() <= (1e-2 if half else 1e-4) * b.norm()


def test_a_graph_of_the_first_step_is_refused():
    common._TABLES.clear()  # another test's tensors may have lain where these do
    model, ids = make(), IDS[0].cuda()
    optimizer = tk.MaskAdamW(model)
    model(ids).square().mean().backward()
    with pytest.raises(RuntimeError, match="must run once"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_a_state_saved_on_the_cpu_is_taken_over():
    """As torch's AdamW, whose counts lie on the CPU, may have saved it."""
    model, ids = make(), IDS[0].cuda()
    step, optimizer = make_step(model, ids)
    step()
    state = copy.deepcopy(optimizer.state_dict())
    for each in state["state"].values():
        for name, value in each.items():
            each[name] = value.cpu()
    twin = copy.deepcopy(model)
    twin_step, again = make_step(twin, ids)
    again.load_state_dict(state)
    torch.testing.assert_close(twin_step(), step())
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
