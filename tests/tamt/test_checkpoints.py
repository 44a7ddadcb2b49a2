"""No command works with other words, weights or decoders than those of the checkpoint without saying so."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tamt.cli import main
from tamt.models.language_model import load_masked_language_model
from tamt.models.loading import load_encoder
from tamt.models.task_models import load_classifier, load_question_answerer
from tamt.runtime.errors import UserError
from tamt.runtime.quiet import quiet_transformers
from tests.tamt.families import save_family

FAMILIES = ["bert", "roberta", "distilbert", "electra", "deberta"]
COMMANDS = ["omp", "tamt-kd", "evaluate", "finetune", "export"]
LOADERS: dict[str, Callable[[str], Any]] = {
    "mask training": load_masked_language_model,
    "classification": lambda name: load_classifier(name, ["a", "b"]),
    "regression": lambda name: load_classifier(name, None),
    "question answering": load_question_answerer,
    "encoder": load_encoder,
}


@pytest.fixture
def command(tmp_path: Path, corpus: Path, cats_and_dogs: dict[str, Path]) -> Callable[[str, Path], list[str]]:
    """The words of a command that works with a model; export's mask is `mask.safetensors` in the test's folder."""
    text = ["--corpus", str(corpus), "--max-length", "16"]
    files = [word for key, file in cats_and_dogs.items() for word in (f"--{key.replace('_', '-')}", str(file))]
    rest = {
        "omp": ["train", "--method", "omp", *text],
        "tamt-kd": ["train", "--method", "tamt-kd", "--steps", "2", *text],
        "evaluate": ["evaluate", *text],
        "finetune": ["finetune", "--task", "classification", "--epochs", "1", *files],
        "export": ["export", "--mask", str(tmp_path / "mask.safetensors")],
    }

    def words(name: str, model: Path) -> list[str]:
        output = [] if name == "evaluate" else ["--output", str(tmp_path / "out" / name)]
        return [*rest[name], "--model", str(model), *output]

    return words


def check_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with exit code 2, and no output."""
    capsys.readouterr()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not any(Path(output).exists() for flag, output in pairwise(words) if flag == "--output")


def save_mask(command: Callable[[str, Path], list[str]], model: Path, folder: Path) -> None:
    assert main(command("omp", model)) == 0
    (folder / "out" / "omp" / "mask.safetensors").rename(folder / "mask.safetensors")
    for file in sorted((folder / "out").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


# Words.


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_its_tokenizer_is_refused(family: str, name: str, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family)
    if name == "export":
        save_mask(command, model, tmp_path)
    remove_tokenizer(model)
    check_refused(command(name, model), "knows 0 words beside its special tokens where the model knows 28", capsys)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}', "knows 0 words"),
        ("special_tokens_map.json", '{"mask_token": "[MASK]"}', "knows 0 words"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n", "knows 1 words"),
        ("vocab.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run git lfs pull"),
    ],
)
def test_files_that_hold_no_words_are_no_tokenizer(file, content, message, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", "bert")
    remove_tokenizer(model)
    (model / file).write_text(content)
    check_refused(command("finetune", model), message, capsys)


def test_a_family_whose_tokenizer_cannot_be_made_of_nothing_has_its_sentence(command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", "modernbert")
    remove_tokenizer(model)
    check_refused(command("finetune", model), "holds no tokenizer, none of tokenizer.json, vocab.txt", capsys)


# Weights.


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("family", "edit", "tensor", "shapes"),
    [
        ("bert", {"intermediate_size": 128}, "encoder.layer.0.intermediate.dense.bias", "[64] where"),
        ("bert", {"max_position_embeddings": 40}, "embeddings.position_embeddings.weight", "[64, 32] where"),
        ("roberta", {"type_vocab_size": 1}, "embeddings.token_type_embeddings.weight", "[2, 32] where"),
        ("distilbert", {"hidden_dim": 128}, "transformer.layer.0.ffn.lin1.bias", "[64] where"),
        ("electra", {"embedding_size": 24}, "embeddings.LayerNorm.bias", "[16] where"),
        ("deberta", {"vocab_size": 40}, "embeddings.word_embeddings.weight", "[28, 32] where"),
    ],
)
def test_an_encoder_of_another_shape_is_refused_with_both(
    family: str, edit: dict, tensor: str, shapes: str, loader: str, tmp_path: Path
) -> None:
    model = save_family(tmp_path / "model", family)
    change_config(model, **edit)
    with pytest.raises(UserError, match=r"where its config.json asks for \[.*restore the config.json") as error:
        LOADERS[loader](str(model))
    assert tensor in str(error.value)
    assert shapes in str(error.value)


@pytest.mark.parametrize("name", ["omp", "evaluate", "finetune"])
def test_shapes_that_differ_are_one_sentence_in_every_command(name: str, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", "bert")
    change_config(model, intermediate_size=128)
    check_refused(command(name, model), "where its config.json asks for [128]", capsys)


def test_a_pooler_of_another_shape_is_refused_and_a_missing_one_is_said(tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", "bert")
    load_classifier(str(model), ["a", "b"])
    assert "has no trained pooler: a fresh one is drawn, as the head is" in capsys.readouterr().err
    pooler = {"bert.pooler.dense.weight": torch.zeros(32, 32), "bert.pooler.dense.bias": torch.zeros(32)}
    change_tensors(model, lambda tensors: tensors | pooler)
    load_classifier(str(model), ["a", "b"])
    assert "pooler" not in capsys.readouterr().err
    change_tensors(model, lambda tensors: tensors | {"bert.pooler.dense.weight": torch.zeros(16, 32)})
    with pytest.raises(UserError, match=r"bert.pooler.dense.weight of shape \[16, 32\]"):
        load_classifier(str(model), ["a", "b"])


def test_only_the_head_of_a_fine_tuned_checkpoint_may_differ(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "bert")
    head = {"classifier.weight": torch.zeros(5, 32), "classifier.bias": torch.zeros(5)}
    change_tensors(model, lambda tensors: tensors | head)
    assert load_classifier(str(model), ["a", "b"]).classifier.weight.shape == (2, 32)


@pytest.mark.parametrize(("family", "key"), [("bert", "num_hidden_layers"), ("distilbert", "n_layers")])
@pytest.mark.parametrize("loader", LOADERS)
def test_layers_that_the_configuration_leaves_out_are_said(family, key, loader, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family)
    change_config(model, **{key: 1})
    LOADERS[loader](str(model))
    error = " ".join(capsys.readouterr().err.split())
    assert "has 16 tensors that its config.json leaves no place for, and they are left out" in error
    assert "layer.1.attention" in error


def test_a_whole_checkpoint_says_nothing(tmp_path: Path, capsys) -> None:
    for family in FAMILIES:
        model = save_family(tmp_path / family, family)
        capsys.readouterr()
        with quiet_transformers():
            load_masked_language_model(str(model))
            load_encoder(str(model))
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.module."])
def test_names_with_a_prefix_have_a_hint(prefix: str, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", "bert")
    change_tensors(model, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    check_refused(command("finetune", model), f"its names begin with {prefix!r}", capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["omp", "tamt-kd", "evaluate", "finetune"])
def test_weights_that_are_no_numbers_are_refused_by_name(name: str, value: float, command, tmp_path, capsys) -> None:
    model = save_family(tmp_path / "model", "bert")

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["bert.encoder.layer.1.output.dense.weight"][3, 4] = value
        return tensors

    change_tensors(model, spoil)
    message = "holds NaN or infinity in bert.encoder.layer.1.output.dense.weight"
    check_refused(command(name, model), message, capsys)


# Decoders.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_that_is_not_tied_stays_its_own(family: str, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family, tie_word_embeddings=False)
    original = AutoModelForMaskedLM.from_pretrained(model)
    own = original.get_output_embeddings().weight
    assert not torch.equal(own, original.get_input_embeddings().weight)
    heads = load_masked_language_model(str(model))
    assert not heads.fresh_head
    assert torch.equal(heads.decoder.weight, own)
    assert not heads.decoder.weight.requires_grad
    save_mask(command, model, tmp_path)
    assert main(command("export", model)) == 0
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "export")
    assert torch.equal(exported.get_output_embeddings().weight, own)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_has_the_losses_of_its_model_and_mask(family, tied, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family, tie_word_embeddings=tied)
    save_mask(command, model, tmp_path)
    assert main(command("export", model)) == 0
    capsys.readouterr()
    losses = []
    for words in (
        [*command("evaluate", model), "--mask", str(tmp_path / "mask.safetensors")],
        command("evaluate", tmp_path / "out" / "export"),
    ):
        assert main([*words, "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["results"][0]["mlm_loss"])
    assert losses[0] == losses[1]


def test_a_decoder_that_is_missing_is_the_embedding(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "bert")
    change_config(model, tie_word_embeddings=False)
    heads = load_masked_language_model(str(model))
    assert torch.equal(heads.decoder.weight, heads.model.get_input_embeddings().weight)
    assert heads.decoder.weight is not heads.model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(model).mask_token == "[MASK]"


# Models that are not of BERT's family, and configurations that ask for something else.


@pytest.mark.parametrize("family", ["llama", "eurobert", "xlnet", "funnel"])
def test_a_model_outside_the_family_is_fine_tuned_where_all_is_there(family: str, command, tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", family)
    assert main(command("finetune", model)) == 0


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_with_a_decoder_is_refused(family: str, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family)
    check_refused(command("finetune", model), "has a decoder beside its encoder", capsys)


@pytest.mark.parametrize("name", ["omp", "finetune"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_position_embeddings", 64.0),
        ("hidden_size", "32"),
        ("num_attention_heads", 0),
        ("vocab_size", None),
        ("pad_token_id", 1000),
        ("hidden_act", "nope"),
        ("hidden_dropout_prob", 2.0),
        ("add_cross_attention", True),
        ("model_type", "nope"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(key, value, name, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", "bert")
    change_config(model, **{key: value})
    check_refused(command(name, model), f"in {str(model)!r} cannot be read (", capsys)


@pytest.mark.parametrize("name", ["omp", "tamt-kd", "evaluate", "finetune"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta"])
def test_a_configuration_that_asks_for_tuples_changes_nothing(family: str, name: str, command, tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", family)
    change_config(model, return_dict=False, output_attentions=True, output_hidden_states=True)
    assert main(command(name, model)) == 0


@pytest.mark.parametrize("name", ["omp", "tamt-kd", "evaluate", "finetune"])
def test_a_precision_that_a_model_cannot_compute_in_is_one_sentence(name, command, tmp_path: Path, capsys) -> None:
    """DeBERTa fills masked scores with float32's least number, also in bf16."""
    model = save_family(tmp_path / "model", "deberta")
    message = "does not run in bf16 (value cannot be converted to type c10::BFloat16 without overflow); give"
    if torch.cuda.is_available():
        pytest.skip("of GPUs other types overflow")
    capsys.readouterr()
    assert main([*command(name, model), "--precision", "bf16"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / name).exists()


@pytest.mark.skipif("torch.cuda.is_available()", reason="DeBERTa runs in a GPU's half precision")
@pytest.mark.parametrize("name", ["tamt-kd", "evaluate", "finetune"])
def test_auto_is_fp32_for_a_model_that_does_not_run_in_half_precision(
    name, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model = save_family(tmp_path / "model", "deberta")
    outputs = []
    for precision in ("auto", "fp32"):
        monkeypatch.setenv("TAMT_PRECISION", "bf16")  # what a CPU with instructions for it chooses
        words = command(name, model)
        output = tmp_path / "out" / precision
        if "--output" in words:
            words[-1] = str(output)
        assert main([*words, "--precision", precision, "--json"]) == 0
        captured = capsys.readouterr()
        said = [line for line in " ".join(captured.err.split()).split("(updates") if "precision fp32, as" in line]
        assert len(said) == (precision == "auto")
        row = json.loads(captured.out)["results"][0]
        outputs.append({key: value for key, value in row.items() if key not in {"seconds", "mask", "output"}})
        if name != "evaluate":
            assert "precision: fp32" in (output / "config.yaml").read_text()
    assert outputs[0] == outputs[1], "to the bit"


@pytest.mark.parametrize("name", ["omp", "tamt-kd", "evaluate"])
@pytest.mark.parametrize("longest", [8, 24])
def test_a_tokenizer_of_shorter_inputs_than_the_model_is_no_mistake(name, longest, command, tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "bert")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(model)
    words = command(name, model)
    at = words.index("--max-length")
    assert main(words[:at] + words[at + 2 :]) == 0


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "deberta"])
def test_a_pooler_that_is_not_there_cannot_be_pruned(family: str, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family)
    check_refused([*command("omp", model), "--prune-pooler"], "has no trained pooler (pooler.dense)", capsys)


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "mobilebert"])
def test_without_a_known_head_masks_are_searched_without_mlm(family, command, tmp_path: Path, capsys) -> None:
    model = save_family(tmp_path / "model", family)
    for method in ("omp", "rand", "tamt-kd"):
        words = command("tamt-kd" if method == "tamt-kd" else "omp", model)
        words[words.index("--method") + 1], words[-1] = method, str(tmp_path / "out" / method)
        assert main([*words, "--json"]) == 0
        row = json.loads(capsys.readouterr().out)["results"][0]
        assert row["mlm_loss"] is None
        assert row["kd_loss"] > 0
    masks = [str(tmp_path / "out" / method / "mask.safetensors") for method in ("omp", "tamt-kd")]
    assert main(["compare", *masks, "--model", str(model)]) == 0
    assert main([*command("finetune", model), "--mask", masks[1]]) == 0
    (tmp_path / "mask.safetensors").write_bytes(Path(masks[1]).read_bytes())
    assert main(command("export", model)) == 0
    words = command("tamt-kd", model)
    words[words.index("--method") + 1], words[-1] = "tamt-mlm", str(tmp_path / "out" / "mlm")
    check_refused(words, "is not known here; choose a BERT", capsys)
