"""Whose settings a command takes where an option is not given."""

from typing import Literal

Recipe = Literal["short", "paper"]
"""`short`: measured here for short runs and small models. `paper`: those of the paper. Options that are given win."""
