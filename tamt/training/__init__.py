"""The training loop, and what keeps a run: its folder, its checkpoints, its precision."""
