"""Winning tickets in BERT by task-agnostic mask training."""

__version__ = "0.1.0"
