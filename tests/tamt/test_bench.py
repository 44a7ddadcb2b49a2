"""`tamt bench`: a row per number of threads and tokens, sizes, and what is said where sparse is slower."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tamt.cli import main
from tamt.commands import bench
from tamt.masks.file import MaskInfo, save_masks
from tamt.masks.masking import magnitude_masks, prunable_weights
from tamt.models import onnx_runtime
from tamt.models.loading import load_encoder


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["bench", *words, "--rounds", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_times_and_sizes_of_a_subnetwork(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = magnitude_masks(prunable_weights(load_encoder(str(tiny_bert))[0]), 0.75)
    save_masks(tmp_path / "mask", masks, MaskInfo(str(tiny_bert), "omp", 0.75, seed=0, step=0))
    threads = torch.get_num_threads()
    words = [str(tiny_bert), "--mask", str(tmp_path / "mask"), "--tokens", "1,20", "--threads", "1,2"]
    found = measured(capsys, *words)
    rows = found["results"]
    assert [(row["threads"], row["tokens"]) for row in rows] == [(1, 1), (1, 20), (2, 1), (2, 20)]
    assert torch.get_num_threads() == threads
    for row in rows:
        dense = {"": row["dense_ms"], " by oneDNN": row["dense_onednn_ms"], " by ONNX Runtime": row["dense_onnx_ms"]}
        assert row["times_faster"] == pytest.approx(min(dense.values()) / row["sparse_ms"])
        times = {f"dense{way}": each for way, each in dense.items()} | {"sparse": row["sparse_ms"]}
        assert row["fastest_ms"] == times[row["fastest"]] == min(times.values())
        assert row["sparse_tokens_per_s"] == pytest.approx(1000 * row["tokens"] / row["sparse_ms"])
    sizes = found["megabytes"]
    for row in rows:
        assert row["megabytes"] == sizes["file in float32"]["sparse" if row["fastest"] == "sparse" else "dense"]
    assert sizes.keys() == {"memory", "file in float32", "file in float16"}
    assert all(size["sparse"] < 0.6 * size["dense"] for size in sizes.values())
    assert measured(capsys, str(tiny_bert), "--sparsity", "0.75", *words[3:])["megabytes"] == sizes


def test_a_sparse_model_that_is_slower_is_said_to_be(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_times", lambda *_: {"dense": 3.0, "dense by oneDNN": 1.0, "sparse": 2.0})
    assert main(["bench", str(tiny_bert), "--sparsity", "0.8", "--tokens", "8", "--threads", "1"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"fastest +dense by oneDNN", shown.out)
    assert "× smaller" in shown.err


def test_onnx_runtime_computes_the_same_for_any_number_of_rows_and_tokens(tiny_bert: Path) -> None:
    model = load_encoder(str(tiny_bert))[0].eval()
    with onnx_runtime.exported(model) as path:
        forward = onnx_runtime.session(path, threads=1)
        for rows, tokens in ((1, 1), (3, 20)):
            ids = torch.randint(5, model.config.vocab_size, (rows, tokens))
            with torch.inference_mode():
                expected = model(ids).last_hidden_state
            torch.testing.assert_close(torch.as_tensor(forward(ids)[0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "why",
    ["onnxscript is not installed", "(TypeError: ", "(RuntimeError: no such operator)", "no products of bfloat16"],
)
def test_why_onnx_runtime_is_not_measured_is_said(
    why: str, tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    words = [str(tiny_bert), "--sparsity", "0.8", "--tokens", "8", "--threads", "1"]
    if "installed" in why:
        monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None if name == "onnxscript" else True)
    elif "TypeError" in why:
        monkeypatch.setattr(torch.onnx, "export", len)  # which takes no such arguments
    elif "operator" in why:
        monkeypatch.setattr(onnx_runtime, "session", fails)
    else:
        words += ["--precision", "bf16"]
    assert main(["bench", *words, "--rounds", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert why in shown.err
    (row,) = json.loads(shown.out)["results"]
    assert row["dense_onnx_ms"] is None


def test_a_structured_ticket_is_measured_shrunk(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = ["train", "--method", "omp", "--model", str(tiny_bert), "--structure", "ffn:0.5", "--output", run]
    assert main(words) == 0
    row, full = (
        measured(capsys, str(tiny_bert), *more, "--tokens", "8", "--threads", "1")["results"][0]
        for more in (["--mask", f"{run}/mask.safetensors"], [])
    )
    assert row["fastest"] in {"shrunk", "shrunk by oneDNN", "shrunk by ONNX Runtime"}
    assert row["megabytes"] < full["megabytes"]


def test_a_model_without_zeros_is_measured_dense(tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_bert), "--tokens", "8", "--threads", "1", "--rounds", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"no matrix of \S+ has zeros enough to run sparse, so it is measured dense; give", shown.err)
    assert "smaller" not in shown.err
    (row,) = json.loads(shown.out)["results"]
    assert (row["sparse_ms"], row["times_faster"]) == (None, None)
    assert row["fastest"] in {"dense", "dense by oneDNN", "dense by ONNX Runtime"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "1.5"], "--sparsity 1.5 must be between 0 and 1"),
        (["--sparsity", "0.5", "--tokens", "33"], "--tokens 33 is more than the 32 tokens"),
        (["--sparsity", "0.5", "--tokens", "0"], "--tokens must be whole numbers from 1 on"),
        (["--sparsity", "0.5", "--mask", "k"], "exclude each other"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], message: str, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny_bert), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
