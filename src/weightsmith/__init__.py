"""Edit what a trained model knows, directly in its weights."""

from weightsmith.adapt import extract_lora, merge_adapters
from weightsmith.agreement import agreement
from weightsmith.align import align, barrier, merge_experts, permutation_groups, read_groups, shrink, write_groups
from weightsmith.bundle import Bundle, add, pack, remove, unpack
from weightsmith.compare import compare
from weightsmith.compress import ENCODINGS as encodings
from weightsmith.demo import demo
from weightsmith.dialect import convert_recipe
from weightsmith.errors import WeightsmithError
from weightsmith.inspection import inspect
from weightsmith.localization import CausalCheck, Lineage, Localization, causal_check, lineage, localize, restore
from weightsmith.merge import METHODS as merge_methods
from weightsmith.plan import Options, make_plan
from weightsmith.recipe import Recipe
from weightsmith.recipe.text import read_recipe
from weightsmith.report import write_report
from weightsmith.run import Result, merge
from weightsmith.soup import Soup, greedy_soup
from weightsmith.verify import verify

__all__ = [
    "Bundle",
    "CausalCheck",
    "Lineage",
    "Localization",
    "Options",
    "Recipe",
    "Result",
    "Soup",
    "WeightsmithError",
    "add",
    "agreement",
    "align",
    "barrier",
    "causal_check",
    "compare",
    "convert_recipe",
    "demo",
    "encodings",
    "extract_lora",
    "greedy_soup",
    "inspect",
    "lineage",
    "localize",
    "make_plan",
    "merge",
    "merge_adapters",
    "merge_experts",
    "merge_methods",
    "pack",
    "permutation_groups",
    "read_groups",
    "read_recipe",
    "remove",
    "restore",
    "shrink",
    "unpack",
    "verify",
    "write_groups",
    "write_report",
]
