"""The searches, end to end on a tiny model."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import tamt.search.imp as imp
from tamt.commands.evaluate import evaluate
from tamt.masks import masking
from tamt.masks.file import load_masks
from tamt.masks.masking import keep_of, magnitude_masks, prunable_weights, random_masks, sparsity_of
from tamt.methods import METHODS, steps_to
from tamt.models.language_model import load_masked_language_model
from tamt.objectives import Losses
from tamt.runtime.errors import UserError
from tamt.search import mask_training
from tamt.search.imp import prune_and_reset
from tamt.search.train import train
from tamt.training import step_graph
from tamt.training.checkpoint import read_checkpoint
from tamt.training.steps import Stepper


@pytest.fixture
def run(tmp_path: Path, corpus: Path, tiny_bert: Path):
    """Call train on the tiny model; options given win."""

    def call(method: str, output: str = "run", **options) -> dict:
        settings = {"model": str(tiny_bert), "corpus": [str(corpus)], "max_length": 16, "steps": 20, **options}
        if "objective" in METHODS[method].variants:
            settings.setdefault("objective", "kd:1,attention:1,logits:0.5")
        return train(method=method, output=tmp_path / output, **settings)["results"][-1]

    return call


OF_WEIGHTS = [name for name, method in METHODS.items() if method.structures != "layers"]
"""The methods that prune single weights."""


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_roberta"])
@pytest.mark.parametrize("method", OF_WEIGHTS)
def test_every_method_gives_an_exact_mask(method, family, request, run, tmp_path: Path) -> None:
    folder = request.getfixturevalue(family)
    result = run(method, model=str(folder), sparsity=0.6)
    masks, info = load_masks(tmp_path / "run" / "mask.safetensors")
    weights = prunable_weights(load_masked_language_model(str(folder)).model)
    assert masks.keys() == weights.keys()
    assert all(int(mask.sum()) == keep_of(mask.numel(), 0.6) for mask in masks.values())
    assert (info.method, info.sparsity, info.seed, info.model) == (method, 0.6, 0, str(folder))
    assert result["sparsity"] == pytest.approx(0.6, abs=0.002)
    assert math.isfinite(result["kd_loss"])
    assert math.isfinite(result["mlm_loss"])
    stored = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert stored["results"][-1] == result
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("method", OF_WEIGHTS)
def test_the_same_seed_gives_the_same_mask(method, run, tmp_path: Path) -> None:
    for output, seed in {"a": 1, "b": 1, "c": 2}.items():
        run(method, output, seed=seed, steps=30)
    a, b, c = (load_masks(tmp_path / output / "mask.safetensors")[0] for output in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    # OMP has no chance in it, and IMP's few steps may prune the same either way.
    if method not in {"omp", "imp"}:
        assert any(not torch.equal(a[name], c[name]) for name in a)


def test_one_shot_masks_are_what_they_say(run, tmp_path: Path, tiny_bert: Path) -> None:
    weights = prunable_weights(load_masked_language_model(str(tiny_bert)).model)
    for method, expected in {"omp": magnitude_masks(weights, 0.7), "rand": random_masks(weights, 0.7, 5)}.items():
        run(method, method, seed=5)
        masks, _ = load_masks(tmp_path / method / "mask.safetensors")
        assert all(torch.equal(masks[name], mask) for name, mask in expected.items())


def test_mask_training_lowers_its_own_loss(run) -> None:
    omp = run("omp", "omp")
    kd = run("tamt-kd", "kd", steps=60)
    mlm = run("tamt-mlm", "mlm", steps=60)
    assert kd["kd_loss"] < 0.9 * omp["kd_loss"]
    assert mlm["mlm_loss"] < 0.98 * omp["mlm_loss"]
    assert kd["changed"] > 0.01


def test_metrics_tell_loss_sparsity_and_change(run, tmp_path: Path) -> None:
    run("tamt-kd", log_every=5, eval_every=10, sparsity=0.7)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [5, 10, 15, 20]
    assert all(line["sparsity"] == pytest.approx(0.7, abs=0.002) for line in steps)
    assert steps[-1]["changed"] > 0
    assert steps[-1]["lr"] == 0
    assert [line["step"] for line in lines if "dev_kd_loss" in line] == [10, 20]


def test_masks_along_the_way(run, tmp_path: Path) -> None:
    run("tamt-kd", "long", save_at=[8, 15])
    masks, info = load_masks(tmp_path / "long" / "masks" / "step-8.safetensors")
    assert info.step == 8
    assert sparsity_of(masks) == pytest.approx(0.7, abs=0.002)
    assert (tmp_path / "long" / "masks" / "step-15.safetensors").is_file()


def test_an_interval_of_thresholds_renews_only_then(run, tmp_path: Path) -> None:
    run("tamt-kd", threshold_every=15, steps=30)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    changed = {line["step"]: line["changed"] for line in lines if "changed" in line}
    assert changed[10] == 0
    assert 0 < changed[20] < changed[30]
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert all(int(mask.sum()) == keep_of(mask.numel(), 0.7) for mask in masks.values())


def test_accumulation_equals_a_larger_batch(run, losses_of, tmp_path: Path, still: Path) -> None:
    # IMP's weights move from the first step on. With dropout off, 4 batches of 2 are the same 8 blocks as 1 of 8,
    # though their numbers of masked tokens differ.
    options = {
        "model": str(still),
        "method": "imp",
        "steps": 100,
        "sparsity": 0.2,
        "lr": 1e-3,
        "log_every": 1,
    }
    run(output="large", batch_size=8, **options)
    run(output="small", batch_size=2, accumulation=4, **options)
    losses = [losses_of(tmp_path / output) for output in ("large", "small")]
    assert len(losses[0]) == 10
    assert losses[0][0] - losses[0][-1] > 0.05
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("initial", ["omp", "random"])
@pytest.mark.parametrize("ranking", ["signed", "abs"])
def test_options_of_mask_training(run, tmp_path: Path, initial, ranking) -> None:
    run("tamt", objective="mlm:1,kd:2", initial=initial, ranking=ranking)
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert all(int(mask.sum()) == keep_of(mask.numel(), 0.7) for mask in masks.values())


def test_bf16_runs_and_scores_stay_fp32(run, tmp_path: Path) -> None:
    assert math.isfinite(run("tamt-kd", precision="bf16")["kd_loss"])


def test_the_pooler_is_masked_on_request(tmp_path: Path, run, tiny_bert: Path) -> None:
    from transformers import AutoModel

    with_pooler = tmp_path / "model"
    torch.manual_seed(0)
    AutoModel.from_pretrained(tiny_bert).save_pretrained(with_pooler)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(with_pooler)
    run("tamt-kd", model=str(with_pooler), prune_pooler=True)
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert int(masks["pooler.dense.weight"].sum()) == keep_of(32 * 32, 0.7)


def headless(tiny_bert: Path, folder: Path) -> str:
    """A copy of the tiny model without its MLM head."""
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_bert).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["tamt-mlm", "imp"])
def test_a_fresh_head_is_warmed_up_alone_and_told(method, tmp_path: Path, run, tiny_bert: Path, capsys) -> None:
    model = headless(tiny_bert, tmp_path / "model")
    run(method, model=model, head_warmup_steps=15)
    assert "no MLM head" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "head_warmup" in line] == [10, 15]
    assert [line["step"] for line in lines if "head_warmup_dev" in line] == [15]
    head = load_file(tmp_path / "run" / "head.safetensors")
    assert set(head) == set(load_masked_language_model(str(tiny_bert)).head_parameters())


def test_mpnet_gets_a_head_and_a_mask_for_each_matrix(tiny_mpnet: Path, tmp_path: Path, run) -> None:
    result = run("tamt-mlm+kd", model=str(tiny_mpnet), head_warmup_steps=10)
    masks, _ = load_masks(tmp_path / "run" / "mask.safetensors")
    assert len(masks) == 1 + 2 * 6
    assert "encoder.layer.0.attention.attn.q.weight" in masks
    assert math.isfinite(result["mlm_loss"])


def test_kd_needs_no_head_and_leaves_mlm_out(tmp_path: Path, run, tiny_bert: Path) -> None:
    assert run("tamt-kd", model=headless(tiny_bert, tmp_path / "model"))["mlm_loss"] is None


# IMP


def test_imp_weights_equal_theta_0_bit_for_bit_after_every_pruning(run, monkeypatch, tiny_bert: Path) -> None:
    theta = {n: p.detach().clone() for n, p in load_masked_language_model(str(tiny_bert)).model.named_parameters()}
    seen: list[float] = []
    original = imp.prune_and_reset

    def checked(weights, parameters, initial, masks, sparsity):
        if seen:
            # It trained in between: what is put back had moved.
            assert any(not torch.equal(p, theta[n]) for n, p in parameters.items() if n not in weights)
        pruned = original(weights, parameters, initial, masks, sparsity)
        names = {id(weight): name for name, weight in weights.items()}
        for name, parameter in parameters.items():
            mask = pruned.get(names.get(id(parameter), ""), torch.tensor(True))
            assert torch.equal(parameter, torch.where(mask, theta[name], 0))
        assert all(bool((masks[name] | ~mask).all()) for name, mask in pruned.items())
        seen.append(sparsity)
        return pruned

    monkeypatch.setattr(imp, "prune_and_reset", checked)
    run("imp", sparsity=0.5, steps=40, lr=1e-3)
    assert seen == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_imp_trains_only_what_is_left_from_empty_moments(run, monkeypatch) -> None:
    now: dict[str, dict] = {}
    emptied: list[bool] = []
    prune, take = imp.prune_and_reset, Stepper.take

    def pruned(weights, *rest):
        now.update(weights=weights, masks=prune(weights, *rest), moments={"empty"})
        return now["masks"]

    def checked(stepper, *rest):
        optimizer = stepper.optimizer
        for taken in take(stepper, *rest):
            now["moments"] = set()
            yield taken  # to the search, which cuts the weights after each step, and prunes after some
            assert all(weight[~now["masks"][name]].count_nonzero() == 0 for name, weight in now["weights"].items())
            moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
            emptied.append(not any(tensor.any() for tensor in moments))
            assert emptied[-1] == bool(now["moments"])

    total_norm, parts = torch.nn.utils.get_total_norm, []

    def norm(grads):  # of what a step clips
        parts.append([weight.grad[~now["masks"][name]].any() for name, weight in now["weights"].items()])
        return total_norm(grads)

    monkeypatch.setattr(imp, "prune_and_reset", pruned)
    monkeypatch.setattr(Stepper, "take", checked)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    run("imp", sparsity=0.5, steps=40, lr=1e-3)
    assert sum(emptied) == 4
    assert parts
    assert not any(any(each) for each in parts)


def test_imp_ranks_the_trained_weights() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    initial = {"model.w": weight.detach().clone()}
    with torch.no_grad():
        weight.copy_(torch.tensor([[9.0, 2.0, 0.1, 4.0]]))
    masks = {"w": torch.tensor([[True, False, True, True]])}
    pruned = prune_and_reset({"w": weight}, {"model.w": weight}, initial, masks, 0.5)
    assert pruned["w"].tolist() == [[True, False, False, True]]
    assert weight.tolist() == [[1.0, 0.0, 0.0, 4.0]]


def test_imp_stops_where_the_paper_stops() -> None:
    # Table 2, in steps of a schedule of 27,920.
    table = {0.2: 2792, 0.3: 5584, 0.4: 8376, 0.5: 11168, 0.6: 13960, 0.7: 16752, 0.8: 19544, 0.9: 22336}
    assert {sparsity: steps_to(sparsity, 27_920) for sparsity in table} == table
    assert steps_to(0.75, 27_920) == 19544
    assert steps_to(0.05, 27_920) == 0


def test_imp_keeps_a_mask_for_every_sparsity_on_its_way(run, tmp_path: Path) -> None:
    run("imp", sparsity=0.35)
    saved = sorted(path.name for path in (tmp_path / "run" / "masks").iterdir())
    assert saved == ["sparsity-0.1.safetensors", "sparsity-0.2.safetensors", "sparsity-0.3.safetensors"]
    masks, info = load_masks(tmp_path / "run" / "masks" / "sparsity-0.2.safetensors")
    assert (info.sparsity, info.step) == (0.2, 2)
    assert sparsity_of(masks) == pytest.approx(0.2, abs=0.002)


# Interruptions


@pytest.mark.parametrize(("method", "options"), [("tamt-mlm+kd", {}), ("tamt-kd", {"threshold_every": 7}), ("imp", {})])
def test_a_resumed_run_ends_with_the_same_mask(method, options, run, tmp_path: Path, monkeypatch) -> None:
    options = {"steps": 40, "save_every": 10, **options}
    run(method, "alone", **options)
    calls = 0
    loss = Losses.__call__

    def interrupted(self, *arguments, **options):
        nonlocal calls
        calls += self.student.model.training
        if calls == 17:
            raise KeyboardInterrupt
        return loss(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Losses, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(method, "stopped", **options)
    result = run(method, "stopped", **options, resume=True)
    alone, resumed = (load_masks(tmp_path / output / "mask.safetensors")[0] for output in ("alone", "stopped"))
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)
    assert result["step"] > 17 or method == "imp"


BAD = [
    ("tamt-kd", "loss", torch.nan),
    ("imp", "loss", torch.nan),
    ("tamt-mlm", "loss", 1e6),
    ("tamt-kd", "gradient", torch.nan),
    ("imp", "gradient", torch.inf),
]


@pytest.mark.parametrize(("method", "of", "factor"), BAD)
def test_a_bad_step_stops_the_run_and_keeps_the_last_good_checkpoint(
    method, of, factor, run, tmp_path, monkeypatch
) -> None:
    calls = 0
    good: dict = {}
    loss = Losses.__call__

    def poisoned(self, *arguments, **options):
        nonlocal calls
        calls += self.student.model.training
        parts = loss(self, *arguments, **options)
        if calls != 8:
            return parts
        good.update({name: tensor.detach().clone() for name, tensor in self.student.model.named_parameters()})
        if of == "loss":
            return {name: value * factor for name, value in parts.items()}
        parts["loss"].register_hook(lambda gradient: gradient * factor)
        return parts

    monkeypatch.setattr(Losses, "__call__", poisoned)
    with pytest.raises(UserError, match=rf"{of} became (nan|inf|\d\S+) at step 8.*checkpoint is kept.*lower --lr"):
        run(method)  # and is told at step 10, where the loss is logged
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-7.checkpoint")
    assert checkpoint["step"] == 7
    for name, tensor in checkpoint["trained"].items():
        of_model = name.replace("score ", "bert.").replace("weight", "score") if "score" in name else name
        assert torch.equal(tensor, good[of_model])
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_mask_that_lost_an_entry_is_not_saved(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masks_of(masked: dict) -> dict:
        masks = masking.masks_of(masked)
        for mask in masks.values():
            mask[tuple(mask.nonzero()[0])] = False
        return masks

    monkeypatch.setattr(mask_training, "masks_of", masks_of)
    with pytest.raises(UserError, match=r"mask.safetensors is not written: its mask of \S+ keeps \d+ entries where"):
        run("tamt-kd", save_every=5)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert (tmp_path / "run" / "checkpoints" / "step-15.checkpoint").is_file()


# Evaluation


def test_evaluate_measures_what_the_search_measured(run, tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    result = run("omp", dev_corpus=[str(corpus)])
    mask = tmp_path / "run" / "mask.safetensors"
    row = evaluate(str(tiny_bert), [str(corpus)], mask=mask, max_length=16)["results"][0]
    assert row["kd_loss"] == pytest.approx(result["kd_loss"], rel=1e-5)
    assert row["mlm_loss"] == pytest.approx(result["mlm_loss"], rel=1e-5)
    assert row["method"] == "omp"
    full = evaluate(str(tiny_bert), [str(corpus)], max_length=16)["results"][0]
    assert full["kd_loss"] == pytest.approx(0, abs=1e-6)


def test_evaluate_takes_the_head_of_a_run(run, tmp_path: Path, tiny_bert: Path, corpus: Path) -> None:
    model = headless(tiny_bert, tmp_path / "model")
    result = run("tamt-mlm", model=model, dev_corpus=[str(corpus)], head_warmup_steps=5)
    folder = tmp_path / "run"
    options = {"mask": folder / "mask.safetensors", "max_length": 16}
    assert evaluate(model, [str(corpus)], **options)["results"][0]["mlm_loss"] is None
    with_head = evaluate(model, [str(corpus)], head=folder / "head.safetensors", **options)["results"][0]
    assert with_head["mlm_loss"] == pytest.approx(result["mlm_loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["tamt-mlm+kd"])
def test_a_compiled_search_finds_the_same_mask(method, run, still: Path, tmp_path: Path, monkeypatch) -> None:
    compiled = []  # a still model: torch.compile draws dropout's numbers otherwise

    def compile_without_inductor(module: torch.nn.Module) -> None:
        compiled.append(type(module))
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_inductor)
    for output in ("as-it-is", "compiled"):
        run(method, output, model=str(still), steps=6, compile=output == "compiled")
    assert len(compiled) == 2  # student and teacher
    first, second = (load_masks(tmp_path / output / "mask.safetensors")[0] for output in ("as-it-is", "compiled"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_mask_training_compiles(run) -> None:
    with pytest.raises(UserError, match="--compile is for mask training, not imp"):
        run("imp", compile=True)


@pytest.mark.parametrize(
    ("method", "options", "gpu", "count", "told"),
    [
        ("tamt-kd", {}, True, 1, True),
        ("tamt-kd", {"no_cuda_graphs": True}, True, 1, False),
        ("tamt-kd", {}, True, 2, False),
        ("tamt-kd", {}, False, 1, False),
        ("omp", {}, True, 1, False),
    ],
)
def test_where_steps_start_from_cuda_graphs_is_told(
    run, monkeypatch, capsys, method, options, gpu, count, told
) -> None:
    class EnoughError(Exception):
        """Nothing is to be trained here."""

    def start(*_: object) -> None:
        raise EnoughError

    def twin(*_: object) -> None:  # the last that is made before
        monkeypatch.setattr(module.processes, "count", lambda: count)

    module = sys.modules["tamt.search.train"]
    monkeypatch.setattr(step_graph, "_gpu_is_there", lambda: gpu)
    monkeypatch.setattr(module, "RunFolder", start)
    monkeypatch.setattr(module, "dense_twin", twin)
    with pytest.raises(EnoughError):
        run(method, **options)
    assert ("each step starts as one CUDA graph" in capsys.readouterr().err) == told
