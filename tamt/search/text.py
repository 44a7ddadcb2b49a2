"""The text of a search, and the batches that its steps take."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from tamt.data.corpora import Blocks, train_batches
from tamt.data.token_masking import COUNTS, TokenMasking, prepare
from tamt.runtime import processes


@dataclass
class Text:
    """The text of a search.

    Attributes:
        masking: how tokens are masked for MLM.
        train: training text; None for methods that need none.
        dev: text for the dev losses, if any.
        batch_size: blocks that go through the model at once, at most.
        step_blocks: blocks of an optimizer step, over all processes.
        parts: batches of an optimizer step in this process.
        seed: of the order of the blocks and of the masked tokens.
        fixed_shapes: pad the masked positions to one number per shape of the batch, as CUDA graphs need.
    """

    masking: TokenMasking
    train: Blocks | None
    dev: Blocks | None
    batch_size: int
    step_blocks: int
    parts: int = 1
    seed: int = 0
    fixed_shapes: bool = False

    def digest(self) -> str:
        """Digest of the text for training and of that for the dev losses."""
        return " ".join(blocks.digest() for blocks in (self.train, self.dev) if blocks)

    def batches(self, first: int, masked: bool) -> Iterator[dict[str, Tensor]]:
        """This process's training batches from optimizer step `first` (from 1) on, prepared, on the CPU.

        The batches of a step know the token counts of all of them, those of other processes too, so that their losses
        add up to the loss of one large batch. Every process masks all blocks of a step, which saves a message.

        Args:
            first: number of the first step.
            masked: whether tokens are masked for MLM; otherwise the batches hold the plain text.
        """
        assert self.train is not None
        masking = self.masking if masked else None
        parts = processes.share(self.step_blocks, self.parts)
        for step in train_batches(self.train, self.step_blocks, self.seed, first - 1, masking):
            whole = prepare(step)
            totals = {name: whole[name] for name in COUNTS if name in whole}
            for part in parts:
                batch = {name: tensor[part.start : part.stop] for name, tensor in step.items()}
                positions = self.masking.most(batch["input_ids"].numel()) if masked and self.fixed_shapes else 0
                yield {**prepare(batch, positions), **totals}
