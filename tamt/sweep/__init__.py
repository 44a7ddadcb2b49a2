"""Studies: many searches and fine-tunings from one YAML file."""

from tamt.sweep.run import sweep

__all__ = ["sweep"]
