"""Fine-tuning of a subnetwork, or of the full model, on a task."""

from tamt.finetune.run import finetune

__all__ = ["finetune"]
