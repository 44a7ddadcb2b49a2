"""What the runs of a study read, checked before the first one starts, by the checks of their commands."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import tamt_kernels as tk
from tamt.data.glue import check_files
from tamt.data.squad import question_file
from tamt.masks.hub import is_on_hub
from tamt.masks.masking import check_pattern_fits, prunable_weights, sparsity_from
from tamt.models.language_model import read_head
from tamt.models.loading import load
from tamt.models.tokenizer import longest_input
from tamt.options.finetune import FinetuneOptions
from tamt.options.train import TrainOptions
from tamt.runtime.choices import MASKS_BY_NAME
from tamt.runtime.errors import UserError
from tamt.search.scores import read_initial
from tamt.sweep.plan import Run

LEFT_OUT = {"seed", "mask", "save_at", "steps", "lr", "train_samples"}
"""Settings in which many runs differ, and which say nothing of what is checked here."""


def check_inputs(study: Path, runs: Iterable[Run]) -> None:
    """Check the files that runs read, and that patterns, first masks and lengths fit their models.

    Nothing is fetched: models and data on the hub are not looked at.

    Raises:
        UserError: a run cannot work; the message names the study and the run.
    """
    outline = cache(_outline)
    checked: set[str] = set()
    for run in runs:
        asked = repr((run.kind, {key: value for key, value in run.settings.items() if key not in LEFT_OUT}))
        if asked in checked:
            continue
        checked.add(asked)
        name = run.settings["model"]
        try:
            model = outline(name) if Path(name).is_dir() else None
            if run.kind == "search":
                _check_search(TrainOptions(**run.settings), model)
            if run.kind == "finetune":
                _check_rows(FinetuneOptions(**run.settings))
            if model is not None:
                _check_lengths(run.settings, model)
        except UserError as error:
            raise UserError(f"{study}: {run.path} cannot run: {error}") from error


class _Outline:
    """Makes a model from its configuration: matrices of the right shape, without numbers."""

    @staticmethod
    def from_pretrained(source: str, trust_remote_code: bool) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        return model


def _outline(name: str) -> PreTrainedModel:
    model: PreTrainedModel = load(_Outline, name, "model")
    return model


def _check_search(options: TrainOptions, model: PreTrainedModel | None) -> None:
    if options.head is not None:
        read_head(options.head)
    if model is None:
        return
    sparsity = sparsity_from(options.pattern, options.structure, options.share())
    if isinstance(sparsity, tk.Pattern):
        check_pattern_fits(prunable_weights(model, embedding=not options.dense_embedding), sparsity)
    initial = options.initial
    if initial is not None and initial not in MASKS_BY_NAME and not is_on_hub(initial):
        read_initial(Path(initial), model, sparsity, not options.dense_embedding)


def _check_rows(options: FinetuneOptions) -> None:
    task = options.chosen_task()
    if task.kind != "question-answering":
        check_files(task, options.data_dir, options.train_file, options.dev_file)
    elif options.data_dir is not None:
        for split in task.splits:
            question_file(task, options.data_dir, split)


def _check_lengths(settings: dict[str, Any], model: PreTrainedModel) -> None:
    longest = longest_input(model)
    for option in ("max_length", "tokens"):
        asked = settings.get(option)
        for tokens in asked if isinstance(asked, list) else [asked]:
            if tokens is not None and tokens > longest:
                raise UserError(f"{option} {tokens} is more than the {longest} tokens of {settings['model']}; lower it")
