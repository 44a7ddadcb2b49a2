"""opcheck, torch.compile and CUDA graphs on the GPU."""

import copy

import pytest
import torch
from kernels.test_operators import samples
from torch import nn
from torch.library import opcheck
from torch.utils._pytree import tree_map_only

import tamt_kernels as tk
from tamt_kernels import reference
from tamt_kernels.triton_kernels import threshold


def on_gpu(tensor):
    return tensor.detach().cuda().requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize(("name", "arguments"), list(samples()))
def test_opcheck(name, arguments):
    arguments = tree_map_only(torch.Tensor, on_gpu, arguments)
    opcheck(getattr(torch.ops.tamt_kernels, name).default, arguments)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        tk.MaskedEmbedding.from_embedding(nn.Embedding(500, 64), 10_000),
        tk.MaskedLinear.from_linear(nn.Linear(64, 256), 5_000),
        nn.GELU(),
        tk.MaskedLinear.from_linear(nn.Linear(256, 64, bias=False), 5_000, ranking="signed"),
    ).cuda()


@pytest.fixture
def ids():
    return torch.randint(500, (4, 32), device="cuda", generator=torch.Generator("cuda").manual_seed(0))


def layers(model):
    return [module for module in model if hasattr(module, "mask")]


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_a_graph_break(model, ids, autocast):
    results = []
    for each in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=autocast):
            y = each(ids)
        y.float().square().sum().backward()
        results.append([y.float(), *(layer.score.grad.clone() for layer in layers(model))])
    for eager, compiled in zip(*results, strict=True):
        assert (eager - compiled).norm() < (5e-3 if autocast else 1e-5) * eager.norm()


def make_step(model, ids):
    """A whole step of mask training as a function that waits for nothing, and the masked weights that it renews."""
    masked = layers(model)
    scores, keep = [layer.score for layer in masked], [layer.keep for layer in masked]
    optimizer = torch.optim.AdamW(scores, lr=3e-3, weight_decay=0.0, foreach=True, capturable=True)
    values, cuts = torch.stack([layer.value for layer in masked]), torch.stack([layer.cut for layer in masked])
    weights = [torch.empty_like(layer.weight, dtype=torch.float16) for layer in masked]

    def step():
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()
        found = tk.topk_threshold(scores, keep, last=tk.Thresholds(values, cuts), check_nan=False)
        values.copy_(found.values)
        cuts.copy_(found.cuts)
        for layer, value, cut in zip(masked, found.values, found.cuts, strict=True):
            layer.value.copy_(value)
            layer.cut.copy_(cut)
        new, _ = tk.mask_weights([layer.weight for layer in masked], scores, found, torch.float16)
        for weight, each in zip(weights, new, strict=True):
            weight.copy_(each)

    return step, weights


def test_a_cuda_graph_of_a_whole_step(model, ids):
    first = [layer.mask for layer in layers(model)]
    twin = copy.deepcopy(model)
    step, weights = make_step(model, ids)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(7):
        graph.replay()
    twin_step, _ = make_step(twin, ids)
    for _ in range(10):
        twin_step()
    assert any(not torch.equal(a, layer.mask) for a, layer in zip(first, layers(model), strict=True))
    for layer, other, weight in zip(layers(model), layers(twin), weights, strict=True):
        torch.testing.assert_close(layer.score, other.score, rtol=1e-4, atol=1e-6)
        score = layer.score.detach().cpu()
        expected = reference.topk_threshold([score], [layer.keep])
        mask = reference.binarize(score, expected.values[0], expected.cuts[0])
        assert torch.equal(layer.mask.cpu(), mask)
        assert int(mask.sum()) == layer.keep
        assert torch.equal(weight.cpu(), torch.where(mask, layer.weight.cpu(), 0.0).half())


def test_a_replayed_search_goes_on_following_the_threshold():
    score, keep = torch.randn(300_000, device="cuda", generator=torch.Generator("cuda").manual_seed(0)), [90_000]
    last = tk.topk_threshold([score], keep)

    def search():
        for tensor, found in zip(last, tk.topk_threshold([score], keep, last=last, check_nan=False), strict=True):
            tensor.copy_(found)

    search()
    reach = threshold.ThresholdSearch([score], keep, False).reach
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        search()
    reaches = [reach.item()]
    for move in (0.0, 0.0, 0.02, 0.0):  # the third leaves the window
        score.add_(move)
        graph.replay()
        reaches.append(reach.item())
        expected = reference.topk_threshold([score.cpu()], keep)
        assert torch.equal(last.values.cpu(), expected.values)
        assert torch.equal(last.cuts.cpu(), expected.cuts)
    assert reaches[0] > reaches[1] > reaches[2] < reaches[3] > reaches[4]
