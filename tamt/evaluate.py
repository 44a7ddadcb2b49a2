"""`tamt evaluate`: the MLM and KD loss of a subnetwork on dev text, or the score of a fine-tuned model on its task."""

import copy
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt import processes
from tamt.console import say
from tamt.data.corpora import Blocks, dev_batches, load_dev_corpus
from tamt.errors import UserError, check_positive, check_seed
from tamt.finetune.saved import open_finetuned, score_finetuned
from tamt.mask_file import MaskInfo, load_masks
from tamt.masking import apply_masks, sparsity_of
from tamt.methods import FULL
from tamt.models import (
    MaskedLanguageModel,
    load_masked_language_model,
    load_tokenizer,
    longest_input,
)
from tamt.objectives import Losses, TokenMasking, encode, prepare
from tamt.precision import Precision, choose_precision
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


def evaluate(
    model: str,
    corpus: list[str] | None = None,
    mask: Path | None = None,
    head: Path | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    blocks: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    task: str | None = None,
    data_dir: Path | None = None,
    dev_file: Path | None = None,
    text_column: list[str] | None = None,
    label_column: str | None = None,
) -> dict:
    """Measure the MLM and KD loss of a subnetwork on dev text, or the score of a fine-tuned model on a task's dev rows.

    The masking of the tokens depends on the seed alone, so two masks are compared on the same tokens. A score is that
    of fine-tuning.

    Args:
        model: hub name or folder of the pre-trained model, or "demo" or "demo-base"; for a --task the run folder of
            tamt finetune, or the folder or hub name of a fine-tuned model.
        corpus: wikitext-103 (its validation split), demo, or text files, one paragraph a line.
        mask: mask file of the subnetwork; without one the full model is measured.
        head: head.safetensors of a run, for a checkpoint without an MLM head or to measure with the trained one.
        max_length: tokens of a block; 512, or what the model or its tokenizer takes at most if that is less. Of a row
            for a --task; by default as in fine-tuning.
        batch_size: blocks a batch, by default 16; rows a batch for a --task, by default as in fine-tuning.
        blocks: measure only the first so many blocks of the text.
        precision: arithmetic of the model; auto is bf16 where the device has instructions for it, else fp16 on
            a GPU and fp32 on a CPU; for a run folder that of the run.
        seed: of the masked positions.
        task: in place of the losses the score on the dev rows of this task of tamt finetune.
        data_dir: for a --task GLUE's glue_data folder, or the folder with SQuAD's dev-v1.1.json (squad2: v2.0); by
            default that of the run, else the hub.
        dev_file: dev rows of classification or regression; by default those of the run.
        text_column: their column with the text, or the two with a pair; by default those of the run, or sentence.
        label_column: their column with the label; by default that of the run, or label.
    """
    started = time.monotonic()
    on_text = {"corpus": corpus, "mask": mask, "head": head, "blocks": blocks}
    on_task = {"data_dir": data_dir, "dev_file": dev_file, "text_column": text_column, "label_column": label_column}
    for option, value in (on_text if task else on_task).items():
        if value is not None:
            use, remedy = ("losses on text", "it or --task") if task else ("the score on a --task", "it")
            raise UserError(f"--{option.replace('_', '-')} is for {use}; leave {remedy} out")
    if task is not None:
        saved = open_finetuned(model, task, text_column, label_column, max_length, batch_size, precision)
        return {"results": [score_finetuned(saved, data_dir, dev_file, started)]}
    if corpus is None:
        raise UserError("--corpus is missing, or --task for the score of a fine-tuned model; give one of them")
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    check_positive(max_length=max_length, batch_size=batch_size, blocks=blocks)
    check_seed(seed)
    asked, precision = precision, choose_precision(precision)
    accelerator = make_accelerator(precision, 1, seed)
    with processes.one_first():
        student = load_masked_language_model(model, need_head=head is not None)
        if head is not None:
            student.load_head(read_head(head), head)
        if student.fresh_head:
            say(f"{model} has no trained MLM head, so only the KD loss is measured (--head gives a head from a run)")
        tokenizer = load_tokenizer(model)
        text = load_dev_corpus(corpus, tokenizer, block_length(max_length, student.model, tokenizer))
    if blocks is not None:
        text, _ = text.split(blocks)
    student.model.to(accelerator.device)
    try:
        check_encoder_runs(student, model, accelerator, text)
    except HalfPrecisionError as error:
        choose_fp32(asked, error)
        return evaluate(model, corpus, mask, head, max_length, batch_size, blocks, "fp32", seed)
    teacher = copy.deepcopy(student.encoder)
    sparsity = 0.0
    info: MaskInfo | None = None
    if mask is not None:
        masks, info = load_masks(mask)
        apply_masks(student.model, masks)
        sparsity = sparsity_of(masks)
    report_arithmetic(accelerator, asked)
    losses = dev_losses(
        accelerator, student, teacher, text, TokenMasking.of(tokenizer, student.model), batch_size, seed
    )
    row = {
        "model": model,
        "method": info.method if info else FULL,
        "sparsity": round(sparsity, 6),
        "mask": str(mask) if mask else None,
        "mask_seed": info.seed if info else None,
        "mask_step": info.step if info else None,
        "mlm_loss": losses.get("mlm_loss"),
        "kd_loss": losses["kd_loss"],
        "precision": precision,
        "seconds": round(time.monotonic() - started, 1),
    }
    return {"results": [row]}


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
