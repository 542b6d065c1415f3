"""Edit what a trained model knows, directly in its weights."""

from weightsmith.agreement import agreement
from weightsmith.compare import compare
from weightsmith.demo import demo
from weightsmith.errors import WeightsmithError
from weightsmith.inspection import inspect
from weightsmith.merge import METHODS as merge_methods
from weightsmith.plan import Options, make_plan
from weightsmith.recipe import Recipe, read_recipe
from weightsmith.run import Result, merge
from weightsmith.verify import verify

__all__ = [
    "Options",
    "Recipe",
    "Result",
    "WeightsmithError",
    "agreement",
    "compare",
    "demo",
    "inspect",
    "make_plan",
    "merge",
    "merge_methods",
    "read_recipe",
    "verify",
]
