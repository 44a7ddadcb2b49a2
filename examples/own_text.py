"""Find a ticket on text of your own, and compare it with the one that keeps the largest weights.

    python examples/own_text.py notes.txt articles.txt --model bert-base-uncased --steps 1000

The files hold one paragraph per line. The last 5 % of them are held out to measure the KD loss: how far the pruned
model's hidden states are from those of the whole one.
"""

import argparse
from pathlib import Path

import tamt


def search(method: str, options: argparse.Namespace) -> tamt.Ticket:
    """Find a ticket by a method."""
    return tamt.find_ticket(
        options.model,
        method,
        options.text,
        options.sparsity,
        output=options.output / method,
        steps=options.steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
    )


def main() -> None:
    """Search both tickets and print what they are worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="+", help="text files")
    parser.add_argument("--model", default="bert-base-uncased", help="hub name or folder of the pre-trained model")
    parser.add_argument("--sparsity", type=float, default=0.7, help="share of pruned weights, between 0 and 1")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16, help="blocks of text per step")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per block")
    parser.add_argument("--output", type=Path, default=Path("runs/own-text"), help="folder for both runs")
    options = parser.parse_args()

    largest = search("omp", options)
    trained = search("tamt-kd", options)
    print(f"KD loss {largest.results['kd_loss']:.4f} with the largest weights")
    print(f"KD loss {trained.results['kd_loss']:.4f} with the trained mask")
    print(f"the tickets share {trained.similarity(largest):.1%} of the weights that either keeps")
    print(f"the ticket is in {trained.path}; tamt finetune takes that as --mask")


if __name__ == "__main__":
    main()
