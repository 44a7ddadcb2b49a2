"""The options of each command, as dataclasses. Their docstrings make `--help`; nothing here imports torch."""
