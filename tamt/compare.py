"""How alike masks are: Jaccard similarity per matrix and over all."""

from itertools import combinations
from pathlib import Path

from tamt.errors import UserError
from tamt.mask_file import load_masks
from tamt.masking import Masks, sparsity_of


def similarity(first: Masks, second: Masks) -> tuple[float, dict[str, float]]:
    """Jaccard similarity |A ∩ B| / |A ∪ B| of two masks over all matrices and per matrix (paper 4.2.5).

    Two masks that keep nothing of a matrix are equal there: 1.
    """
    both = {name: int((mask & second[name]).sum()) for name, mask in first.items()}
    either = {name: int((mask | second[name]).sum()) for name, mask in first.items()}
    per_matrix = {name: both[name] / either[name] if either[name] else 1.0 for name in first}
    return sum(both.values()) / max(1, sum(either.values())), per_matrix


def compare(masks: list[Path]) -> dict:
    """Compare masks: similarity of each pair and sparsity, per matrix and over all.

    Args:
        masks: two or more mask files of the same model.
    """
    if len(masks) < 2:
        raise UserError("one mask cannot be compared; give two or more mask files")
    loaded = {str(path): load_masks(path)[0] for path in masks}
    first_path, first = next(iter(loaded.items()))
    shapes = {name: mask.shape for name, mask in first.items()}
    for path, other in loaded.items():
        if {name: mask.shape for name, mask in other.items()} != shapes:
            raise UserError(f"the masks {first_path} and {path} are for different models; compare masks of one model")
    results = []
    for (path_a, a), (path_b, b) in combinations(loaded.items(), 2):
        overall, per_matrix = similarity(a, b)
        results.append(
            {
                "first": path_a,
                "second": path_b,
                "similarity": overall,
                "distance": 1 - overall,
                "first_sparsity": sparsity_of(a),
                "second_sparsity": sparsity_of(b),
                "matrices": {
                    name: {
                        "similarity": value,
                        "first_sparsity": sparsity_of({name: a[name]}),
                        "second_sparsity": sparsity_of({name: b[name]}),
                    }
                    for name, value in per_matrix.items()
                },
            }
        )
    return {"results": results}
