"""The picture of the gains: over sparsity, a line for each number of tokens, with the break-even."""

from pathlib import Path

from benchmarks.report import counted
from benchmarks.sparse.products import SPARSE, Times, break_even, gain


def draw(path: Path, title: str, times: Times) -> str | None:
    """Draw it; say why where that cannot be."""
    try:
        import matplotlib as mpl
    except ImportError:
        return f"{path.name} is left out, as matplotlib is not installed"
    mpl.use("agg")
    from matplotlib import pyplot as plt

    dtypes = list(dict.fromkeys(key.dtype for key in times))
    canvas, axes = plt.subplots(1, len(dtypes), figsize=(5 * len(dtypes), 3.8), squeeze=False, layout="constrained")
    for axis, dtype in zip(axes.flat, dtypes, strict=True):
        points = sorted({(key.tokens, key.sparsity) for key in times if key.dtype == dtype and key.contender == SPARSE})
        for tokens in dict.fromkeys(each for each, _ in points):
            sparsities = [sparsity for each, sparsity in points if each == tokens and sparsity is not None]
            shares = [gain(times, dtype, tokens, each) for each in sparsities]
            label = f"{counted(tokens, 'token')}, faster from {break_even(times, dtype, tokens):.0%} on"
            axis.plot([100 * each for each in sparsities], shares, marker="o", markersize=4, label=label)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.annotate(
            "as fast as dense", (0.98, 1), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8
        )
        axis.set_ylim(bottom=0)
        axis.set_title(dtype, fontsize=10)
        axis.set_xlabel("pruned entries, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("times as fast as the best dense product")
    canvas.suptitle(f"Six products of a BERT-base layer\n{title}", fontsize=10)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)
    return None
