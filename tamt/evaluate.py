"""`tamt evaluate`: the MLM and KD loss of a subnetwork on dev text, or the score of a fine-tuned model on its task."""

import copy
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt import processes
from tamt.console import say
from tamt.data.corpora import Blocks, dev_batches, load_dev_corpus
from tamt.errors import UserError
from tamt.finetune.saved import open_finetuned, score_finetuned
from tamt.mask_file import MaskInfo, load_masks, mask_in_row
from tamt.masking import Masks, apply_masks
from tamt.models import (
    MaskedLanguageModel,
    load_masked_language_model,
    load_tokenizer,
    longest_input,
)
from tamt.objectives import Losses, TokenMasking, encode, prepare
from tamt.options.base import command
from tamt.options.evaluate import EvaluateOptions
from tamt.precision import choose_precision
from tamt.training import HalfPrecisionError, check_runs, choose_fp32, make_accelerator, report_arithmetic
from tamt.untrusted import check_pulled

BLOCK_LENGTH = 512
"""Tokens of a block where nothing else is asked for (paper, Table 1)."""
BATCH_SIZE = 16
COUNTS = {"kd": "real_tokens", "mlm": "masked_tokens"}
"""The tokens that each loss is a mean over."""


@torch.no_grad()
def dev_losses(
    accelerator: Accelerator,
    student: MaskedLanguageModel,
    teacher: PreTrainedModel,
    blocks: Blocks,
    masking: TokenMasking,
    batch_size: int,
    seed: int = 0,
) -> dict[str, float]:
    """The dev losses of a subnetwork with dropout off, over all blocks.

    Several processes each take their share of the batches, and all get the result, the same as one process to the bit.

    Args:
        accelerator: gives the device and the precision.
        student: the subnetwork; its MLM loss is left out while its head is fresh.
        teacher: the dense encoder.
        blocks: the dev text.
        masking: how tokens are masked for the MLM loss; KD reads the plain text.
        batch_size: blocks a batch; it does not change the result but by rounding.
        seed: of the masked positions: the same for all masks that are compared.

    Returns:
        `kd_loss`, mean over layers and real tokens, and `mlm_loss`, mean over masked tokens, in nats.
    """
    student.model.eval()
    teacher.eval()
    means = {}
    one = torch.ones((), device=accelerator.device)  # the losses as sums, to be divided once at the end
    objectives = {"kd": Losses({"kd": 1.0}, student, teacher)}
    if not student.fresh_head:
        objectives["mlm"] = Losses({"mlm": 1.0}, student)
    for name, losses in objectives.items():
        count = COUNTS[name]
        found = []
        for plain in dev_batches(blocks, batch_size, seed, masking if name == "mlm" else None, processes.dealt()):
            batch = prepare(plain)
            tokens = int(batch[count])
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            with accelerator.autocast():
                found.append((losses({**batch, count: one})["loss"].item(), tokens))
        found = processes.collect(found)
        means[f"{name}_loss"] = sum(loss for loss, _ in found) / max(1, sum(tokens for _, tokens in found))
    return means


@command(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> dict:
    """Run `tamt evaluate`."""
    started = time.monotonic()
    if options.task is not None:
        saved = open_finetuned(options)
        return {"results": [score_finetuned(saved, options.data_dir, options.dev_file, started)]}
    return {"results": [_losses(options, options.corpus or [], started)]}


def _losses(options: EvaluateOptions, corpus: list[str], started: float) -> dict:
    """The row of a subnetwork, or of the full model, measured on text."""
    precision = choose_precision(options.precision)
    accelerator = make_accelerator(precision, 1, options.seed)
    with processes.one_first():
        student = load_masked_language_model(options.model, need_head=options.head is not None)
        if options.head is not None:
            student.load_head(read_head(options.head), options.head)
        if student.fresh_head:
            say(
                f"{options.model} has no trained MLM head, so only the KD loss is measured "
                "(--head gives a head from a run)"
            )
        tokenizer = load_tokenizer(options.model)
        text = load_dev_corpus(corpus, tokenizer, block_length(options.max_length, student.model, tokenizer))
    if options.blocks is not None:
        text, _ = text.split(options.blocks)
    student.model.to(accelerator.device)
    try:
        check_encoder_runs(student, options.model, accelerator, text)
    except HalfPrecisionError as error:
        choose_fp32(options.precision, error)
        return _losses(replace(options, precision="fp32"), corpus, started)
    teacher = copy.deepcopy(student.encoder)
    masks: Masks = {}
    info: MaskInfo | None = None
    if options.mask is not None:
        masks, info = load_masks(options.mask)
        apply_masks(student.model, masks)
    report_arithmetic(accelerator, options.precision)
    masking = TokenMasking.of(tokenizer, student.model)
    batch_size = options.batch_size or BATCH_SIZE
    losses = dev_losses(accelerator, student, teacher, text, masking, batch_size, options.seed)
    return {
        "model": options.model,
        **mask_in_row(options.mask, masks, info),
        "mlm_loss": losses.get("mlm_loss"),
        "kd_loss": losses["kd_loss"],
        "precision": precision,
        "seconds": round(time.monotonic() - started, 1),
    }


def block_length(asked: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The block length asked for, or the least of 512, the model's positions and the tokenizer's longest input.

    Raises:
        UserError: the model has fewer positions than asked for.
    """
    positions = longest_input(model)
    if asked is not None and asked > positions:
        raise UserError(f"--max-length {asked} is more than the {positions} positions of the model; lower it")
    return asked or min(BLOCK_LENGTH, positions, tokenizer.model_max_length)


def check_encoder_runs(student: MaskedLanguageModel, name: str, accelerator: Accelerator, text: Blocks) -> None:
    """Check that an encoder reads a block of text in the precision asked for; see `check_runs`."""
    batch = {key: tensor.to(accelerator.device) for key, tensor in prepare(text.batch([0])).items()}
    check_runs(student.encoder, name, accelerator, lambda: encode(student.encoder, batch, hidden_states=True))


def read_head(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a head file. Raises UserError if it is missing or damaged."""
    check_pulled(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors and the file system each have their own
        raise UserError(
            f"the MLM head {path} cannot be read ({type(error).__name__}); give the head.safetensors of a run"
        ) from error
