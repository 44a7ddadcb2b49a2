"""Attention that casts its input once computes the same, and keeps less for the backward pass."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

import tamt_kernels as tk
from tamt.masks.masking import magnitude_masks, prunable_weights
from tamt.models.shared_cast import share_casts
from tamt.models.speed import dense_twin
from tamt.search.mask_training import wrap

SIZES = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "electra": lambda: ElectraModel(ElectraConfig(**SIZES, embedding_size=32)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=50, n_layers=2, n_heads=2, dim=32, hidden_dim=64)
    ),
}
IDS = torch.randint(5, 50, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MODELS)
def pair(request) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model in evaluation mode, and the same with casts shared."""
    torch.manual_seed(0)
    plain = MODELS[request.param]().eval()
    shared = copy.deepcopy(plain)
    share_casts(shared)
    return plain, shared


def run(model: PreTrainedModel, precision: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, int]:
    """The last hidden state, after a backward pass, and how many bytes of activations that one needed."""
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            hidden = model(IDS).last_hidden_state
        loss = hidden.float().square().sum()
    loss.backward()
    return hidden.detach(), sum(kept.values())


def read_by(model: PreTrainedModel) -> list[list[tuple[int, torch.dtype]]]:
    """Where lies what each linear layer of an attention's input reads, and of which type it is."""
    found: dict[nn.Module, list[tuple[int, torch.dtype]]] = {}
    for module in model.modules():
        layers = [getattr(module, name) for name in ("query", "key", "value", "q_lin", "k_lin", "v_lin")
                  if hasattr(module, name)]  # fmt: skip
        for layer in layers:
            layer.register_forward_pre_hook(
                lambda _, arguments, module=module: found.setdefault(module, []).append(
                    (arguments[0].data_ptr(), arguments[0].dtype)
                )
            )
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS)
    return list(found.values())


def test_queries_keys_and_values_read_one_tensor_of_the_computing_type(pair) -> None:
    _, shared = pair
    found = read_by(shared)
    assert len(found) == 2
    for layer in found:
        assert len(layer) == 3
        assert len(set(layer)) == 1
        assert layer[0][1] == torch.bfloat16


def test_computes_the_same_and_keeps_less(pair) -> None:
    plain, shared = pair
    (wanted, more), (found, less) = run(plain), run(shared)
    assert torch.equal(found, wanted)
    assert more - less >= 2 * 2 * IDS.numel() * 32 * 2  # two layers spare two copies in bfloat16 each
    for (name, first), second in zip(plain.named_parameters(), shared.parameters(), strict=True):
        if first.grad is not None:
            difference = (first.grad - second.grad).norm()
            assert difference <= 2e-2 * first.grad.norm() + 1e-6, name


def test_masked_layers_keep_less_too(pair) -> None:
    kept = []
    for model in pair:
        model.requires_grad_(False)
        masked = wrap(model, magnitude_masks(prunable_weights(model), 0.7), "signed")
        tk.MaskAdamW(masked.values(), dtype=torch.bfloat16, overwrite=True)
        kept.append(run(model)[1])
    assert kept[0] - kept[1] >= 2 * 2 * IDS.numel() * 32 * 2


def test_without_autocast_nothing_changes(pair) -> None:
    plain, shared = pair
    (wanted, more), (found, less) = run(plain, torch.float32), run(shared, torch.float32)
    assert torch.equal(found, wanted)
    assert more == less
    for first, second in zip(plain.parameters(), shared.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None)
        assert first.grad is None or torch.equal(first.grad, second.grad)


def test_what_is_read_under_another_name_is_left_as_it_is() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(4, 4)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return states

    attention = Attention()
    share_casts(attention)
    states = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(states=states) is states
        assert attention(states).dtype == torch.bfloat16


def test_the_dense_twin_shares_casts_too(pair) -> None:
    _, shared = pair
    twin = dense_twin(shared, torch.bfloat16)
    assert all(len(set(layer)) == 1 for layer in read_by(twin))


def test_compiles_without_a_graph_break(pair) -> None:
    plain, shared = pair
    torch.compiler.reset()  # else what other tests compiled counts as compiled before
    compiled = torch.compile(shared, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(compiled(IDS).last_hidden_state, plain(IDS).last_hidden_state)
