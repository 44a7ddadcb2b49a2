"""Structured tickets on the tiny BERT: every method, their files, what uses them, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from tamt.cli import main
from tamt.masks.file import load_masks, load_packed, save_masks, save_packed
from tamt.masks.gates import put_gates
from tamt.masks.hub import model_card
from tamt.masks.masking import keep_of
from tamt.options.train import TrainOptions
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure
from tamt.search.mask_training import MaskTraining
from tamt.search.train import train
from tamt.ticket import Ticket
from tests.conftest import SIZES, save_tokenizer
from tests.tamt.families import SPECIAL

ALL = "ffn:0.75,heads:0.5,layers:0.5,hidden:0.5"


@pytest.fixture
def run(tmp_path: Path, corpus: Path, tiny_bert: Path):
    """Call train on the tiny model; options given win."""

    def call(method: str, output: str = "run", **options) -> dict:
        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "steps": 6, **options}
        if method == "tamt":
            settings.setdefault("objective", "kd:1,attention:1,logits:0.5")
        return train(method=method, output=tmp_path / output, **settings)["results"][-1]

    return call


# Every method with every kind of group, and one that trains and one that does not with each kind alone.
@pytest.mark.parametrize(
    ("method", "structure"),
    [
        *((method, ALL) for method in ("tamt-kd", "tamt-mlm", "tamt", "omp", "rand")),
        *(
            (method, structure)
            for structure in ("ffn:0.75", "heads:0.5", "layers:0.5", "heads:0.5,hidden:0.5")
            for method in ("tamt-kd", "omp")
        ),
    ],
)
def test_every_method_keeps_exactly_its_groups(method, structure, run, tmp_path: Path) -> None:
    result = run(method, structure=structure)
    masks, info = load_masks(tmp_path / "run" / "mask.safetensors")
    sizes = {"ffn.0": 64, "ffn.1": 64, "heads.0": 2, "heads.1": 2, "layers": 2, "hidden": 32}
    parsed = Structure.parse(structure)
    assert {name: len(mask) for name, mask in masks.items()} == {
        name: size for name, size in sizes.items() if name.partition(".")[0] in parsed.kinds
    }
    assert all(int(mask.sum()) == keep_of(len(mask), parsed.share(name)) for name, mask in masks.items())
    assert info.structure == result["structure"] == structure
    assert 0 < result["kd_loss"] < 2
    settings = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert f"structure: {structure}" in settings


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, [True, False]), ({"drop": "last"}, [True, False]), ({"drop": "first"}, [False, True])],
)
def test_layers_are_dropped_by_their_place(options, kept, run, tmp_path: Path) -> None:
    run("drop", structure="layers:0.5", **options)
    masks, info = load_masks(tmp_path / "run")
    assert masks["layers"].tolist() == kept
    assert info.method == "drop"


def test_alternate_layers_begin_with_the_first(tmp_path: Path, run) -> None:
    for layers, share, expected in ((6, 0.5, [0, 2, 4]), (7, 0.6, [0, 2, 4]), (4, 0.25, [0, 1, 2])):
        model = BertForMaskedLM(BertConfig(**SIZES | {"num_hidden_layers": layers}, vocab_size=28))
        folder = tmp_path / f"{layers}"
        model.save_pretrained(folder)
        save_tokenizer(folder, SPECIAL, "[CLS]", "[SEP]")
        run("drop", f"run-{layers}", model=str(folder), structure=f"layers:{share}", drop="alternate", corpus=None)
        masks, _ = load_masks(tmp_path / f"run-{layers}")
        assert masks["layers"].nonzero().squeeze(1).tolist() == expected


def test_mask_training_finds_better_groups_than_their_norm(run, tmp_path: Path) -> None:
    magnitude = run("omp", "omp", structure="ffn:0.75")
    trained = run("tamt-kd", "kd", structure="ffn:0.75", steps=60, lr=1e-3, scores="magnitude")
    assert trained["kd_loss"] < 0.97 * magnitude["kd_loss"]
    assert trained["changed"] > 0.05
    lines = [json.loads(line) for line in (tmp_path / "kd" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["sparsity"] == 0.75 for line in lines if "loss" in line)


def test_an_interrupted_search_continues_exactly(run, tmp_path: Path, monkeypatch) -> None:
    options = {"structure": ALL, "steps": 8, "save_every": 3, "scores": "magnitude", "save_at": [4]}
    run("tamt-mlm", "whole", **options)
    after_step = MaskTraining.after_step

    def killed(self, step, losses) -> None:
        after_step(self, step, losses)
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MaskTraining, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run("tamt-mlm", "broken", **options)
    run("tamt-mlm", "broken", resume=True, **options)
    for name in ("mask.safetensors", "masks/step-4.safetensors"):
        whole, _ = load_masks(tmp_path / "whole" / name)
        broken, _ = load_masks(tmp_path / "broken" / name)
        assert all(torch.equal(whole[each], mask) for each, mask in broken.items())
    whole, broken = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[each], tensor) for each, tensor in broken.items())


def test_a_search_starts_from_a_mask_of_its_structure_only(run, tmp_path: Path) -> None:
    run("omp", "omp", structure="ffn:0.5")
    run("omp", "free", sparsity=0.5)
    of_groups, of_weights = (str(tmp_path / name / "mask.safetensors") for name in ("omp", "free"))
    result = run("tamt-kd", "kd", structure="ffn:0.5", initial=of_groups, lr=1e-9)
    assert result["changed"] == 0
    with pytest.raises(
        UserError, match=r"has the structure ffn:0.5; give a mask that was found with --structure ffn:0.75"
    ):
        run("tamt-kd", "other", structure="ffn:0.75", initial=of_groups)
    with pytest.raises(UserError, match="has no structure; give a mask that was found with --structure ffn:0.5"):
        run("tamt-kd", "another", structure="ffn:0.5", initial=of_weights)
    with pytest.raises(UserError, match=r"has the structure ffn:0.5; give a mask that was of single weights"):
        run("tamt-kd", "third", sparsity=0.5, initial=of_groups)


@pytest.mark.parametrize("structure", [ALL, "heads:0.5"])
def test_a_ticket_is_fine_tuned_and_saved_as_an_ordinary_model(
    structure, run, tmp_path, tiny_bert, cats_and_dogs
) -> None:
    run("omp", structure=structure)
    words = ["finetune", "--task", "classification", "--model", str(tiny_bert), "--epochs", "1", "--json"]
    words += [word for name, path in cats_and_dogs.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    mask = tmp_path / "run" / "mask.safetensors"
    assert main([*words, "--mask", str(mask), "--output", str(tmp_path / "tuned")]) == 0
    row = json.loads((tmp_path / "tuned" / "results.json").read_text())["results"][0]
    assert (row["structure"], row["method"]) == (structure, "omp")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned" / "model")
    if structure == ALL:
        assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.intermediate_size) == (1, 16, 16)
    else:
        masks, _ = load_masks(mask)
        pruned = ~masks["heads.0"].repeat_interleave(16)
        attention = model.bert.encoder.layer[0].attention
        assert (attention.output.dense.weight[:, pruned] == 0).all()
        assert (attention.self.query.weight[pruned] == 0).all()
    assert main(["evaluate", "--model", str(tmp_path / "tuned"), "--task", "classification"]) == 0
    assert main([*words, "--mask", str(mask), "--output", str(tmp_path / "sparse"), "--sparse", "on"]) == (
        0 if structure != ALL else 2
    )


def test_evaluate_measures_the_masked_model(run, tmp_path: Path, tiny_bert: Path, corpus: Path, capsys) -> None:
    result = run("omp", structure=ALL, dev_corpus=[str(corpus)])
    words = ["evaluate", "--model", str(tiny_bert), "--mask", str(tmp_path / "run" / "mask.safetensors")]
    words += ["--corpus", str(corpus), "--max-length", "16"]
    assert main([*words, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    assert row["kd_loss"] == pytest.approx(result["kd_loss"], rel=1e-5)
    assert row["structure"] == ALL
    assert main([*words, "--sparse"]) == 2
    assert "prunes groups; leave it out, or shrink the model" in capsys.readouterr().err


def test_a_shrunk_export_is_pruned_further(run, tmp_path: Path, tiny_bert: Path, corpus: Path, capsys) -> None:
    run("tamt-kd", structure=ALL)
    out = tmp_path / "small"
    words = ["export", "--model", str(tiny_bert), "--mask", str(tmp_path / "run"), "--shrink"]
    assert main([*words, "--output", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    small, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert row["parameters"] == small.num_parameters() < row["dense_parameters"]
    assert small.config.tie_word_embeddings
    masked = AutoModelForMaskedLM.from_pretrained(tiny_bert).eval()
    put_gates(masked, load_masks(tmp_path / "run")[0])
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    with torch.no_grad():
        assert torch.allclose(small.eval()(ids).logits, masked(ids).logits, atol=1e-5)
    result = run("tamt-kd", "further", model=str(out), sparsity=0.7)
    assert result["sparsity"] == pytest.approx(0.7, abs=0.01)
    sparse = ["export", "--model", str(out), "--mask", str(tmp_path / "further"), "--format", "sparse"]
    assert main([*sparse, "--output", str(tmp_path / "sparse")]) == 0
    assert main(["evaluate", "--model", str(tmp_path / "sparse"), "--corpus", str(corpus), "--max-length", "16"]) == 0


def test_an_export_without_shrink_has_zeros_if_they_can_be(run, tmp_path: Path, tiny_bert: Path, capsys) -> None:
    run("omp", "heads", structure="heads:0.5")
    run("omp", "layers", structure="layers:0.5")
    run("omp", "free", sparsity=0.5)
    words = ["export", "--model", str(tiny_bert), "--mask"]
    assert main([*words, str(tmp_path / "heads"), "--output", str(tmp_path / "out")]) == 0
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert (model.encoder.layer[0].attention.output.dense.weight == 0).all(0).sum() == 16
    capsys.readouterr()
    refused = {
        ("layers",): "pruned layers cannot be zeros of matrices; shrink the model instead",
        ("heads", "--shrink"): "or set the weights of pruned heads to zero, without --shrink or by ticket.apply(model)",
        ("free", "--shrink"): "prunes single weights, which leave no smaller model; leave --shrink out",
        ("layers", "--shrink", "--format", "sparse"): "--shrink gives a dense model, not one of --format sparse",
    }
    for (mask, *more), message in refused.items():
        assert main([*words, str(tmp_path / mask), *more, "--output", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "other").exists()
    assert main(["export", "--model", str(tiny_bert), "--shrink", "--output", str(tmp_path / "other")]) == 2


def test_a_ticket_shrinks_or_zeros_a_model(run, tmp_path: Path, tiny_bert: Path) -> None:
    run("rand", "ffn", structure="ffn:0.5,heads:0.5")
    run("rand", "layers", structure="layers:0.5")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    ticket, of_layers = Ticket.load(tmp_path / "ffn"), Ticket.load(tmp_path / "layers")
    assert "50.0% of 132 groups pruned, structure ffn:0.5,heads:0.5" in repr(ticket)
    assert "model = ticket.shrink(model)" in model_card(ticket._described(), "user/repo")
    assert of_layers.shrink(model).config.num_hidden_layers == 1
    with pytest.raises(UserError, match="pruned layers cannot be zeros of matrices; shrink the model instead"):
        of_layers.apply(model)
    with pytest.raises(UserError, match="pruned layers cannot be zeros of matrices"):
        of_layers.revived(model)
    ticket.apply(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(input_ids=torch.tensor([[2, 5, 3]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
    assert ticket.revived(model) == {}
    assert 0.2 < ticket.sparsity_of(model) < 0.5
    with pytest.raises(UserError, match=r"prunes single weights, which leave no smaller model; call ticket.apply"):
        Ticket.magnitude(model, 0.5).shrink(model)
    with pytest.raises(UserError, match="prune different groups; compare masks of one --structure"):
        ticket.similarity(of_layers)
    assert ticket.similarity(ticket) == 1


def test_a_model_with_another_ticket_is_not_shrunk(run, tmp_path: Path, tiny_bert: Path) -> None:
    run("rand", structure="ffn:0.5")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    groups, weights = Ticket.load(tmp_path / "run"), Ticket.magnitude(model, 0.5)
    weights.apply(model)
    with pytest.raises(UserError, match="the model has another ticket, whose zeros would train"):
        groups.shrink(model)
    weights.remove(model)
    groups.apply(model)
    assert groups.shrink(model).config.intermediate_size == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "head:0.5"}, "--structure head is not one of ffn, heads, layers, hidden; did you mean heads"),
        ({"structure": "ffn"}, "--structure ffn has no number after ffn; give ffn:0.5"),
        ({"structure": "ffn:half"}, "has no number after ffn"),
        ({"structure": "ffn:1.5"}, "--structure ffn 1.5 is not between 0 and 1"),
        ({"structure": "ffn:nan"}, "--structure ffn nan is not between 0 and 1"),
        ({"structure": "ffn:0.5,ffn:0.6"}, "names ffn twice; give it once"),
        (
            {"structure": "ffn:0.5", "sparsity": 0.7},
            "--sparsity is for masks of single weights, and --structure ffn:0.5",
        ),
        ({"structure": "ffn:0.5", "pattern": "2:4"}, "--pattern is for masks of single weights"),
        ({"structure": "ffn:0.5", "ranking": "abs"}, "--ranking is for masks of single weights"),
        ({"structure": "ffn:0.5", "threshold_every": 2}, "--threshold-every is for masks of single weights"),
        ({"structure": "ffn:0.5", "method": "imp"}, "imp prunes single weights only, not the --structure ffn:0.5"),
        ({"structure": "ffn:0.5", "method": "wanda"}, "wanda prunes single weights only"),
        ({"structure": "ffn:0.5", "method": "drop"}, "drop prunes layers only, not the --structure ffn:0.5"),
        ({"method": "drop"}, "drop drops whole layers; give --structure layers:0.5"),
        ({"structure": "layers:0.5", "drop": "first"}, "--drop is for drop, not tamt-kd; leave it out"),
    ],
)
def test_options_that_cannot_be(options, message) -> None:
    with pytest.raises(UserError, match=message):
        TrainOptions(**{"method": "tamt-kd", "model": "any", "corpus": ["demo"], **options})


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("layers:0.1", "--structure layers:0.1 prunes none of the 2 layers; raise its sparsity, or leave it out"),
        ("hidden:0.5", "no configuration of BertForMaskedLM has 16 of 32 hidden"),
        ("heads:0.5,hidden:0.25", "no configuration of BertForMaskedLM has 1 of 2 heads and 24 of 32 hidden"),
    ],
)
def test_a_structure_that_leads_nowhere_is_refused_first(structure, message, tiny_bert, tmp_path, capsys) -> None:
    words = ["train", "--method", "omp", "--model", str(tiny_bert), "--output", str(tmp_path / "run")]
    assert main([*words, "--structure", structure]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_file_that_claims_a_structure_has_it(run, tmp_path: Path) -> None:
    run("rand", structure="ffn:0.5,layers:0.5")
    packed = load_packed(tmp_path / "run")
    with safe_open(tmp_path / "run" / "mask.safetensors", framework="np") as file:
        assert file.metadata()["structure"] == "ffn:0.5,layers:0.5"
    for wrong in (
        "ffn:0.25,layers:0.5",
        "ffn:0.5",
        "layers:0.5,ffn:0.5",
        "ffn:0.5,layers:0.5,hidden:0.5",
        "x",
        "ffn:2",
    ):
        save_packed(tmp_path / "wrong.safetensors", replace(packed, info=replace(packed.info, structure=wrong)))
        with pytest.raises(UserError, match="is damaged"):
            load_packed(tmp_path / "wrong.safetensors")
    masks, info = load_masks(tmp_path / "run")
    masks["layers"][:] = True
    with pytest.raises(
        UserError, match="its mask of layers keeps 2 entries where the structure ffn:0.5,layers:0.5 keeps 1"
    ):
        save_masks(tmp_path / "other.safetensors", masks, info, exact=True)


def test_compare_takes_masks_of_one_structure(run, tmp_path: Path, capsys) -> None:
    for name, structure in {"a": "ffn:0.5", "b": "ffn:0.5", "c": "layers:0.5"}.items():
        run("rand", name, structure=structure, seed=ord(name))
    files = {name: str(tmp_path / name / "mask.safetensors") for name in "abc"}
    assert main(["compare", files["a"], files["b"], "--json"]) == 0
    assert 0.2 < json.loads(capsys.readouterr().out)["results"][0]["similarity"] < 0.5
    assert main(["compare", files["a"], files["c"]]) == 2
    assert "prune different groups; compare masks of one --structure" in capsys.readouterr().err
