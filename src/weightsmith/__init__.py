"""Edit what a trained model knows, directly in its weights."""

from weightsmith.errors import WeightsmithError
from weightsmith.plan import Options, make_plan
from weightsmith.recipe import Recipe, read_recipe
from weightsmith.run import Result, merge

__all__ = ["Options", "Recipe", "Result", "WeightsmithError", "make_plan", "merge", "read_recipe"]
