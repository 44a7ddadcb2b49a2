"""An exported subnetwork opens with plain transformers: exact zeros, the rest bit for bit, its MLM head."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    pipeline,
)

from tamt.cli import main
from tamt.masks.file import MaskInfo, save_masks
from tamt.masks.masking import Masks, magnitude_masks, prunable_weights


def write_mask(model: Path, path: Path, pooler: bool = False) -> Masks:
    masks = magnitude_masks(prunable_weights(AutoModel.from_pretrained(model), pooler=pooler), 0.7)
    save_masks(path, masks, MaskInfo(str(model), "omp", 0.7, seed=0, step=0))
    return masks


def check_masked(exported: torch.nn.Module, original: torch.nn.Module, masks: Masks, pooler: bool = False) -> None:
    """All prunable matrices are W ⊙ m bit for bit, every other parameter is as it was."""
    found, before = prunable_weights(exported, pooler), prunable_weights(original, pooler)
    for name, mask in masks.items():
        weight = found[name].detach()
        assert weight[~mask].view(torch.int32).count_nonzero() == 0, "+0.0"
        assert torch.equal(weight[mask], before[name].detach()[mask])
    rest = dict(exported.base_model.named_parameters())
    for name, parameter in original.base_model.named_parameters():
        assert name in masks or torch.equal(rest[name], parameter)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta"])
def test_the_export_has_exact_zeros_and_its_mlm_head(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue(name)
    masks = write_mask(model, tmp_path / "mask.safetensors")
    words = ["export", "--model", str(model), "--mask", str(tmp_path / "mask.safetensors")]
    assert main([*words, "--output", str(tmp_path / "deep" / "out")]) == 0
    assert "mlm_head       True" in capsys.readouterr().out
    out = tmp_path / "deep" / "out"
    exported, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    original = AutoModelForMaskedLM.from_pretrained(model)
    assert not info["missing_keys"]
    assert exported.config.tie_word_embeddings is False
    check_masked(exported, original, masks)
    assert torch.equal(exported.get_output_embeddings().weight, original.get_output_embeddings().weight), "dense"
    encoder = {id(parameter) for parameter in exported.base_model.parameters()}
    theirs = original.state_dict()
    head = {n: p for n, p in exported.named_parameters() if id(p) not in encoder}
    assert len(head) >= 5
    assert all(torch.equal(parameter, theirs[n]) for n, parameter in head.items())
    check_masked(AutoModel.from_pretrained(out, add_pooling_layer=False), original, masks)
    token = AutoTokenizer.from_pretrained(out).mask_token
    assert len(pipeline("fill-mask", model=str(out))(f"the {token} dog")) == 5
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]


def test_an_empty_folder_is_filled_from_within(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = write_mask(tiny_bert, tmp_path / "mask.safetensors")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert main(["export", "--model", str(tiny_bert), "--mask", "../mask.safetensors", "--output", "."]) == 0
    assert Path("config.json").is_file()
    check_masked(AutoModelForMaskedLM.from_pretrained("."), AutoModelForMaskedLM.from_pretrained(tiny_bert), masks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.safetensors", "out"]


def test_every_file_is_as_readable_as_any_other(tiny_bert: Path, tmp_path: Path) -> None:
    write_mask(tiny_bert, tmp_path / "mask.safetensors")
    words = ["--model", str(tiny_bert), "--mask", str(tmp_path / "mask.safetensors"), "--output", str(tmp_path / "out")]
    assert main(["export", *words]) == 0
    (tmp_path / "any.txt").write_text("")
    permissions = (tmp_path / "any.txt").stat().st_mode
    assert {file.name: file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {
        file.name: permissions for file in (tmp_path / "out").iterdir()
    }


def test_the_pooler_goes_along_masked_or_not(tiny_bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertForPreTraining(BertConfig.from_pretrained(tiny_bert)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    masks = write_mask(tmp_path / "model", tmp_path / "mask.safetensors", pooler=True)
    assert "pooler.dense.weight" in masks
    words = ["export", "--model", str(tmp_path / "model"), "--mask", str(tmp_path / "mask.safetensors")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    check_masked(classifier, AutoModel.from_pretrained(tmp_path / "model"), masks, pooler=True)


def test_a_checkpoint_without_mlm_head_gives_one_without_and_no_random_pooler(tiny_bert: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    masks = write_mask(tmp_path / "model", tmp_path / "mask.safetensors")
    words = ["export", "--model", str(tmp_path / "model"), "--mask", str(tmp_path / "mask.safetensors")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    exported, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["BertModel"]
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"pooler"}
    check_masked(exported, AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False), masks)


def test_nothing_is_overwritten_and_mistakes_are_one_line(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, other = tmp_path / "mask.safetensors", tmp_path / "other.safetensors"
    masks = write_mask(tiny_bert, mask)
    masks["encoder.layer.2.output.dense.weight"] = masks.pop("encoder.layer.1.output.dense.weight")
    save_masks(other, masks, MaskInfo("other", "omp", 0.7, seed=0, step=0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    capsys.readouterr()  # of the model that the mask was made for
    for model, file, output, message in (
        (tiny_bert, mask, "out", "is not empty and nothing in it is overwritten"),
        (tiny_bert, mask, "mask.safetensors", "is not empty and nothing in it is overwritten"),
        (tiny_bert, tmp_path / "none", "new", "there is no mask file"),
        (tmp_path / "none", mask, "new", "is no folder that is there"),
        (tiny_bert, other, "new", "another model"),
    ):
        words = ["export", "--model", str(model), "--mask", str(file), "--output", str(tmp_path / output)]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.safetensors", "other.safetensors", "out"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_evaluate_says_that_an_exported_model_is_compared_with_itself(
    tiny_bert: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mask(tiny_bert, tmp_path / "mask.safetensors")
    mask, out = ["--mask", str(tmp_path / "mask.safetensors")], str(tmp_path / "out")
    assert main(["export", "--model", str(tiny_bert), *mask, "--output", out]) == 0
    text = ["--corpus", str(corpus), "--blocks", "2", "--max-length", "16"]
    capsys.readouterr()
    assert main(["evaluate", "--model", out, *text]) == 0
    assert (
        "out holds 70% zeros and no --mask is given, so the KD loss compares it with itself" in capsys.readouterr().err
    )
    for whole in (["--model", str(tiny_bert)], ["--model", str(tiny_bert), *mask]):
        assert main(["evaluate", *whole, *text]) == 0
        assert "compares it with itself" not in capsys.readouterr().err
