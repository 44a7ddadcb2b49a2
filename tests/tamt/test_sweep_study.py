"""The study file and the runs that follow from it: nothing is run here."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tamt.options.train import TrainOptions
from tamt.runtime.errors import UserError
from tamt.sweep.plan import StudyPlan, make_plan, model_names
from tamt.sweep.runs import check_options
from tamt.sweep.study import FINETUNE_OPTIONS, KEYS, SEARCH_OPTIONS, WHOLE_STUDY, Study, load_study

BASE = {
    "models": ["demo"],
    "methods": ["tamt-kd", "imp", "omp", "rand"],
    "sparsities": [0.5, 0.7],
    "corpus": "demo",
    "tasks": ["demo"],
}


@pytest.fixture
def load(tmp_path: Path):
    """Write a study with the changes given (None takes a key out) and load it."""

    def call(**changes) -> Study:
        content = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return load_study(tmp_path / "study.yaml")

    return call


def names(plan: StudyPlan, kind: str) -> list[str]:
    return [run.name for run in plan.runs if run.kind == kind]


# What there is to run


def test_runs_are_named_by_their_settings(load) -> None:
    plan = make_plan(load(mask_seeds=[0, 1], finetune_seeds=[4], methods=["tamt-kd", "omp", "rand"], sparsities=[0.7]))
    assert names(plan, "search") == [
        "tamt-kd_demo_s0.7_seed0",
        "tamt-kd_demo_s0.7_seed1",
        "omp_demo_s0.7",
        "rand_demo_s0.7_seed0",
        "rand_demo_s0.7_seed1",
    ]
    assert names(plan, "finetune") == [
        "demo_tamt-kd_demo_s0.7_mask0_seed4",
        "demo_tamt-kd_demo_s0.7_mask1_seed4",
        "demo_omp_demo_s0.7_seed4",
        "demo_rand_demo_s0.7_mask0_seed4",
        "demo_rand_demo_s0.7_mask1_seed4",
        "demo_full_demo_seed4",
    ]
    assert names(plan, "evaluate") == ["full_demo"]


def test_imp_is_one_run_whose_masks_serve_the_lower_sparsities(load) -> None:
    plan = make_plan(load(methods=["imp"], sparsities=[0.5, 0.9, 0.75], mask_seeds=[0, 1], full_model=False))
    # 0.75 is no whole tenth, so the run to 0.9 does not pass it.
    assert names(plan, "search") == [f"imp_demo_s{s}_seed{seed}" for seed in (0, 1) for s in (0.9, 0.75)]
    assert plan.runs[0].masks == ("masks/sparsity-0.5.safetensors", "mask.safetensors")
    masks = {run.name: run.settings["mask"].relative_to(load().output) for run in plan.runs if run.kind == "finetune"}
    assert masks["demo_imp_demo_s0.5_mask1_seed0"] == Path("search/imp_demo_s0.9_seed1/masks/sparsity-0.5.safetensors")
    assert masks["demo_imp_demo_s0.75_mask0_seed0"] == Path("search/imp_demo_s0.75_seed0/mask.safetensors")


def test_one_search_gives_the_masks_of_all_asked_steps(load) -> None:
    study = load(search={"steps": 100, "save_at": [20, 60, 100]}, methods=["tamt-mlm", "imp"], sparsities=[0.7])
    plan = make_plan(study)
    assert names(plan, "search") == ["tamt-mlm_demo_s0.7_steps100_seed0", "imp_demo_s0.7_steps100_seed0"]
    search = plan.runs[0]
    assert search.settings["save_at"] == [20, 60]  # that of step 100 is the mask itself
    assert "save_at" not in plan.runs[1].settings
    evaluations = {run.name: run for run in plan.runs if run.kind == "evaluate"}
    assert list(evaluations) == [
        "tamt-mlm_demo_s0.7_steps100_mask0_step20",
        "tamt-mlm_demo_s0.7_steps100_mask0_step60",
        "full_demo",
    ]
    settings = evaluations["tamt-mlm_demo_s0.7_steps100_mask0_step60"].settings
    assert settings["mask"] == study.output / search.path / "masks/step-60.safetensors"
    assert settings["head"] == study.output / search.path / "head.safetensors"
    assert len(names(plan, "finetune")) == 5


def test_every_dimension_is_crossed_and_no_name_is_there_twice(load, tmp_path: Path) -> None:
    plan = make_plan(
        load(
            models=["demo", "org/other"],
            methods=["tamt-kd", "tamt-mlm"],
            sparsities=[0.5, 0.7],
            mask_seeds=[0, 1],
            initial=["omp", "random"],
            search={"steps": [100, 200]},
            finetune={"train_samples": [100, "all"]},
            finetune_seeds=[0, 1, 2],
        )
    )
    assert len(names(plan, "search")) == 2**6
    assert len(names(plan, "finetune")) == (2**6 + 2) * 2 * 3
    paths = [run.path for run in plan.runs]
    assert len(set(paths)) == len(paths)
    assert "search/tamt-kd_org-other_s0.7_random_steps200_seed1" in paths
    assert "finetune/demo_tamt-kd_demo_s0.7_omp_mask0_steps200_n100_seed2" not in paths
    assert "finetune/demo_tamt-kd_demo_s0.7_omp_steps200_mask0_n100_seed2" in paths
    assert "finetune/demo_full_demo_seed0" in paths


def test_scores_and_masks_to_start_from_are_searches_of_their_own(load, tmp_path: Path) -> None:
    mask = tmp_path / "former" / "mask.safetensors"
    mask.parent.mkdir()
    mask.touch()
    study = load(
        methods=["tamt-kd", "omp"],
        sparsities=[0.7],
        scores=["two-valued", "magnitude"],
        initial=["random", "former/mask.safetensors"],
    )
    searches = {run.name: run.settings for run in make_plan(study).runs if run.kind == "search"}
    assert list(searches) == [
        "tamt-kd_demo_s0.7_random_two-valued_seed0",
        "tamt-kd_demo_s0.7_random_magnitude_seed0",
        "tamt-kd_demo_s0.7_former-mask_two-valued_seed0",
        "tamt-kd_demo_s0.7_former-mask_magnitude_seed0",
        "omp_demo_s0.7",
    ]
    settings = searches["tamt-kd_demo_s0.7_former-mask_magnitude_seed0"]
    assert (settings["scores"], settings["initial"]) == ("magnitude", str(mask))
    assert not {"scores", "initial"} & searches["omp_demo_s0.7"].keys()


def test_names_that_would_be_the_same_are_told_apart(load, tmp_path: Path) -> None:
    for folder in ("a/omp", "b/omp"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mask.safetensors").touch()
    files = {key: tmp_path / f"{key}.tsv" for key in ("train_file", "dev_file")}
    for file in files.values():
        file.touch()
    own = {"task": "classification", **{key: str(file) for key, file in files.items()}}
    initial = ["a/omp/mask.safetensors", "b/omp/mask.safetensors"]
    tasks = {"отзывы": own, "новости": {**own}}
    plan = make_plan(load(methods="tamt-kd", sparsities=0.7, full_model=False, initial=initial, tasks=tasks))
    found = {run.settings["initial"]: run.name for run in plan.runs if run.kind == "search"}
    assert len(set(found.values())) == 2
    assert all(re.fullmatch(r"tamt-kd_demo_s0.7_omp-mask-\w{8}_seed0", name) for name in found.values())
    found = {run.labels["task"]: run.name.split("_")[0] for run in plan.runs if run.kind == "finetune"}
    assert len(found) == len(set(found.values())) == 2
    one = make_plan(load(methods="omp", sparsities=0.7, full_model=False, tasks={"отзывы": own}))
    assert names(one, "finetune") == ["model_omp_demo_s0.7_seed0"], "names that were never the same stay"


def test_a_run_or_a_repository_to_start_from_gives_its_mask(load, tmp_path: Path) -> None:
    run = tmp_path / "omp_s0.7"
    run.mkdir()
    (run / "mask.safetensors").touch()
    study = load(methods="tamt-kd", sparsities=0.7, initial=["omp_s0.7", "hub:user/ticket"])
    searches = {run.name: run.settings["initial"] for run in make_plan(study).runs if run.kind == "search"}
    assert searches == {
        "tamt-kd_demo_s0.7_omp-s0.7-mask_seed0": str(run / "mask.safetensors"),
        "tamt-kd_demo_s0.7_hub-user-ticket_seed0": "hub:user/ticket",
    }


def test_a_step_that_only_the_longer_searches_reach_is_no_mistake(load) -> None:
    plan = make_plan(load(methods="tamt-kd", sparsities=0.7, search={"steps": [9, 90], "save_at": [50]}))
    assert [run.settings.get("save_at") for run in plan.runs if run.kind == "search"] == [None, [50]]


def test_each_objective_is_a_search_of_its_own(load) -> None:
    study = load(methods=["tamt", "tamt-kd"], sparsities=[0.7], objective=["attention", "kd:1,mlm:0.5"])
    plan = make_plan(study)
    searches = {run.name: run.settings.get("objective") for run in plan.runs if run.kind == "search"}
    assert searches == {
        "tamt_demo_s0.7_attention_seed0": "attention",
        "tamt_demo_s0.7_kd-1-mlm-0.5_seed0": "kd:1,mlm:0.5",
        "tamt-kd_demo_s0.7_seed0": None,
    }


def test_patterns_are_searches_of_their_own(load, tmp_path: Path) -> None:
    plan = make_plan(load(methods=["imp", "omp"], sparsities=[0.5, 0.7], patterns=["2:4"], tasks=None))
    searches = {run.name: run.settings for run in plan.runs if run.kind == "search"}
    assert list(searches) == [
        "imp_demo_s0.7_seed0",
        "imp_demo_2-4_seed0",
        "omp_demo_s0.5",
        "omp_demo_s0.7",
        "omp_demo_2-4",
    ]
    assert (searches["omp_demo_2-4"]["pattern"], searches["omp_demo_2-4"]["sparsity"]) == ("2:4", 0.5)
    assert "pattern" not in searches["omp_demo_s0.5"]
    TrainOptions(**searches["omp_demo_2-4"])
    only = tmp_path / "only.yaml"
    only.write_text("models: demo\nmethods: omp\npatterns: [2:4, 15:16]\n")  # no 124 in base 60
    assert [run.name for run in make_plan(load_study(only)).runs] == ["omp_demo_2-4", "omp_demo_15-16"]


def test_structures_are_searches_of_their_own(load) -> None:
    plan = make_plan(load(methods=["omp", "tamt-kd"], sparsities=None, structures=["ffn:0.5", "heads:0.5,ffn:0.25"]))
    searches = {run.name: run.settings for run in plan.runs if run.kind == "search"}
    assert list(searches) == [
        "omp_demo_ffn-0.5",
        "omp_demo_ffn-0.25-heads-0.5",
        "tamt-kd_demo_ffn-0.5_seed0",
        "tamt-kd_demo_ffn-0.25-heads-0.5_seed0",
    ]
    last = searches["omp_demo_ffn-0.25-heads-0.5"]
    assert (last["structure"], last["sparsity"]) == ("ffn:0.25,heads:0.5", 0.5)
    assert TrainOptions(**last).settings()["structure"] == last["structure"]


def test_parts_add_up_and_share_their_runs(load) -> None:
    part = {"sparsities": [0.7, 0.9], "search": {"save_at": [1000]}, "finetune": {"train_samples": [100, 200]}}
    plan = make_plan(load(methods=["tamt-kd", "imp"], also=[part]))
    assert names(plan, "search") == [
        "tamt-kd_demo_s0.5_seed0",
        "tamt-kd_demo_s0.7_seed0",
        "imp_demo_s0.9_seed0",
        "tamt-kd_demo_s0.9_seed0",
    ]
    runs = {run.path: run for run in plan.runs}
    assert runs["search/tamt-kd_demo_s0.7_seed0"].settings["save_at"] == [1000]
    assert runs["search/tamt-kd_demo_s0.7_seed0"].masks == ("mask.safetensors", "masks/step-1000.safetensors")
    assert "save_at" not in runs["search/tamt-kd_demo_s0.5_seed0"].settings
    assert "finetune/demo_tamt-kd_demo_s0.5_mask0_seed0" in runs
    assert "finetune/demo_tamt-kd_demo_s0.5_mask0_n100_seed0" not in runs
    assert "finetune/demo_imp_demo_s0.9_mask0_n100_seed0" in runs


def test_imp_is_searched_no_further_than_its_own_part_asks(load) -> None:
    imp = {"methods": ["imp"], "sparsities": [0.5], "mask_seeds": [0, 1], "full_model": False}
    other_batch = load(**imp, also=[{"sparsities": [0.9], "search": {"imp": {"batch_size": 4}}}])
    assert names(make_plan(other_batch), "search") == [
        *("imp_demo_s0.5_seed0", "imp_demo_s0.5_seed1"),
        *("imp_demo_s0.9_seed0", "imp_demo_s0.9_seed1"),
    ]
    one_seed = load(**imp, also=[{"sparsities": [0.9], "mask_seeds": [0]}])
    assert names(make_plan(one_seed), "search") == ["imp_demo_s0.9_seed0", "imp_demo_s0.5_seed1"]


def test_parts_that_contradict_each_other_are_refused(load) -> None:
    study = load(search={"lr": 1e-4}, also=[{"search": {"lr": 2e-4}}])
    with pytest.raises(UserError, match=r"two parts ask for search/tamt-kd_demo_s0.5_seed0, with lr = 0.0001 and 0.00"):
        make_plan(study)


def test_options_of_methods_and_tasks(load, tmp_path: Path) -> None:
    (tmp_path / "glue").mkdir()
    search = {
        "batch_size": 8,
        "steps": 50,
        "threshold_every": 2,
        "dropout": "model",
        "imp": {"steps": 100, "lr": "5e-5"},
    }
    tasks = {"demo": {"epochs": 1}, "sst2": {"lr": 1e-5}}
    plan = make_plan(load(search=search, tasks=tasks, data_dir="glue", finetune={"epochs": 2, "precision": "bf16"}))
    settings = {run.name: run.settings for run in plan.runs}
    kd, imp, omp = (
        settings[name] for name in ("tamt-kd_demo_s0.7_steps50_seed0", "imp_demo_s0.7_steps100_seed0", "omp_demo_s0.7")
    )
    assert (kd["batch_size"], kd["steps"], kd["threshold_every"], kd["dropout"]) == (8, 50, 2, "model")
    assert (imp["batch_size"], imp["steps"], imp["lr"]) == (8, 100, 5e-5)
    assert not {"threshold_every", "dropout"} & (imp.keys() | omp.keys())
    assert (omp["batch_size"], "steps" in omp) == (8, False)
    demo, sst2 = settings["demo_omp_demo_s0.7_seed0"], settings["sst2_omp_demo_s0.7_lr1e-05_seed0"]
    assert (demo["epochs"], demo["precision"], "data_dir" in demo) == (1, "bf16", False)
    assert (sst2["epochs"], sst2["lr"], sst2["data_dir"]) == (2, 1e-5, tmp_path / "glue")


def test_the_same_data_has_one_name(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glue").mkdir()
    (tmp_path / "link").symlink_to("glue")
    monkeypatch.chdir(tmp_path)
    studies = [load(tasks="sst2", data_dir=name) for name in ("glue", f"../{tmp_path.name}/link")]
    load(tasks="sst2")
    studies += [load_study(Path("study.yaml"), data_dir=Path(name)) for name in ("glue", "link/../glue/")]
    assert {study.parts[0].tasks["sst2"]["data_dir"] for study in studies} == {tmp_path / "glue"}


def test_a_key_may_be_0_where_its_option_may(load) -> None:
    assert load(tasks={"squad": {"stride": 0}}).parts[0].tasks["squad"]["stride"] == 0


def test_each_learning_rate_is_a_run_of_its_own(load) -> None:
    plan = make_plan(load(methods=["omp"], finetune={"lr": ["1e-4", 3e-4]}, tasks={"demo": {}, "sst2": {"lr": 1e-5}}))
    runs = {run.name: run for run in plan.runs if run.kind == "finetune" and run.labels["method"] == "full"}
    assert {name: run.settings["lr"] for name, run in runs.items()} == {
        "demo_full_demo_lr0.0001_seed0": 1e-4,
        "demo_full_demo_lr0.0003_seed0": 3e-4,
        "sst2_full_demo_lr1e-05_seed0": 1e-5,
    }
    assert {run.labels["lr"] for run in runs.values()} == {1e-4, 3e-4, 1e-5}


def test_names_of_models_stay_in_the_folder_and_apart(tmp_path: Path) -> None:
    models = ["../../evil", "org/model", "/a/checkpoint", "/b/Checkpoint", "…"]
    found = model_names(models)
    assert len({name.casefold() for name in found.values()}) == len(models)
    assert found["../../evil"] == "evil"
    assert found["org/model"] == "org-model"
    assert found["/a/checkpoint"].startswith("checkpoint-")
    assert not any("/" in name or name.startswith(".") for name in found.values())


def test_paths_are_relative_to_the_file(load, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model").mkdir()
    for name in ("text.txt", "dev.txt"):
        (tmp_path / name).write_text("a\n")
    monkeypatch.chdir("/")
    study = load(models="model", corpus="text.txt", dev_corpus=["dev.txt"])
    assert study.parts[0].models == [str(tmp_path / "model")]
    assert study.parts[0].corpus == [str(tmp_path / "text.txt")]
    assert study.output == tmp_path / "study"
    assert load(output="runs").output == tmp_path / "runs"
    assert load_study(tmp_path / "study.yaml", output=Path("/elsewhere")).output == Path("/elsewhere")


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"seed": 1}}, "line 15: there is no key 'seed' in search; give mask_seeds as a key of the study"),
        ({"search": {"imp": {"scores": 1}}}, "'scores' in search.imp; give scores as a key of the study"),
        ({"finetune": {"seed": 1}}, "'seed' in finetune; give finetune_seeds as a key of the study"),
        ({"tasks": {"demo": {"seeds": [1]}}}, "'seeds' in tasks.demo; give finetune_seeds as a key of the study"),
        ({"seeds": [1]}, "line 14: there is no key 'seeds'; give mask_seeds or finetune_seeds as a key of the study"),
        ({"also": [{"seed": 1}]}, r"'seed' in also\[0\]; give mask_seeds or finetune_seeds as a key of the study"),
        ({"bench": {"sparsity": 0.5}}, "'sparsity' in bench; give sparsities as a key of the study"),
        ({"sparsites": [0.5]}, r"study.yaml, line 14: there is no key 'sparsites'; did you mean sparsities$"),
        ({"search": {"zzz": 1}}, "line 15: there is no key 'zzz' in search; the keys are "),
        ({"search": {"batchsize": 1}}, "did you mean batch_size"),
        ({"search": {"imp": {"stpes": 100}}}, "line 16: there is no key 'stpes' in search.imp; did you mean steps"),
        ({"tasks": {"demo": {"epoch": 1}}}, "line 14: there is no key 'epoch' in tasks.demo; did you mean epochs"),
        ({"also": [{"method": ["imp"]}]}, r"line 15: there is no key 'method' in also\[0\]; did you mean methods"),
        ({"methods": ["omp", "imp-kd"]}, r"line 5: methods\[1\] is 'imp-kd', not one of .*; IMP trains .* on MLM"),
        ({"methods": ["tamt_kd"]}, "did you mean tamt-kd"),
        ({"search": {"imp": {"save_at": [5]}}}, "line 16: save_at is not for imp.*IMP saves a mask at every pruning"),
        ({"search": {"rand": {"steps": 5}}}, "steps is not for rand"),
        ({"search": {"save_at": [5, 50], "steps": 19}}, "line 15: save_at 50 is after the last step of tamt-kd, 19; "),
        ({"search": {"tamt-kd": {"save_at": 20_000}}}, "line 16: save_at 20000 is after the last step .*, 17000; "),
        ({"search": {"save_at": [5]}, "methods": ["imp"]}, "save_at is for mask training"),
        ({"search": {"imp": {"steps": 5}}}, "line 16: IMP has 10 prunings in its steps"),
        ({"initial": "random", "methods": ["imp"]}, "line 11: initial is for mask training"),
        ({"methods": ["tamt"]}, "the method tamt needs an objective"),
        ({"methods": ["tamt"], "objective": "kd:-1"}, "line 11: --objective kd:-1 gives kd the weight -1"),
        ({"objective": "kd"}, "line 14: objective is for tamt, which is not asked for"),
        ({"scope": "row"}, "line 14: scope is for wanda, which is not asked for"),
        ({"scores": "magnitude", "methods": ["imp"]}, "line 11: scores is for mask training"),
        ({"scores": "wanda"}, r"line 14: scores is 'wanda', not one of magnitude, activation, two-valued"),
        ({"initial": "OMP"}, "line 14: initial is 'OMP', not one of omp, random and no mask file"),
        ({"sparsities": [0.5, 70]}, "line 10: the sparsity 70 is not between 0 and 1"),
        ({"sparsities": ["half"]}, r"line 9: sparsities\[0\] is 'half', not a number"),
        ({"sparsities": [0.5, 0.5]}, "line 10: sparsities lists 0.5 twice"),
        ({"sparsities": []}, "sparsities is an empty list"),
        ({"mask_seeds": [-1]}, r"mask_seeds\[0\] is -1, not a whole number"),
        ({"mask_seeds": [True]}, "is True, not a whole number"),
        ({"search": {"batch_size": 0}}, "line 15: search.batch_size is 0, not a whole number of 1 or more"),
        ({"search": {"lr": "fast"}}, "search.lr is 'fast', not a number"),
        ({"finetune": {"lr": [1e-4, "fast"]}}, r"finetune.lr\[1\] is 'fast', not a number"),
        ({"finetune": {"lr": [1e-4, 1e-4]}}, "finetune.lr lists 0.0001 twice"),
        ({"finetune": {"recipe": "papers"}}, "finetune.recipe is 'papers', not one of short, paper"),
        ({"search": {"precision": "fp8"}}, "search.precision is 'fp8', not one of auto, fp32, bf16, fp16"),
        ({"search": [1]}, "search is .*, not keys and values"),
        ({"keep_models": "yes please"}, "keep_models is 'yes please', not true or false"),
        ({"models": ["demo", "../w/brt"]}, r"line 3: models\[1\] is '../w/brt', and there is no such folder; correct"),
        ({"models": None}, "the key models is missing; a study needs"),
        ({"sparsities": None}, "the key sparsities is missing; a study needs models, methods, and sparsities, pa"),
        ({"structures": ["ffn:2"]}, "line 15: .*ffn"),
        ({"structures": ["ffn:0.5"]}, "line 15: imp cannot prune the structure ffn:0.5; list it in a part without it"),
        ({"patterns": ["2:4", "4:2"]}, "line 16: the pattern 4:2 is not N:M"),
        ({"search": {"pattern": "2:4"}}, "line 15: there is no key 'pattern' in search"),
        ({"corpus": None}, "tamt-kd needs text to train on; add a corpus"),
        ({"corpus": "missing.txt", "dev_corpus": "demo"}, "line 11: there is no text file .*missing.txt"),
        ({"data_dir": "missing"}, "there is no folder .*missing"),
        ({"tasks": ["sst3"]}, "line 13: there is no task 'sst3'"),
        ({"tasks": {"sst2": 5}}, "line 13: tasks.sst2 is 5, not keys and values"),
        ({"tasks": {"sst2": ["a"]}}, r"line 13: tasks.sst2 is \['a'\], not keys and values"),
        ({"tasks": {"x": {"task": ["sst2"]}}}, r"line 14: tasks.x.task is \['sst2'\], not a text"),
        ({"tasks": {5: {"task": "sst2"}}}, "line 13: the name 5 in tasks is not a text; put it in quotes"),
        ({"models": "~nouser/x"}, r"line 1: models\[0\] is '~nouser/x', of a user who has no home"),
        ({"output": "~nouser/x"}, "line 14: output is '~nouser/x', of a user who has no home"),
        ({"corpus": "~nouser/x"}, "line 11: corpus is '~nouser/x', of a user who has no home"),
        ({"initial": "~nouser/x"}, "line 14: initial is '~nouser/x', of a user who has no home"),
        ({"finetune": {"stride": -1}}, "line 15: finetune.stride is -1, not a whole number of 0 or more"),
        ({"tasks": ["classification"]}, "classification reads your own files; add its train_file"),
        ({"tasks": {"own": {"task": "sst3"}}}, "line 14: there is no task 'sst3'"),
        ({"tasks": {"own": {"task": "classification"}}}, "classification reads your own files; add its train_file"),
        ({"tasks": {"demo": {"train_file": "a.csv"}}}, "train_file is for the task classification"),
        ({"finetune": {"train_samples": ["some"]}}, r"finetune.train_samples\[0\] is 'some', not a whole number"),
        ({"also": [{"sparsities": [2]}]}, "line 16: the sparsity 2 is not"),
    ],
)
def test_mistakes_are_named_with_their_line(load, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_one_kind_of_task_several_times_under_names_of_its_own(load, tmp_path: Path) -> None:
    files = {}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        files[name] = {"train_file": f"{name}/train.tsv", "dev_file": f"{name}/dev.tsv"}
        for file in files[name].values():
            (tmp_path / file).write_text("sentence\tlabel\n")
    tasks = {name: {"task": "classification", **files[name]} for name in files}
    plan = make_plan(load(methods=["omp"], sparsities=[0.5], tasks=tasks))
    runs = [run for run in plan.runs if run.kind == "finetune"]
    assert {(run.labels["task"], run.settings["task"], run.settings["train_file"]) for run in runs} == {
        (name, "classification", tmp_path / name / "train.tsv") for name in files
    }
    assert len({run.path for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no keys"),
        ("- a\n", "has no keys"),
        ("models: [\n", "line 2: not valid YAML"),
        ("models: [a]\nmodels: [b]\n", "line 2: not valid YAML .duplicate key models"),
        ("a: !!python/object/apply:os.system [touch here]\n", "not valid YAML"),
        ("models: &a [*a]\nmethods: omp\nsparsities: 0.5\n", "it holds an alias"),
        ("\xff", "not UTF-8"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, content, message, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        load_study(tmp_path / "study.yaml")
    assert not (tmp_path / "here").exists()
    with pytest.raises(UserError, match="there is no study"):
        load_study(tmp_path / "other.yaml")


def test_few_steps_are_no_mistake_where_there_is_no_imp(load) -> None:
    assert load(search={"steps": 5}, methods=["tamt-kd"]).parts[0].search["tamt-kd"]["steps"] == [5]


def test_text_files_need_dev_text(load, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\n")
    with pytest.raises(UserError, match="text files have no dev text of their own"):
        load(corpus="text.txt")


def test_the_options_are_those_of_the_commands() -> None:
    assert {"steps", "save_at", "lr", "eval_blocks", "precision", "head"} <= SEARCH_OPTIONS.keys()
    assert {"epochs", "train_samples", "lr", "data_dir", "precision"} <= FINETUNE_OPTIONS.keys()
    assert not {"seed", "output", "resume", "mask", "model"} & (SEARCH_OPTIONS.keys() | FINETUNE_OPTIONS.keys())


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_studies_that_ship_are_sound(file: Path, tmp_path: Path) -> None:
    for data in re.findall(r"data/[\w/.-]+\.(?:txt|tsv)", file.read_text()):  # the user's own
        (tmp_path / data).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / data).touch()
    shutil.copy(file, tmp_path)
    plan = make_plan(load_study(tmp_path / file.name))
    check_options(file, plan.runs)
    assert {run.kind for run in plan.runs} >= {"search", "evaluate", "finetune"}
    described = file.read_text() + (file.parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    for line in described.splitlines():
        if line.startswith("# ") or f"`studies/{file.name}`" in line:
            assert {f"{len(plan.runs):,}"}.issuperset(re.findall(r"([\d,]+) (?:short )?runs", line))


def test_the_example_of_the_documentation_is_sound(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    (tmp_path / "my-bert").mkdir()
    (tmp_path / "studies").mkdir()
    file = tmp_path / "studies" / "study.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    plan = make_plan(load_study(file))
    check_options(file, plan.runs)
    assert "finetune/sst2_imp_my-bert_s0.7_mask0_n1000_seed0" in [run.path for run in plan.runs]
    keys = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert set(keys) == KEYS.keys() | WHOLE_STUDY.keys()
