"""Models in sparse files: written by `tamt export`, opened by `tamt.load_sparse` and by commands, and written back."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import prune
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    pipeline,
)

import tamt
import tamt_kernels as tk
from tamt.cli import main
from tamt.commands.evaluate import evaluate
from tamt.commands.export import export
from tamt.finetuning.finetune import finetune
from tamt.masks.file import MaskInfo, save_masks
from tamt.masks.masking import apply_masks, magnitude_masks, prunable_weights
from tamt.masks.sparse_file import SPARSE_FILE, load_sparse_state, save_sparse
from tamt.models.loading import dense_state, load_as_saved
from tamt.runtime.errors import UserError

KINDS = (BertModel, BertForMaskedLM, BertForSequenceClassification, BertForQuestionAnswering)


def write_mask(model: Path, path: Path, sparsity: float = 0.7) -> Path:
    masks = magnitude_masks(prunable_weights(AutoModelForMaskedLM.from_pretrained(model)), sparsity)
    save_masks(path, masks, MaskInfo(str(model), "omp", sparsity, seed=0, step=0))
    return path


def save_pruned(kind: Any, tiny_bert: Path, folder: Path, sparsity: float = 0.7) -> PreTrainedModel:
    """A model with a head and zeros, saved with its tokenizer."""
    torch.manual_seed(1)
    model = kind(BertConfig.from_pretrained(tiny_bert)).eval()
    apply_masks(model, magnitude_masks(prunable_weights(model), sparsity))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return model


@pytest.fixture
def classifier(tiny_bert: Path, tmp_path: Path) -> Path:
    """Folder of a pruned classifier."""
    save_pruned(BertForSequenceClassification, tiny_bert, tmp_path / "classifier")
    return tmp_path / "classifier"


def sparse(model: Path, output: Path, **options: Any) -> dict:
    return export(model=str(model), output=output, format="sparse", **options)["results"][0]


def outputs(model: PreTrainedModel) -> list[torch.Tensor]:
    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        return [tensor for tensor in model(ids).to_tuple() if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_mpnet"])
def test_a_subnetwork_goes_through_a_sparse_file_bit_for_bit(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    mask = write_mask(model, tmp_path / "mask.safetensors")
    export(model=str(model), mask=mask, output=tmp_path / "dense")
    row = sparse(model, tmp_path / "sparse", mask=mask)
    assert (row["method"], row["sparsity"], row["values"]) == ("omp", pytest.approx(0.7, abs=0.01), "float32")
    assert row["sparse_matrices"] >= 13, "and a decoder whose row of padding is zero"
    export(model=str(tmp_path / "sparse"), output=tmp_path / "back")
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "dense" / file).read_bytes()
    files = {path.name for path in (tmp_path / "dense").iterdir()}
    assert {path.name for path in (tmp_path / "back").iterdir()} == files
    assert {path.name for path in (tmp_path / "sparse").iterdir()} == files - {"model.safetensors"} | {SPARSE_FILE}
    sparse(tmp_path / "dense", tmp_path / "again")
    assert (tmp_path / "again" / SPARSE_FILE).read_bytes() == (tmp_path / "sparse" / SPARSE_FILE).read_bytes()


@pytest.mark.parametrize("form", ["bin", "shards", "torch.nn.utils.prune", "half"])
def test_any_folder_with_zeros_is_exported(form: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = save_pruned(BertForSequenceClassification, tiny_bert, folder)
    state = load_file(folder / "model.safetensors")
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    if form == "shards":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=20_000)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    if form == "torch.nn.utils.prune":
        query = model.bert.encoder.layer[0].attention.self.query
        prune.custom_from_mask(query, "weight", query.weight != 0)
        model.save_pretrained(folder)
    if form == "half":
        state = {name: tensor.half() for name, tensor in state.items()}
        model.half().save_pretrained(folder)
    row = sparse(folder, tmp_path / "sparse")
    assert row["sparse_matrices"] == 13
    found = load_sparse_state(tmp_path / "sparse" / SPARSE_FILE)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in state.items())


def test_a_shard_that_is_not_there_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    model = save_pruned(BertForSequenceClassification, tiny_bert, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    (gone, *_) = sorted(tmp_path.glob("model-*.safetensors"))
    gone.unlink()
    with pytest.raises(UserError, match=f"names '{gone.name}', which is not in its folder"):
        dense_state(str(tmp_path))


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_each_class_is_loaded_and_computes_the_same(
    kind: Any, values: str, tiny_bert: Path, tmp_path: Path
) -> None:
    dense = save_pruned(kind, tiny_bert, tmp_path / "model")
    sparse(tmp_path / "model", tmp_path / "sparse", values=values)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(parameter.to(getattr(torch, values)))
    loaded = tamt.load_sparse(tmp_path / "sparse")
    assert type(loaded) is kind
    assert not loaded.training
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    for found, expected in zip(outputs(loaded), outputs(dense), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for found, expected in zip(outputs(copy.deepcopy(loaded)), outputs(loaded), strict=True):
        assert torch.equal(found, expected)


def test_tied_embeddings_are_stored_once_and_tied_again(tiny_bert: Path, tmp_path: Path) -> None:
    dense = save_pruned(BertForMaskedLM, tiny_bert, tmp_path / "model")
    assert dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    sparse(tmp_path / "model", tmp_path / "sparse")
    names = load_sparse_state(tmp_path / "sparse" / SPARSE_FILE)
    assert [name for name in names if names[name].shape == dense.get_input_embeddings().weight.shape] == [
        "bert.embeddings.word_embeddings.weight"
    ]
    loaded = tamt.load_sparse(tmp_path / "sparse")
    torch.testing.assert_close(outputs(loaded), outputs(dense), rtol=1e-5, atol=1e-5)
    head, words = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    shared = {p.data_ptr() for p in head.parameters()} & {p.data_ptr() for p in words.parameters()}
    assert len(shared) == 1


def test_names_that_transformers_changes_are_found(tiny_bert: Path, tmp_path: Path) -> None:
    dense = save_pruned(BertModel, tiny_bert, tmp_path / "model")
    sparse(tmp_path / "model", tmp_path / "sparse")
    renamed = {f"bert.{name}": tensor for name, tensor in dense.state_dict().items()}
    save_sparse(tmp_path / "sparse" / SPARSE_FILE, renamed, "float32")
    loaded = tamt.load_sparse(tmp_path / "sparse")
    assert any(isinstance(module, tk.SparseLinear) for module in loaded.modules())
    torch.testing.assert_close(outputs(loaded), outputs(dense), rtol=1e-5, atol=1e-5)


def test_a_shared_weight_that_a_file_has_twice_is_shared(tiny_bert: Path, tmp_path: Path) -> None:
    dense = save_pruned(BertForMaskedLM, tiny_bert, tmp_path / "model")
    sparse(tmp_path / "model", tmp_path / "sparse")
    save_sparse(tmp_path / "sparse" / SPARSE_FILE, dense.state_dict(), "float32")
    loaded = tamt.load_sparse(tmp_path / "sparse")
    torch.testing.assert_close(outputs(loaded), outputs(dense), rtol=1e-5, atol=1e-5)


def test_two_matrices_that_a_configuration_ties_stay_two_if_they_differ(tiny_bert: Path, tmp_path: Path) -> None:
    save_pruned(BertForMaskedLM, tiny_bert, tmp_path / "model")
    sparse(tmp_path / "model", tmp_path / "sparse")
    state = {
        name: tensor.clone()
        for name, tensor in BertForMaskedLM.from_pretrained(tmp_path / "model").state_dict().items()
    }
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"].flip(0)
    save_sparse(tmp_path / "sparse" / SPARSE_FILE, state, "float32")
    expected = load_as_saved(str(tmp_path / "sparse")).eval()
    torch.testing.assert_close(outputs(tamt.load_sparse(tmp_path / "sparse")), outputs(expected), rtol=1e-5, atol=1e-5)


def test_a_matrix_without_a_place_in_the_model_is_left_out(tiny_bert: Path, tmp_path: Path) -> None:
    dense = save_pruned(BertModel, tiny_bert, tmp_path / "model")
    sparse(tmp_path / "model", tmp_path / "sparse")
    state = dense.state_dict() | {"other.weight": torch.eye(64)}
    save_sparse(tmp_path / "sparse" / SPARSE_FILE, state, "float32")
    loaded = tamt.load_sparse(tmp_path / "sparse")
    assert any(isinstance(module, tk.SparseLinear) for module in loaded.modules())
    torch.testing.assert_close(outputs(loaded), outputs(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16])
def test_matrices_below_the_break_even_are_dense_weights(values: torch.dtype, tiny_bert: Path, tmp_path: Path) -> None:
    dense = save_pruned(BertModel, tiny_bert, tmp_path / "model", sparsity=0.4)
    sparse(tmp_path / "model", tmp_path / "sparse")
    loaded = tamt.load_sparse(tmp_path / "sparse", values)
    running = any(isinstance(module, tk.SparseLinear) for module in loaded.modules())
    assert running == (values == torch.float32)  # whose break-even is at 35 %; that of bfloat16 is at 45 %
    assert all(weight.is_contiguous() for weight in loaded.parameters())
    torch.testing.assert_close(outputs(loaded), outputs(dense), rtol=1e-5, atol=1e-5)


def test_values_of_another_type_are_refused(classifier: Path, tmp_path: Path) -> None:
    sparse(classifier, tmp_path / "sparse")
    with pytest.raises(UserError, match=r"values is torch.float16 but must be torch.float32 or torch.bfloat16"):
        tamt.load_sparse(tmp_path / "sparse", torch.float16)


LOAD = """
import sys
from pathlib import Path
import tamt

def kilobytes(field):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field))

tamt.load_sparse(sys.argv[2])  # imports and starts what it needs
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = kilobytes("VmRSS")
model = tamt.load_sparse(sys.argv[1])
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")
def test_no_dense_model_is_held_while_a_sparse_one_is_loaded(classifier: Path, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=100, hidden_size=512, num_attention_heads=8, num_hidden_layers=8, intermediate_size=4096
    )
    model = BertModel(config)
    apply_masks(model, magnitude_masks(prunable_weights(model), 0.9))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "model")
    for source in (tmp_path / "model", classifier):
        sparse(source, tmp_path / f"{source.name}-sparse")
    dense = sum(parameter.nbytes for parameter in model.parameters())
    command = [sys.executable, "-c", LOAD, tmp_path / "model-sparse", tmp_path / "classifier-sparse"]
    took = 1024 * int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert took < 0.7 * dense


@pytest.mark.parametrize("whence", ["loaded", "sparsified", "dense"])
def test_a_sparse_model_is_not_saved_in_a_form_that_nothing_opens(
    whence: str, classifier: Path, tmp_path: Path
) -> None:
    sparse(classifier, tmp_path / "sparse")
    if whence == "loaded":
        model = tamt.load_sparse(tmp_path / "sparse")
    else:
        model = BertForSequenceClassification.from_pretrained(classifier)
        tk.sparsify(model, at_least=0 if whence == "sparsified" else 1)
    for each in (model, copy.deepcopy(model), model.base_model):
        if whence == "dense":
            each.save_pretrained(tmp_path / "saved")
            continue
        with pytest.raises(RuntimeError, match="the model runs sparse, and transformers .*; save the dense model"):
            each.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_a_pipeline_takes_a_sparse_model(classifier: Path, tmp_path: Path) -> None:
    sparse(classifier, tmp_path / "sparse")
    found, expected = (
        pipeline("text-classification", model=model, tokenizer=str(tmp_path / "sparse"))(["the old dog", "a cat"])
        for model in (tamt.load_sparse(tmp_path / "sparse"), str(classifier))
    )
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-6)


def test_a_fine_tuned_run_is_exported_and_scored(
    tiny_bert: Path, cats_and_dogs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    run, dev = tmp_path / "run", {"dev_file": cats_and_dogs["dev_file"]}
    finetune(task="classification", model=str(tiny_bert), mask=mask, output=run, epochs=1, lr=1e-3, **cats_and_dogs)
    assert sparse(run, tmp_path / "sparse")["sparse_matrices"] == 13
    capsys.readouterr()
    rows = []
    for model, options in ((run, {}), (run, {"sparse": True}), (tmp_path / "sparse", {})):
        rows.append(evaluate(model=str(model), task="classification", **dev, **options)["results"][0])
        assert capsys.readouterr().err.count("matrices run sparse") == (model != run or bool(options))
    assert len({row["score"] for row in rows}) == 1
    words = ["predict", "--model", str(tmp_path / "sparse"), "--file", str(dev["dev_file"])]
    assert main([*words, "--output", str(tmp_path / "predictions.jsonl")]) == 0
    assert capsys.readouterr().err.count("matrices run sparse") == 1
    found = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]


def test_losses_are_those_of_the_dense_subnetwork(
    tiny_bert: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    shared: dict[str, Any] = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "blocks": 8}
    dense, skipping = (evaluate(mask=mask, sparse=chosen, **shared)["results"][0] for chosen in (False, True))
    assert capsys.readouterr().err.count("matrices run sparse") == 1
    for loss in ("mlm_loss", "kd_loss"):
        assert skipping[loss] == pytest.approx(dense[loss], rel=1e-5)
    sparse(tiny_bert, tmp_path / "sparse", mask=mask)
    whole = evaluate(**{**shared, "model": str(tmp_path / "sparse")})["results"][0]
    assert whole["mlm_loss"] == pytest.approx(dense["mlm_loss"], rel=1e-5)


def test_too_few_zeros_are_a_warning_with_their_share(
    tiny_bert: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse(classifier, tmp_path / "sparse")
    assert "warning" not in capsys.readouterr().err
    save_pruned(BertForSequenceClassification, tiny_bert, tmp_path / "model", 0.2)
    row = sparse(tmp_path / "model", tmp_path / "few")
    error = capsys.readouterr().err
    assert f"warning: {row['zeros']:.1%} of the entries of all matrices are zeros" in error
    assert 0.1 < row["zeros"] < 0.2
    assert (tmp_path / "few" / SPARSE_FILE).is_file()
    assert sparse(tiny_bert, tmp_path / "none")["sparse_matrices"] <= 1, "the row of padding"
    assert "warning: 0." in capsys.readouterr().err


def test_nan_and_infinity_are_loaded_as_they_are_and_refused_by_commands(
    classifier: Path, cats_and_dogs: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(classifier / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    kept = state[name].nonzero()[:2]
    state[name][kept[0, 0], kept[0, 1]], state[name][kept[1, 0], kept[1, 1]] = torch.nan, torch.inf
    folder = Path(shutil.copytree(classifier, tmp_path / "strange"))
    (folder / "model.safetensors").unlink()
    save_sparse(folder / SPARSE_FILE, state, "float32")
    assert all(tensor.isnan().all() for tensor in outputs(tamt.load_sparse(folder)))
    with pytest.raises(UserError, match=f"NaN or infinity in {name}"):
        evaluate(model=str(folder), task="classification", dev_file=cats_and_dogs["dev_file"])
    export(model=str(folder), output=tmp_path / "dense")
    found = load_file(tmp_path / "dense" / "model.safetensors")
    assert all(torch.equal(found[key].view(torch.int32), tensor.view(torch.int32)) for key, tensor in state.items())


def test_mistakes_are_one_sentence_and_nothing_is_overwritten(
    tiny_bert: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    sparse(classifier, tmp_path / "sparse")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    broken = Path(shutil.copytree(tmp_path / "sparse", tmp_path / "broken")) / SPARSE_FILE
    broken.write_bytes(broken.read_bytes()[:-9])
    large = save_pruned(BertModel, tiny_bert, tmp_path / "large")
    large.embeddings.word_embeddings.weight.data[7] = 1e5
    large.save_pretrained(tmp_path / "large")
    before = sorted(tmp_path.iterdir())
    new = ["--output", str(tmp_path / "new")]
    for model, words, message in (
        (classifier, ["--format", "sparse", "--output", str(tmp_path / "full")], "is not empty and nothing in it"),
        (classifier, ["--format", "sparse", "--output", str(mask)], "is not empty and nothing in it"),
        (classifier, ["--format", "sparse", "--values", "float8", *new], "not one of float32, float16, bfloat16"),
        (classifier, ["--values", "float16", *new], "--values is for --format sparse"),
        (classifier, ["--format", "prune", *new], "--mask is missing"),
        (classifier, new, "--mask is missing, as"),
        ("bert-base-uncased", ["--format", "sparse", *new], "is no folder that is there; fetch it"),
        (tmp_path / "full", ["--format", "sparse", *new], "full"),
        (broken.parent, new, "is damaged"),
        (broken.parent, ["--mask", str(mask), *new], "is damaged"),
        (tmp_path / "large", ["--format", "sparse", "--values", "float16", *new], "too large for float16"),
    ):
        capsys.readouterr()
        assert main(["export", "--model", str(model), *words]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["Evil", "pipeline", "AutoConfig", "BertConfig", "PreTrainedModel"])
def test_a_configuration_names_a_model_or_is_refused(name: str, classifier: Path, tmp_path: Path) -> None:
    sparse(classifier, tmp_path / "sparse")
    config = tmp_path / "sparse" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": [name]}))
    with pytest.raises(UserError, match=r"sparse' is a \w+, which transformers does not have"):
        tamt.load_sparse(tmp_path / "sparse")


def test_a_dense_folder_is_no_sparse_one(classifier: Path, tmp_path: Path) -> None:
    for folder in (classifier, tmp_path / "none"):
        with pytest.raises(UserError, match=r"holds no sparse\.safetensors"):
            tamt.load_sparse(folder)
