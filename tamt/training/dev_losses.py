"""The MLM and KD loss of a subnetwork on dev text."""

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from tamt.data.corpora import Blocks, dev_batches
from tamt.data.token_masking import TokenMasking, prepare
from tamt.models.loading import (
    MaskedLanguageModel,
)
from tamt.objectives import Losses, encode
from tamt.runtime import processes
from tamt.training.loop import check_runs

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


def check_encoder_runs(student: MaskedLanguageModel, name: str, accelerator: Accelerator, text: Blocks) -> None:
    """Check that an encoder reads a block of text in the precision asked for; see `check_runs`."""
    batch = {key: tensor.to(accelerator.device) for key, tensor in prepare(text.batch([0])).items()}
    check_runs(student.encoder, name, accelerator, lambda: encode(student.encoder, batch, hidden_states=True))
