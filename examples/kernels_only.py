"""Train the masks of a random network, without BERT: no weight ever changes, and the network still learns.

    python examples/kernels_only.py --steps 300

Only `tamt_kernels` is used. `MaskedLinear` multiplies its frozen weight by a mask, and `MaskAdamW` trains the scores
that the mask ranks by, so that exactly the share of weights that was asked for is pruned after every step.
"""

import argparse
import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss, Linear, ReLU, Sequential

import tamt_kernels as tk

INPUTS, WIDTH = 8, 256


def batch(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points and their classes: whether the first two coordinates have the same sign, which no linear model knows."""
    points = torch.randn(rows, INPUTS, generator=generator)
    return points, (points[:, 0] * points[:, 1] > 0).long()


def masked(inputs: int, outputs: int, sparsity: float) -> tk.MaskedLinear:
    """A random layer of which the mask trains."""
    keep = math.ceil(inputs * outputs * (1 - sparsity))
    return tk.MaskedLinear.from_linear(Linear(inputs, outputs), keep=keep)


def accuracy(network: Sequential) -> float:
    """The share of 4,096 points that are classified well."""
    points, classes = batch(4096, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (network(points).argmax(1) == classes).float().mean().item()


def main() -> None:
    """Train and print the accuracy and the sparsity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    parser.add_argument("--sparsity", type=float, default=0.5, help="share of pruned weights, between 0 and 1")
    options = parser.parse_args()

    torch.manual_seed(0)
    sizes = [INPUTS, WIDTH, WIDTH, 2]
    layers = [masked(inputs, outputs, options.sparsity) for inputs, outputs in pairwise(sizes)]
    network = Sequential(layers[0], ReLU(), layers[1], ReLU(), layers[2])
    optimizer = tk.MaskAdamW(network, lr=1e-2)
    before, generator = accuracy(network), torch.Generator().manual_seed(0)
    for _ in range(options.steps):
        points, classes = batch(256, generator)
        CrossEntropyLoss()(network(points), classes).backward()
        optimizer.step()
        optimizer.zero_grad()

    kept, total = sum(int(layer.mask.sum()) for layer in layers), sum(layer.mask.numel() for layer in layers)
    print(f"accuracy {before:.3f} before, {accuracy(network):.3f} after {options.steps} steps")
    print(f"sparsity {1 - kept / total:.3f}: {kept:,} of {total:,} weights are kept, and none has changed")


if __name__ == "__main__":
    main()
