"""Masks of a pattern on the GPU: the kernels against their definition, and exports that its sparse products take."""

from pathlib import Path

import pytest
import torch
from kernels.scores import gaussian, same_bits
from kernels.steps import exact_roots
from kernels.test_pattern import PATTERNS, Problem, gradients
from torch.sparse import to_sparse_semi_structured
from transformers import AutoModel, BertConfig, BertModel

import tamt
import tamt_kernels as tk
from tamt.masks.masking import apply_masks, prunable_weights
from tamt_kernels import reference
from tamt_kernels.ops.pattern_adamw import pattern_adamw


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_are_those_of_the_definition(pattern, absolute):
    score = (gaussian(3000 * pattern[1]) * 4).round().reshape(100, -1)
    weight = torch.randn(score.shape)
    mask = torch.ops.tamt_kernels.pattern_mask(score.cuda(), *pattern, absolute)
    assert torch.equal(mask.cpu(), reference.pattern_mask(score, *pattern, absolute))
    masked = torch.ops.tamt_kernels.pattern_weight(weight.cuda(), score.cuda(), *pattern, torch.bfloat16, absolute)
    assert same_bits(masked.cpu(), reference.pattern_weight(weight, score, *pattern, torch.bfloat16, absolute))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("pattern", [(2, 4), (7, 8), (3, 10)])
def test_a_step_has_the_bits_of_the_definition(pattern, absolute):
    shapes = [(1000, 760), (33, 40), (0, 40)]
    ours, theirs = (Problem(masked=torch.bfloat16, absolute=absolute, pattern=pattern, shapes=shapes) for _ in "12")
    ours.to("cuda")
    for count in range(1, 5):
        grads = gradients(count, torch.bfloat16, shapes)
        factor = torch.nan if count == 3 else 0.7
        ours.step(pattern_adamw, [grad.cuda() for grad in grads], count, factor=factor)
        with exact_roots():
            theirs.step(reference.pattern_adamw, grads, count, factor=factor)
        ours.assert_same(theirs)


def test_a_graph_captures_a_step():
    torch.manual_seed(0)
    layer = tk.MaskedLinear.from_linear(torch.nn.Linear(64, 64), tk.Pattern(2, 4)).cuda()
    optimizer, x = tk.MaskAdamW(layer, lr=0.01), torch.randn(8, 64, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph, before = torch.cuda.CUDAGraph(), layer.mask
    with torch.cuda.graph(graph, stream=stream):
        step()
    for _ in range(20):
        graph.replay()
    assert not torch.equal(layer.mask, before)
    assert layer.mask.reshape(-1, 4).sum(1).eq(2).all()
    assert torch.equal(layer.masked.tensor, layer.masked_weight())


def test_torch_multiplies_by_an_export_of_2_of_4(tmp_path: Path):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("GPUs before sm_80 have no products of 2:4 matrices")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256
    )
    model = BertModel(config)
    apply_masks(model, tamt.Ticket.magnitude(model, pattern="2:4").masks)
    model.save_pretrained(tmp_path)
    weights = prunable_weights(AutoModel.from_pretrained(tmp_path), embedding=False)
    for weight in weights.values():
        half = weight.detach().half().cuda()
        x = torch.randn(64, half.shape[1], dtype=torch.half, device="cuda")
        sparse = to_sparse_semi_structured(half)
        torch.testing.assert_close(torch.nn.functional.linear(x, sparse), x @ half.t(), rtol=1e-2, atol=1e-2)
