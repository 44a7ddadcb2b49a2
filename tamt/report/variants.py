"""What distinguishes searches by the same method, in words: initial mask, scores and other options."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tamt.masks.file import TORCH_SUFFIXES
from tamt.methods import METHODS, trains_scores
from tamt.recipes import RECIPES, search_recipe
from tamt.runtime.choices import DEFAULT_SCORES, HUB, MASKS_BY_NAME
from tamt.runtime.errors import UserError
from tamt.terms import describe, parse_objective

RANDOM_START = "random start"
UNKNOWN = "unknown search"
"""The variant of mask training if only the mask is known."""


def variants(configs: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """The variant of the search with each config; None for the default.

    Scores are named if the searches start from several kinds of them.
    """
    configs = list(configs)
    several = len({kind for config in configs if (kind := _scores(config))}) > 1
    return [_variant(config, several) for config in configs]


def _variant(config: Mapping[str, Any], with_scores: bool) -> str | None:
    scores, initial = _scores(config), initial_mask(config)
    words = [_objective(config["objective"])] if isinstance(config.get("objective"), str) else []
    if initial is not None:
        words.append(RANDOM_START if initial == "random" else f"from {_source(initial)}")
    if scores and with_scores:
        words.append(f"{scores} scores")
    words += [config[option] for option in ("pattern", "structure") if isinstance(config.get(option), str)]
    if config.get("drop") not in (None, "last"):  # the last is the default
        words.append(str(config["drop"]))
    if config.get("scope") == "row":
        words.append("per row")
    return ", ".join(words) or None


def initial_mask(config: Mapping[str, Any]) -> str | None:
    """The mask from which mask training starts, as `initial` names it; None for the one that its scores give anyway."""
    initial = config.get("initial")
    if not trains_scores(str(config.get("method"))) or not isinstance(initial, str):
        return None
    return None if initial == "omp" and _scores(config) in ("magnitude", "two-valued") else initial


def _source(initial: str) -> str:
    """Where an initial mask comes from, in words: the folder of its search, and the name of its file on the way."""
    if initial in MASKS_BY_NAME:
        return METHODS[initial].label
    if initial.startswith(HUB):
        return initial
    path = Path(initial)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        return path.name
    folder = path.parent
    return f"{folder.parent.name} {path.stem}" if folder.name == "masks" else folder.name or path.name


def _objective(text: str) -> str:
    try:
        return describe(parse_objective(text))
    except UserError:  # of another version of tamt
        return text


def _scores(config: Mapping[str, Any]) -> str | None:
    """The kind of scores from which mask training starts; None for other methods."""
    method, recipe = str(config.get("method")), config.get("recipe")
    if not trains_scores(method):
        return None
    of_recipe = search_recipe(recipe, METHODS[method]) if recipe in RECIPES else {}
    default = DEFAULT_SCORES if config.get("initial") is None else "two-valued"
    return str(config.get("scores") or of_recipe.get("scores") or default)


def starts_at_random(variant: str | None) -> bool:
    """Whether searches of this variant start from a random mask."""
    return RANDOM_START in (variant or "").split(", ")


def not_at_random(variant: str | None) -> str | None:
    """The same variant without the random start."""
    return ", ".join(word for word in (variant or "").split(", ") if word != RANDOM_START) or None


def is_unusual(variant: str | None) -> bool:
    """Whether a variant differs from the default, so that figures draw it dashed."""
    return variant not in (None, f"{DEFAULT_SCORES} scores")
