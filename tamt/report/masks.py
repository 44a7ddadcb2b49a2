"""The masks of a study: their similarity, where they differ from OMP, and what they keep."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tamt.masks.file import PackedMasks, load_packed
from tamt.masks.masking import Sparsity
from tamt.masks.similarity import of_one_model, similarity
from tamt.methods import OMP
from tamt.report.figure import Chart, Figure, HeatMap, Missing, Point
from tamt.report.numbers import percent
from tamt.report.results import Results, TicketRecord
from tamt.report.scores import MethodVariant, Scores, label_of, main_tickets, scatter, series_of, suffixes
from tamt.report.statistics import summarise
from tamt.runtime.errors import UserError

MOST_MASKS = 24
"""Most masks in one heat map: more cells are unreadable, and BERT-base's masks take 14 MB each."""
KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention out",
    "intermediate.dense": "FFN in",
    "output.dense": "FFN out",
}
EMBEDDING = "embedding"


@dataclass
class MaskGroup:
    """A comparison of the masks of a model at a sparsity, and of one structure.

    Attributes:
        model: label of the model.
        sparsity: share of zeros, between 0 and 1.
        structure: of the masks, such as "ffn:0.5"; None for masks of matrices.
        labels: method and seed of each final mask.
        similarities: [mask][mask], over all matrices.
        distances: distance of every mask, including those saved on the way, from the OMP mask that prunes the same, if
            there is one: the same sparsity, pattern or structure.
        differences: for each method, the mean distance from OMP of each matrix.
        kept: for each matrix, its shape and the fewest and most entries that a mask keeps.
    """

    model: str
    sparsity: float
    structure: str | None = None
    labels: list[str] = field(default_factory=list)
    similarities: list[list[float]] = field(default_factory=list)
    distances: list[tuple[TicketRecord, float]] = field(default_factory=list)
    differences: dict[MethodVariant, dict[str, float]] = field(default_factory=dict)
    kept: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the masks share, in words."""
        return f"{percent(self.sparsity)} sparsity" + (f", {self.structure}" if self.structure else "")


def compare_masks(results: Results) -> list[MaskGroup]:
    """Compare the masks of each model, sparsity and structure. Damaged masks are skipped."""
    groups = []
    for model in results.models:
        for sparsity in sorted({t.sparsity for t in results.tickets if t.model == model}):
            groups += _compare(results, model, sparsity)
    return groups


def _compare(results: Results, model: str, sparsity: float) -> list[MaskGroup]:
    """The comparisons at a sparsity: one of the masks without a structure, and one for each structure."""
    main = {key: tickets.get(sparsity, []) for key, tickets in main_tickets(results, model).items()}
    chosen = [ticket for tickets in main.values() for ticket in sorted(tickets, key=lambda t: t.seed or 0)]
    first: dict[str | None, PackedMasks] = {}
    loaded: dict[str | None, list[tuple[TicketRecord, PackedMasks]]] = {}
    for ticket, mask in _readable(results, chosen, first):
        loaded.setdefault(mask.info.structure, []).append((ticket, mask))
    omp = {mask.info.pruned: mask for masks in loaded.values() for ticket, mask in masks if ticket.method == OMP}
    groups = {
        structure: _compared(results, MaskGroup(model, sparsity, structure), masks, omp)
        for structure, masks in loaded.items()
    }
    if omp:
        others = [t for t in results.tickets if t.model == model and t.sparsity == sparsity and t not in chosen]
        for ticket, mask in _readable(results, others, first):
            if mask.info.pruned in omp:
                distance = 1 - similarity(mask, omp[mask.info.pruned])[0]
                groups[mask.info.structure].distances.append((ticket, distance))
    return list(groups.values())


def _compared(
    results: Results,
    group: MaskGroup,
    loaded: list[tuple[TicketRecord, PackedMasks]],
    omp: Mapping[Sparsity, PackedMasks],
) -> MaskGroup:
    """The group, with the comparisons of its final masks with each other and with those of OMP."""
    if len(loaded) > MOST_MASKS:
        results.skip(
            f"the heat map of {group.model} at {group.title}",
            f"shows only the first {MOST_MASKS} of {len(loaded)} masks",
        )
    shown = loaded[:MOST_MASKS]
    for ticket, _ in shown:
        name = label_of(ticket.method, ticket.variant)
        group.labels.append(name if ticket.seed is None else f"{name} {ticket.seed}")
    size = len(shown)
    table = [[1.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            table[i][j] = table[j][i] = similarity(shown[i][1], shown[j][1])[0]
    group.similarities = table
    gathered: dict[MethodVariant, list[dict[str, float]]] = {}
    for ticket, mask in loaded:
        for name, kept in mask.kept.items():
            shape, least, most = group.kept.get(name, (mask.shapes[name], kept, kept))
            group.kept[name] = (shape, min(least, kept), max(most, kept))
        if mask.info.pruned in omp:
            overall, per_matrix = similarity(mask, omp[mask.info.pruned])
            group.distances.append((ticket, 1 - overall))
            if ticket.method != OMP:
                distances = {name: 1 - value for name, value in per_matrix.items()}
                gathered.setdefault((ticket.method, ticket.variant), []).append(distances)
    group.differences = {
        key: {name: sum(d[name] for d in masks) / len(masks) for name in masks[0] if all(name in d for d in masks)}
        for key, masks in gathered.items()
    }
    return group


def _readable(
    results: Results, tickets: Iterable[TicketRecord], first: dict[str | None, PackedMasks]
) -> Iterator[tuple[TicketRecord, PackedMasks]]:
    """The masks that are readable and have the matrices, or groups, of the first mask of their structure.

    Args:
        results: notes those that are left out.
        tickets: whose masks are read.
        first: the first mask of each structure, None for masks without; added to.
    """
    for ticket in tickets:
        if ticket.mask is None:
            continue
        if not ticket.mask.is_file():
            results.skip(f"{ticket.run}/{ticket.mask.name}", "is not there any more; it is not compared with others")
            continue
        try:
            mask = load_packed(ticket.mask)
        except UserError as error:
            results.skip(f"{ticket.run}/{ticket.mask.name}", f"cannot be read: {error}")
            continue
        if not of_one_model(mask, first.setdefault(mask.info.structure, mask)):
            results.skip(f"{ticket.run}/{ticket.mask.name}", "is for other matrices than the first mask of the model")
            continue
        yield ticket, mask


def mask_figures(results: Results, groups: list[MaskGroup]) -> list[Figure | Missing]:
    """Fig. 8 and 17, and the figures by layer."""
    found: list[Figure | Missing] = []
    for model, stem in suffixes(results.models).items():
        own = [group for group in groups if group.model == model]
        suffix = f" ({model})" if stem else ""
        found.append(_distance_figure(results, model, own, suffix, stem))
        found += _layer_figures(own, suffix, stem)
    return found


def _distance_figure(results: Results, model: str, groups: list[MaskGroup], suffix: str, stem: str) -> Figure | Missing:
    paper, title = "Fig. 8, 17", f"Similarity of masks, and distance from OMP{suffix}"
    scores = Scores(results, model)
    panels: list[Chart | HeatMap] = []
    for group in groups:
        if len(group.labels) > 1:
            lowest = min(value for row in group.similarities for value in row)
            panels.append(
                HeatMap(
                    title=group.title,
                    rows=tuple(group.labels),
                    columns=tuple(group.labels),
                    values=tuple(map(tuple, group.similarities)),
                    label="Jaccard similarity",
                    low=lowest,
                    high=1.0,
                )
            )
    for task in scores.panels:
        for group in groups:
            series = scatter(group.distances, scores, task)
            if len(series) > 1:
                name = f"{task}, {group.title}"
                panels.append(Chart(name, "distance from OMP", scores.label(task), series, scores.full(task)))
    if not panels:
        return Missing(title, paper, "searches by two or more methods, including OMP, at one sparsity")
    caption = (
        "Similarity is |A ∩ B| / |A ∪ B| over all matrices; distance is 1 − similarity. Numbers after a method are "
        "mask seeds. Each mark is one mask, including those saved along a search."
    )
    return Figure(f"fig-08-mask-distance{stem}", title, paper, caption, tuple(panels))


def _layer_figures(groups: list[MaskGroup], suffix: str, stem: str) -> list[Figure | Missing]:
    titles = (f"Mask similarity by layer{suffix}", f"Where masks differ from OMP{suffix}")
    charts: list[Chart] = []
    maps: list[HeatMap] = []
    for group in groups:
        matrices = {name for distances in group.differences.values() for name in distances}
        if all(place_of(name)[0] is None for name in matrices):  # no mask but OMP's, or none of a layer's matrices
            continue
        series = []
        for key, distances in group.differences.items():
            layers: dict[int, list[float]] = {}
            for name, distance in distances.items():
                layer, _ = place_of(name)
                if layer is not None:
                    layers.setdefault(layer, []).append(1 - distance)
            points = tuple(
                Point(layer + 1, s.mean, s.std, s.runs, "matrices of the layer")
                for layer, values in sorted(layers.items())
                for s in [summarise(values)]
            )
            series.append(series_of(key, points))
        charts.append(Chart(group.title, "layer", "Jaccard similarity to OMP", tuple(series)))
        highest = max(d for distances in group.differences.values() for d in distances.values())
        for key, distances in group.differences.items():
            maps.append(_map_of(f"{label_of(*key)}, {percent(group.sparsity)} sparsity", distances, highest))
    if not charts:
        needs = "an OMP search (--method omp) and others of the same model and sparsity"
        return [Missing(title, "of its own", needs) for title in titles]
    return [
        Figure(
            f"layers-similarity{stem}",
            titles[0],
            "not in the paper",
            "Means over the matrices of a layer and over mask seeds; bands: one standard deviation over the matrices.",
            tuple(charts),
        ),
        Figure(
            f"layers-difference{stem}",
            titles[1],
            "not in the paper",
            "Jaccard distance from the OMP mask per matrix, mean over mask seeds; one colour scale per sparsity.",
            tuple(maps),
        ),
    ]


def _map_of(title: str, distances: dict[str, float], highest: float) -> HeatMap:
    places = {place_of(name): distance for name, distance in distances.items()}
    layers = sorted({layer for layer, _ in places if layer is not None})
    kinds = list(dict.fromkeys(kind for _, kind in places))
    values = tuple(
        tuple(places.get((layer, kind), places.get((None, kind)) if layer == layers[0] else None) for layer in layers)
        for kind in kinds
    )
    columns = tuple(str(layer + 1) for layer in layers)
    return HeatMap(title, tuple(kinds), columns, values, "distance from OMP", 0.0, highest or 1.0)


def place_of(matrix: str) -> tuple[int | None, str]:
    """The layer (from 0) and the kind of a matrix; the layer is None for the word embedding and the pooler."""
    name = matrix.removesuffix(".weight")
    found = re.search(r"\blayers?\.(\d+)\.(.*)", name)
    if found:
        return int(found[1]), KINDS.get(found[2], found[2])
    return None, EMBEDDING if "embedding" in name else name
