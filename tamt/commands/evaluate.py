"""`tamt evaluate`: the MLM and KD loss of a subnetwork on dev text, or the score of a fine-tuned model on its task."""

import copy
import time
from dataclasses import replace

from transformers import PreTrainedModel

from tamt.data.corpora import load_dev_corpus
from tamt.data.token_masking import TokenMasking
from tamt.finetuning.saved import open_finetuned, score_finetuned
from tamt.masks.file import MaskInfo, load_masks, mask_file, mask_in_row
from tamt.masks.gates import put_gates
from tamt.masks.masking import Masks, apply_masks, prunable_weights, share_of_zeros
from tamt.masks.origin import say_if_of_another
from tamt.models.language_model import load_masked_language_model, read_head
from tamt.models.loading import is_sparse
from tamt.models.sparse import run_sparse
from tamt.models.tokenizer import block_length, load_tokenizer
from tamt.options.base import command
from tamt.options.evaluate import EvaluateOptions
from tamt.runtime import processes
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.training.compute import report_compute, set_up
from tamt.training.dev_losses import check_encoder_runs, dev_losses
from tamt.training.half_precision import or_in_fp32
from tamt.training.precision import choose_precision

BATCH_SIZE = 16
FEW_ZEROS = 0.01
"""A model with a larger share of zeros was pruned; a pre-trained one has hardly any."""


def _prune(model: PreTrainedModel, masks: Masks, info: MaskInfo, sparse: bool) -> None:
    """Make a model the subnetwork of a mask; a structured one gates it, so that all layers can still be compared."""
    if info.structure is None:
        apply_masks(model, masks)
    elif sparse:
        raise UserError(
            f"--sparse is for masks of single weights, and {info.structure} prunes groups; leave it out, or shrink the "
            "model by tamt export --shrink"
        )
    else:
        put_gates(model, masks)


@command(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> dict:
    """Run `tamt evaluate`."""
    started = time.monotonic()
    if options.task is not None:
        saved = open_finetuned(options)
        return {"results": [score_finetuned(saved, options.data_dir, options.dev_file, started)]}
    row = or_in_fp32(_losses, replace(options, mask=mask_file(options.mask)))
    return {"results": [{**row, "seconds": round(time.monotonic() - started, 1)}]}


def _losses(options: EvaluateOptions) -> dict:
    """The row of a subnetwork, or of the full model, measured on text."""
    compute = set_up(choose_precision(options.precision), options.seed)
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
        text = load_dev_corpus(
            options.corpus or [], tokenizer, block_length(options.max_length, student.model, tokenizer)
        )
    if options.blocks is not None:
        text, _ = text.split(options.blocks)
    student.model.to(compute.device)
    check_encoder_runs(student, options.model, compute, text)
    teacher = copy.deepcopy(student.encoder)
    masks: Masks = {}
    info: MaskInfo | None = None
    if options.mask is not None:
        masks, info = load_masks(options.mask)
        say_if_of_another(masks, info.model, student.model)
        _prune(student.model, masks, info, options.sparse)
    elif (zeros := share_of_zeros(prunable_weights(student.encoder).values())) > FEW_ZEROS:
        say(
            f"{options.model} holds {zeros:.0%} zeros and no --mask is given, so the KD loss compares it with itself; "
            "give the full model and --mask to compare with that"
        )
    report_compute(compute, options.precision)
    if options.sparse or is_sparse(options.model):
        run_sparse(student.encoder, options.model, compute.dtype)
    masking = TokenMasking.of(tokenizer, student.model)
    batch_size = options.batch_size or BATCH_SIZE
    losses = dev_losses(compute, student, teacher, text, masking, batch_size, options.seed)
    return {
        "model": options.model,
        **mask_in_row(options.mask, masks, info),
        "mlm_loss": losses.get("mlm_loss"),
        "kd_loss": losses["kd_loss"],
        "precision": compute.precision,
    }
