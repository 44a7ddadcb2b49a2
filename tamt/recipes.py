"""Recipes: settings that one word asks for. An option that is given wins over its recipe.

Nothing here imports torch. A command that has a `recipe` option fills the options that are None from its function here.
"""

from typing import Any, Literal

from tamt.errors import check_choice
from tamt.methods import Method

Recipe = Literal["paper"]
RECIPES = ("paper",)


def search_recipe(recipe: str | None, method: Method) -> dict[str, Any]:
    """The options of `tamt train` that a recipe sets; none without a recipe.

    paper: scores of two values (eq. 5) and the learning rate of Table 1, however short the run. The steps (Table 2),
    the batch (Table 1) and a threshold after every step (3.4.2) are the paper's by default.

    Raises:
        UserError: there is no such recipe.
    """
    if recipe is None:
        return {}
    check_choice("recipe", recipe, RECIPES)
    return {"lr": method.lr, **({"scores": "two-valued"} if method.trains_scores else {})}
