"""`tamt compare`: Jaccard similarity of masks, per matrix and overall, and their distance from OMP."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from tamt.masks.file import TORCH_SUFFIXES, MaskInfo, PackedMasks, load_packed, pack_masks
from tamt.masks.masking import POOLER, Sparsity, prunable_weights
from tamt.masks.similarity import check_same_matrices, in_common, similarity
from tamt.methods import OMP
from tamt.models.language_model import load_masked_language_model
from tamt.models.loading import load_pooler
from tamt.options.base import command
from tamt.options.compare import CompareOptions
from tamt.runtime.errors import UserError
from tamt.runtime.files import write_atomically
from tamt.search.group_scores import omp_masks


@command(CompareOptions)
def compare(options: CompareOptions) -> dict:
    """Run `tamt compare`."""
    paths, output = [str(path) for path in options.masks], options.output
    if output is not None and output.exists() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"the output {output} exists and is not overwritten; give a new folder")
    loaded = in_common({str(path): load_packed(path) for path in options.masks})
    distances = _distances_from_omp(loaded, options.model)
    results = []
    for path_a, path_b in combinations(paths, 2):
        a, b = loaded[path_a], loaded[path_b]
        overall, per_matrix = similarity(a, b)
        row: dict[str, Any] = {
            "first": path_a,
            "second": path_b,
            "similarity": overall,
            "distance": 1 - overall,
            "first_sparsity": a.sparsity(),
            "second_sparsity": b.sparsity(),
        }
        for place, mask in (("first", a), ("second", b)):
            if mask.info.pattern is not None:
                row[f"{place}_pattern"] = mask.info.pattern
        if distances:
            row |= {"first_omp_distance": distances.get(path_a), "second_omp_distance": distances.get(path_b)}
        row["matrices"] = {
            name: {
                "similarity": value,
                "first_sparsity": a.sparsity(name),
                "second_sparsity": b.sparsity(name),
            }
            for name, value in per_matrix.items()
        }
        results.append(row)
    if output is not None:
        _draw(paths, results, output)
    return {"results": results}


def _draw(paths: list[str], results: list[dict], output: Path) -> None:
    """Write the similarities of all pairs as a heat map and as CSV files, overall and by matrix."""
    from tamt.report.drawing import write_pictures
    from tamt.report.figure import Figure, HeatMap
    from tamt.report.tables import Table, figure_table

    names = [_short(path) for path in paths]
    if len(set(names)) < len(set(paths)):
        names = paths
    size = len(paths)
    table = [[1.0] * size for _ in range(size)]
    for (i, j), row in zip(combinations(range(size), 2), results, strict=True):
        table[i][j] = table[j][i] = row["similarity"]
    low = min(min(row) for row in table)
    values = tuple(map(tuple, table))
    heat_map = HeatMap("all matrices", tuple(names), tuple(names), values, "Jaccard similarity", low, 1.0)
    figure = Figure("similarity", "Similarity of masks", "Fig. 8", "", (heat_map,))
    write_pictures(figure, output)
    write_atomically(output / "similarity.csv", figure_table(figure).csv())
    columns = ("first", "second", "matrix", "similarity", "first sparsity", "second sparsity")
    rows: list[tuple] = [
        (row["first"], row["second"], name, *values.values())
        for row in results
        for name, values in row["matrices"].items()
    ]
    write_atomically(output / "matrices.csv", Table("matrices", "By matrix", "", columns, rows).csv())


def _short(path: str) -> str:
    """The run of a mask, and its name if the run has several."""
    file = Path(path)
    if file.suffix not in (".safetensors", *TORCH_SUFFIXES):  # a run folder or a repository, whose name may have a dot
        return file.name or path
    if file.stem == "mask":
        return file.parent.name or file.stem
    return f"{file.parent.parent.name} {file.stem}" if file.parent.name == "masks" else file.stem


def _distances_from_omp(masks: Mapping[str, PackedMasks], model: str | None) -> dict[str, float]:
    """The distance of each mask from the OMP mask of the same sparsity, if there is one."""
    omp = {mask.info.pruned: mask for mask in masks.values() if mask.info.method == OMP}
    if model is not None:
        omp = _omp_of(model, masks)
    return {
        name: 1 - similarity(mask, omp[mask.info.pruned])[0] for name, mask in masks.items() if mask.info.pruned in omp
    }


def _omp_of(model: str, masks: Mapping[str, PackedMasks]) -> dict[Sparsity, PackedMasks]:
    """The OMP masks of a model by sparsity or pattern, for those of `masks`."""
    encoder = load_masked_language_model(model, need_head=False).encoder
    weights = prunable_weights(encoder)
    first = next(iter(masks.values()))
    if f"{POOLER}.weight" in first.shapes:
        weights[f"{POOLER}.weight"] = load_pooler(model)
    omp: dict[Sparsity, PackedMasks] = {}
    for sparsity in {mask.info.pruned for mask in masks.values()}:
        info = MaskInfo.of(model, OMP, sparsity, seed=0, step=0)
        omp[sparsity] = pack_masks(omp_masks(encoder, sparsity, weights), info)
        check_same_matrices({next(iter(masks)): first, f"of {model}": omp[sparsity]})
    return omp
