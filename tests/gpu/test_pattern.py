"""Masks of a pattern on the GPU: exports that its sparse products take."""

from pathlib import Path

import pytest
import torch
from torch.sparse import to_sparse_semi_structured
from transformers import AutoModel, BertConfig, BertModel

import tamt
from tamt.masks.masking import apply_masks, prunable_weights


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
