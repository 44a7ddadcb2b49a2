"""``python -m benchmarks compare``: `tamt compare` of many BERT-base masks, and one pair in three ways."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks import clocks, machine
from benchmarks.measure import check_seconds, measure
from tamt.masks.file import MaskInfo, PackedMasks, load_masks, load_packed, save_masks
from tamt.masks.masking import Masks, prunable_weights, random_masks
from tamt.masks.similarity import similarity
from tamt.methods import RANDOM
from tamt.report.compare import compare
from tamt.runtime.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--masks", type=int, default=20, help="how many masks of BERT-base, 13.6 MB each (default: 20)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for one pair in three ways (default: 5)")


def run(options: argparse.Namespace) -> None:
    """Write random masks of 70 % sparsity to a temporary folder and print how long their comparison takes."""
    if options.masks < 2:
        raise UserError(f"--masks {options.masks} must be 2 or more; give at least a pair")
    check_seconds(options.seconds)
    described = machine.describe(torch.device("cpu"))
    print(machine.in_words(described), flush=True)
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
    weights = {name: torch.empty(weight.shape) for name, weight in prunable_weights(model).items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.safetensors" for seed in range(options.masks)]
        masks = random_masks(weights, 0.7, 0)
        for seed, path in enumerate(paths):
            masks = {name: mask.roll(1) for name, mask in masks.items()}  # drawing each anew would take 4 s
            save_masks(path, masks, MaskInfo("bert-base", RANDOM, 0.7, seed, 0))
        started = time.perf_counter()
        pairs = len(compare(paths)["results"])
        seconds = time.perf_counter() - started
        print(f"tamt compare of {options.masks} masks, {pairs} pairs, read and compared: {seconds:.2f} s", flush=True)
        packed = load_packed(paths[0]), load_packed(paths[1])
        plain = load_masks(paths[0])[0], load_masks(paths[1])[0]
    contenders = {
        "packed bits, 8 bytes at a time": lambda: similarity(*packed),
        "packed bits, byte by byte": lambda: _bytewise(*packed),
        "bool tensors": lambda: _plain(*plain),
    }
    for name, measured in measure(contenders, clocks.clock(torch.device("cpu")), options.seconds).items():
        print(f"one pair, {name}: {measured.median_ms:.1f} ms ({measured.samples} samples)")


def _bytewise(first: PackedMasks, second: PackedMasks) -> int:
    return sum(int(np.bitwise_count(bits & second.bits[name]).sum()) for name, bits in first.bits.items())


def _plain(first: Masks, second: Masks) -> int:
    return sum(int((mask & second[name]).sum() + (mask | second[name]).sum()) for name, mask in first.items())
