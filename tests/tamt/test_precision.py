"""The precision of a run: what "auto" means on each device, and that a run keeps it."""

import pytest
import torch
import yaml

from tamt.finetuning.finetune import finetune
from tamt.runtime.errors import UserError
from tamt.search.train import train
from tamt.training import precision
from tamt.training.precision import choose_precision, cpu_has_bf16, report_precision
from tamt_kernels.backend import onednn, product_library


@pytest.fixture(autouse=True)
def _undecided(monkeypatch):
    monkeypatch.delenv("TAMT_PRECISION", raising=False)


def a_gpu(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: bf16)


def cpu_features(monkeypatch, *features):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_features", lambda: {"avx2", *features})


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
def test_auto_is_bf16_on_a_cpu_with_instructions_for_it(monkeypatch, capsys, feature):
    cpu_features(monkeypatch, feature)
    assert choose_precision("auto") == "bf16"
    report_precision("bf16", "auto")
    assert "precision bf16, as this CPU has instructions for bf16" in capsys.readouterr().err


def test_auto_is_fp32_on_another_cpu(monkeypatch, capsys):
    cpu_features(monkeypatch)
    assert choose_precision("auto") == "fp32"
    report_precision("fp32", "auto")
    assert "precision fp32, as this CPU has no instructions for bf16" in capsys.readouterr().err


@pytest.mark.parametrize(("bf16", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_auto_is_half_precision_on_a_gpu(monkeypatch, bf16, chosen):
    a_gpu(monkeypatch, bf16)
    assert choose_precision("auto") == chosen


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_kept(monkeypatch, capsys, asked):
    cpu_features(monkeypatch, "avx512_bf16")
    assert choose_precision(asked) == asked
    report_precision(asked, asked)
    assert not capsys.readouterr().err


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="--precision fp8 is not one of auto, fp32, bf16, fp16"):
        choose_precision("fp8")


def test_the_environment_may_say_what_auto_means(monkeypatch, capsys):
    cpu_features(monkeypatch, "avx512_bf16")
    monkeypatch.setenv("TAMT_PRECISION", "fp32")
    assert choose_precision("auto") == "fp32"
    report_precision("fp32", "auto")
    assert "precision fp32, as TAMT_PRECISION says" in capsys.readouterr().err
    assert choose_precision("bf16") == "bf16"
    monkeypatch.setenv("TAMT_PRECISION", "fp8")
    with pytest.raises(UserError, match="TAMT_PRECISION is 'fp8' but must be one of fp32, bf16, fp16, or unset"):
        choose_precision("auto")


def test_features_are_read_where_torch_does_not_tell_them(monkeypatch):
    told = cpu_has_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_bf16() == told


def test_slow_bf16_is_warned_of(monkeypatch, capsys):
    cpu_features(monkeypatch)
    report_precision("bf16", "bf16")
    assert "bf16 takes about 8 times as long as fp32 on this CPU" in capsys.readouterr().err
    cpu_features(monkeypatch, "amx_bf16")
    report_precision("bf16", "bf16")
    assert not capsys.readouterr().err


SEARCH = {"method": "tamt-kd", "steps": 4, "batch_size": 2, "save_every": 2}


def test_a_run_writes_down_its_precision_and_keeps_it(tiny_bert, corpus, tmp_path, monkeypatch):
    """Interrupted where bf16 is fastest and resumed where it is not, with nothing asked for, it stays bf16."""
    cpu_features(monkeypatch, "avx512_bf16")
    settings = {**SEARCH, "model": str(tiny_bert), "corpus": [str(corpus)], "output": tmp_path / "run"}
    train(**settings)
    (tmp_path / "run" / "results.json").unlink()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["precision"] == "bf16"
    cpu_features(monkeypatch)
    train(**settings, resume=True)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["precision"] == "bf16"


def test_finished_seeds_of_an_automatic_precision_are_not_done_again(tiny_bert, cats_and_dogs, tmp_path, monkeypatch):
    cpu_features(monkeypatch, "avx512_bf16")
    settings = {"task": "classification", "model": str(tiny_bert), "output": tmp_path / "run", "epochs": 1}
    first = finetune(**settings, **cats_and_dogs, seeds=[0, 1])
    cpu_features(monkeypatch)
    again = finetune(**settings, **cats_and_dogs, seeds=[0, 1], resume=True)
    assert again["results"][0]["seconds"] == first["results"][0]["seconds"]


@pytest.mark.skipif(onednn.problem() is not None, reason=f"no oneDNN: {onednn.problem()}")
def test_a_resumed_run_computes_by_the_library_that_it_began_with(tiny_bert, corpus, tmp_path, monkeypatch):
    """A checkpoint names the library of each product, and a resumed run takes it, whatever is fastest now."""
    rows = {"linear": ("onednn",) * 3, "linear_backward_x": ("eager",) * 3, "linear_backward_weight": ("onednn",) * 3}
    monkeypatch.setattr(product_library, "backends", lambda: ("eager", "onednn"))
    settings = {**SEARCH, "model": str(tiny_bert), "corpus": [str(corpus)], "precision": "fp32"}
    monkeypatch.setattr(product_library, "default", lambda: rows)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tamt.search.mask_training.Search.save", interrupted)  # after the last step, before the mask
        with pytest.raises(KeyboardInterrupt):
            train(**settings, output=tmp_path / "run")
    monkeypatch.setattr(product_library, "default", lambda: dict.fromkeys(rows, ("eager",) * 3))
    train(**settings, output=tmp_path / "run", resume=True)
    assert product_library.chosen() == rows
    product_library.choose({})
