"""Models shrunk by structured masks compute what the masked ones do, in all families, opened by plain transformers."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tamt.masks.gates import put_gates, renew_gates
from tamt.masks.groups import find_groups
from tamt.masks.masking import Masks, random_masks
from tamt.models.shrink import as_subnetwork, check_structure_fits, shrink
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure
from tamt.training.optimizer import GateAdamW
from tests.tamt.families import FAMILIES

SIZES = {"num_hidden_layers": 4, "num_attention_heads": 4}
IDS = torch.tensor([[5, 9, 7, 12, 30, 6, 4, 8]])
STRUCTURES = {"ffn": "ffn:0.5", "layers": "layers:0.5", "heads+hidden": "heads:0.25,hidden:0.25", "heads": "heads:0.25"}
OPEN = """
import sys
sys.modules["tamt"] = None
import torch, transformers
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder)
    model, info = getattr(transformers, config.architectures[0]).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)
    saved = torch.load(f"{folder}/expected.pt")
    with torch.no_grad():
        found = model.eval()(input_ids=saved["ids"])[0]
    difference = (found - saved["expected"]).abs().max() / saved["expected"].abs().max()
    assert difference <= 1e-5, (folder, difference)
    assert transformers.AutoModel.from_pretrained(folder).num_parameters() <= model.num_parameters()
"""

each_family = pytest.mark.parametrize("name", FAMILIES)


def make(name: str, **options) -> PreTrainedModel:
    """A random model of a family with its MLM head, all of whose parameters matter."""
    torch.manual_seed(0)
    sizes = {**SIZES, **({"num_key_value_heads": 4} if name == "eurobert" else {})}
    model: PreTrainedModel = FAMILIES[name].make(vocab_size=40, initializer_range=0.2, **{**sizes, **options}).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 1.0)
    return model


def random_groups(model: PreTrainedModel, structure: str, seed: int = 1) -> Masks:
    parsed = Structure.parse(structure)
    sizes = find_groups(model, parsed.kinds).sizes
    return random_masks({name: torch.empty(size) for name, size in sizes.items()}, parsed, seed)


def is_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors differ by at most `tolerance` of the largest value."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def output_of_masked(model: PreTrainedModel, masks: Masks) -> Tensor:
    masked = copy.deepcopy(model)
    put_gates(masked, masks)
    return masked(input_ids=IDS)[0]


def test_shrunk_models_of_all_families_open_without_tamt(tmp_path: Path) -> None:
    folders = []
    for name, family in FAMILIES.items():  # all kinds at once; one process opens them all
        if family.shrinks:
            model = make(name)
            masks = random_groups(model, ",".join(STRUCTURES[kind] for kind in family.shrinks[:3]))
            shrunk = shrink(model, masks)
            assert shrunk.num_parameters() < model.num_parameters()
            folders.append(tmp_path / name)
            shrunk.save_pretrained(folders[-1])
            torch.save({"ids": IDS, "expected": output_of_masked(model, masks)}, folders[-1] / "expected.pt")
    assert len(folders) >= 26
    outcome = subprocess.run(
        [sys.executable, "-c", OPEN, *map(str, folders)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr[-2000:]


@each_family
def test_a_search_for_what_a_family_cannot_shrink_is_refused_in_one_sentence(name: str) -> None:
    family = FAMILIES[name]
    model = make(name)
    for kind, structure in {**STRUCTURES, "hidden": "hidden:0.25"}.items():
        if kind not in family.shrinks and kind != "heads":
            with pytest.raises(UserError, match=r"^[^\n]{50,500}; (leave|choose|prune|raise) [^\n]+$"):
                check_structure_fits(model, Structure.parse(structure))


@each_family
def test_pruned_heads_are_zeros_where_they_cannot_be_taken_away(name: str) -> None:
    model = make(name)
    if name in {"deberta", "convbert", "fnet", "mobilebert", "xlm", "flaubert", "albert"}:
        with pytest.raises(UserError, match="; leave heads out|; choose another|; leave it out"):
            check_structure_fits(model, Structure.parse("heads:0.25"))
        return
    masks = random_groups(model, "heads:0.25")
    expected = output_of_masked(model, masks)
    subnetwork, zeros = as_subnetwork(model, masks)
    assert bool(zeros) == ("heads" not in FAMILIES[name].shrinks) == (subnetwork is model)
    with torch.no_grad():
        assert is_near(subnetwork(input_ids=IDS)[0], expected)


def bert(**options) -> PreTrainedModel:
    return make("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options)


@pytest.mark.parametrize("structure", ["ffn:0.5", "heads:0.5"])
def test_the_gradient_of_a_gate_is_the_sum_over_its_members(structure: str) -> None:
    model, masked = bert(), bert()
    masks = random_groups(model, structure)
    gates = put_gates(masked, masks)
    masked(input_ids=IDS).logits.square().sum().backward()
    for cut in find_groups(model, structure.split(":")[:1]).cuts:
        if cut.dimension == 1:  # the matrix that reads the groups, masked as a weight
            weight = model.get_parameter(cut.parameter)
            weight.data *= cut.spread(masks[cut.mask], weight.shape[1])
    model(input_ids=IDS).logits.square().sum().backward()
    dense = bert()
    for cut in find_groups(model, structure.split(":")[:1]).cuts:
        if cut.dimension == 1:
            members = model.get_parameter(cut.parameter).grad * dense.get_parameter(cut.parameter)
            expected = cut.collect(members.sum(0), len(masks[cut.mask]))
            assert is_near(gates[cut.mask].score.grad, expected, 1e-4)
            assert (gates[cut.mask].score.grad[~masks[cut.mask]] != 0).all(), "pruned groups learn too"


@torch.no_grad()
def test_the_masked_model_is_the_definition() -> None:
    model = bert()
    plain = model(input_ids=IDS, output_hidden_states=True)  # transformers puts its own hooks on the layers
    masks = random_groups(model, "layers:0.5,hidden:0.25,heads:0.25", seed=3)
    put_gates(model, masks)
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    kept = masks["hidden"]
    assert all((state[..., ~kept] == 0).all() and (state[..., kept] != 0).any() for state in states)
    for number, keep in enumerate(masks["layers"].tolist()):
        assert torch.equal(states[number], states[number + 1]) == (not keep)
    embedded = model.bert.embeddings.word_embeddings(IDS) + model.bert.embeddings.token_type_embeddings(0 * IDS)
    embedded += model.bert.embeddings.position_embeddings(torch.arange(IDS.shape[1])[None])
    norm = model.bert.embeddings.LayerNorm
    inside = nn.functional.layer_norm(
        embedded[..., kept], (int(kept.sum()),), norm.weight[kept], norm.bias[kept], norm.eps
    )
    assert torch.allclose(states[0][..., kept], inside, atol=1e-5)
    assert not torch.equal(states[0], plain.hidden_states[0])


def test_gates_leave_the_parameters_of_a_model_as_they_are() -> None:
    model = bert()
    names = [*dict(model.named_parameters())]
    gates = put_gates(model, random_groups(model, "ffn:0.5,heads:0.25,layers:0.5,hidden:0.25"))
    assert [*dict(model.named_parameters())] == names
    assert [gate.keep for gate in gates.values()] == [32] * 4 + [3] * 4 + [2, 24]


def test_renewed_masks_are_exact_and_ties_go_to_the_lower_index() -> None:
    gates = put_gates(bert(), {f"ffn.{layer}": torch.arange(64) >= 32 for layer in range(4)})
    for gate in gates.values():
        gate.score.data = torch.arange(64) // 20 * 1.0
    renew_gates(gates.values())
    for gate in gates.values():
        kept = [*range(20, 28), *range(40, 64)]
        assert gate.mask.nonzero().squeeze(1).tolist() == kept


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
def test_heads_of_tasks_shrink_too(name: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    masks = random_groups(model, "ffn:0.5,heads:0.25,layers:0.5,hidden:0.25")
    small = shrink(model.train(), masks)
    assert type(small) is type(model)
    assert small.training
    assert (small.config.num_hidden_layers, small.config.num_attention_heads, small.config.hidden_size) == (2, 3, 24)
    assert is_near(small.eval()(input_ids=IDS).logits, output_of_masked(model.eval(), masks))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_shrinks_in_its_own_type(dtype: torch.dtype) -> None:
    model = make("bert")
    masks = random_groups(model, "ffn:0.5")
    expected = output_of_masked(model, masks)
    small = shrink(model.to(dtype), masks)
    assert {weight.dtype for weight in small.parameters()} == {dtype}
    assert is_near(small(input_ids=IDS)[0].float(), expected, 0.05)


def test_a_mask_of_another_model_is_refused() -> None:
    masks = random_groups(bert(), "ffn:0.5")
    with pytest.raises(UserError, match="another model: of ffn.0 it has 64 where the model has 128 groups; give"):
        shrink(bert(intermediate_size=128), masks)
    with pytest.raises(UserError, match="of ffn.3 it has 64 where the model has none"):
        shrink(bert(num_hidden_layers=3), masks)


def test_generators_do_not_change() -> None:
    model = bert()
    masks = random_groups(model, "ffn:0.5")
    state = torch.get_rng_state()
    shrink(model, masks)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_scores_of_a_mask_share_one_second_moment() -> None:
    gates = put_gates(bert(), {f"ffn.{layer}": torch.arange(64) >= 32 for layer in range(4)})
    optimizer = GateAdamW(gates.values(), [], lr=1e-3)
    before = {name: gate.score.detach().clone() for name, gate in gates.items()}
    gradient = torch.arange(64) / 1000.0
    for _ in range(50):
        for gate in gates.values():
            gate.score.grad = gradient.clone()
        optimizer.step(scale=torch.ones(()))
    for name, gate in gates.items():
        moved = before[name] - gate.score.detach()
        assert moved[0] == 0
        assert 20 * moved[1] < moved[60], "as far as the gradient says, but for the first steps"
        assert int(gate.mask.sum()) == 32
