"""Recipes: settings that one word asks for. An option that is given wins over its recipe.

Nothing here imports torch. A command that has a `recipe` option fills the options that are None from its function here.
"""

from typing import Any, Literal, get_args

from tamt.methods import Method
from tamt.runtime.errors import check_choice

Recipe = Literal["short", "paper"]
"""`short`, the default: measured here for short runs and small models. `paper`: the settings of the paper."""
RECIPES: tuple[Recipe, ...] = get_args(Recipe)


def search_recipe(recipe: str, method: Method) -> dict[str, Any]:
    """The options of `tamt train` that a recipe sets; the short one sets none.

    paper: scores of two values (eq. 5), the learning rate of Table 1, however short the run, and the dropout of the
    model. The steps (Table 2), the batch (Table 1) and a threshold after every step (3.4.2) are the paper's by default.

    Raises:
        UserError: there is no such recipe.
    """
    check_choice("recipe", recipe, RECIPES)
    if recipe == "short":
        return {}
    return {"lr": method.lr, **({"scores": "two-valued", "dropout": "model"} if method.trains_scores else {})}
