"""Fine-tuning of a subnetwork, or of the full model, on a task."""
