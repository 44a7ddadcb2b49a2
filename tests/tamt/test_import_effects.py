"""Importing `tamt` changes nothing outside it: no logging, no registry, no generator."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

EFFECTS = """
import json, logging, sys, warnings
import torch, transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import logging as messages
from huggingface_hub.utils import are_progress_bars_disabled

def state():
    root = logging.getLogger()
    return {
        "verbosity": messages.get_verbosity(),
        "bars": [messages.is_progress_bar_enabled(), are_progress_bars_disabled()],
        "attention": [sorted(AttentionInterface()), sorted(AttentionMaskInterface())],
        "handlers": [str(root.handlers), root.level, str(logging.getLogger("transformers").handlers)],
        "filters": len(warnings.filters),
        "generator": torch.get_rng_state().sum().item(),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "type": str(torch.get_default_dtype()),
        "hook": [str(sys.excepthook), str(sys.meta_path)],
    }

import accelerate, datasets, torch.utils.tensorboard, tamt_kernels  # effects of their own do not count
before = state()
import tamt, tamt.cli, tamt.search.train, tamt.search.imp, tamt.search.mask_training, tamt.finetuning.finetune
import tamt.commands.evaluate, tamt.commands.predict, tamt.commands.export, tamt.demo
import tamt.sweep.sweep, tamt.report.report
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""


def test_importing_tamt_changes_nothing_outside_it() -> None:
    process = subprocess.run(
        [sys.executable, "-c", EFFECTS], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == {}
