"""The MLM and KD loss of a subnetwork on dev text."""

import torch
from transformers import PreTrainedModel

from tamt.data.corpora import Blocks, dev_batches
from tamt.data.token_masking import TokenMasking, prepare
from tamt.models.language_model import MaskedLanguageModel
from tamt.objectives import Losses, encode
from tamt.runtime import processes
from tamt.training.compute import Compute
from tamt.training.half_precision import check_runs

COUNTS = {"kd": "real_tokens", "mlm": "masked_tokens"}
"""The tokens that each loss is a mean over."""


@torch.no_grad()
def dev_losses(
    compute: Compute,
    student: MaskedLanguageModel,
    teacher: PreTrainedModel,
    blocks: Blocks,
    masking: TokenMasking,
    batch_size: int,
    seed: int = 0,
) -> dict[str, float]:
    """Measure the dev losses of a subnetwork with dropout off, over all blocks.

    Several processes share the batches, and all get the result of one process, bit for bit.

    Args:
        compute: gives the device and the precision.
        student: the subnetwork; without an MLM loss while its head is fresh.
        teacher: the dense encoder.
        blocks: the dev text.
        masking: how tokens are masked for the MLM loss; KD reads the plain text.
        batch_size: blocks per batch; it changes the result only by rounding.
        seed: of the masked positions; use one seed for masks that are compared.

    Returns:
        `kd_loss`, mean over layers and real tokens, and `mlm_loss`, mean over masked tokens, in nats.
    """
    student.model.eval()
    teacher.eval()
    means = {}
    one = torch.ones((), device=compute.device)  # the losses as sums, to be divided once at the end
    objectives = {"kd": Losses({"kd": 1.0}, student, teacher)}
    if not student.fresh_head:
        objectives["mlm"] = Losses({"mlm": 1.0}, student)
    for name, losses in objectives.items():
        count = COUNTS[name]
        found = []
        for plain in dev_batches(blocks, batch_size, seed, masking if name == "mlm" else None, processes.dealt()):
            batch = prepare(plain)
            tokens = int(batch[count])
            batch = {key: value.to(compute.device) for key, value in batch.items()}
            with compute.autocast():
                found.append((losses({**batch, count: one})["loss"].item(), tokens))
        found = processes.collect(found)
        means[f"{name}_loss"] = sum(loss for loss, _ in found) / max(1, sum(tokens for _, tokens in found))
    return means


def check_encoder_runs(student: MaskedLanguageModel, name: str, compute: Compute, text: Blocks) -> None:
    """Check that an encoder reads a block of text in the precision of the run; see `check_runs`."""
    batch = {key: tensor.to(compute.device) for key, tensor in prepare(text.batch([0])).items()}
    check_runs(student.encoder, name, compute, lambda: encode(student.encoder, batch, hidden_states=True))
