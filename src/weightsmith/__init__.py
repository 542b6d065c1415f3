"""Edit what a trained model knows, directly in its weights."""

from weightsmith.adapt import extract_lora, merge_adapters
from weightsmith.agreement import agreement
from weightsmith.align import align, barrier, merge_experts, permutation_groups, read_groups, shrink, write_groups
from weightsmith.compare import compare
from weightsmith.demo import demo
from weightsmith.dialect import convert_recipe
from weightsmith.errors import WeightsmithError
from weightsmith.inspection import inspect
from weightsmith.merge import METHODS as merge_methods
from weightsmith.plan import Options, make_plan
from weightsmith.recipe import Recipe
from weightsmith.recipe.text import read_recipe
from weightsmith.run import Result, merge
from weightsmith.soup import Soup, greedy_soup
from weightsmith.verify import verify

__all__ = [
    "Options",
    "Recipe",
    "Result",
    "Soup",
    "WeightsmithError",
    "agreement",
    "align",
    "barrier",
    "compare",
    "convert_recipe",
    "demo",
    "extract_lora",
    "greedy_soup",
    "inspect",
    "make_plan",
    "merge",
    "merge_adapters",
    "merge_experts",
    "merge_methods",
    "permutation_groups",
    "read_groups",
    "read_recipe",
    "shrink",
    "verify",
    "write_groups",
]
