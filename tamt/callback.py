"""A ticket in Hugging Face's `Trainer`."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tamt.masks.zeros import holds_zeros
from tamt.runtime.errors import UserError
from tamt.ticket import Ticket


class TicketCallback(TrainerCallback):
    """Apply a ticket when training begins, log the sparsity, and check the zeros whenever a model is saved.

    `sparsity` is the share of zeros in the matrices of the ticket, between 0 and 1. It is in the log history and in
    what the `Trainer` prints; trackers of `report_to` log before this callback and do not get it.

    Example:
        >>> import tamt
        >>> callback = tamt.TicketCallback("runs/kd-70")
        >>> Trainer(model, settings, train_dataset=rows, callbacks=[callback]).train()  # doctest: +SKIP
    """

    def __init__(self, ticket: Ticket | str | Path) -> None:
        """Take a ticket, or what `Ticket.load` takes.

        Raises:
            UserError: there is no such ticket, or it is damaged.
        """
        self.ticket = ticket if isinstance(ticket, Ticket) else Ticket.load(ticket)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **_: Any,
    ) -> None:
        """Apply the ticket, unless it was applied before. Raises UserError if the model has another ticket."""
        if not holds_zeros(model):
            self.ticket.apply(model)
        elif not self.ticket.is_applied(model):
            raise UserError("the model has another ticket than the callback; remove that first, or leave one out")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Add the sparsity to what is logged."""
        logs["sparsity"] = state.log_history[-1]["sparsity"] = round(self.ticket.sparsity_of(model), 6)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **_: Any,
    ) -> None:
        """Check that all pruned weights are zero. Raises UserError if not."""
        if revived := self.ticket.revived(model):
            raise UserError(
                f"{sum(revived.values()):,} pruned weights are not zero at step {state.global_step}, "
                f"{next(iter(revived))} among them; use an optimizer that changes weights by their gradient alone, and "
                "set no weight from outside"
            )
