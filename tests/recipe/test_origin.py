"""Where a recipe comes from: the spelling of its parameters, the lines of its parts, and the keys that may be misspelled."""

from __future__ import annotations

import pytest

from weightsmith.recipe import Origin, Recipe
from weightsmith.recipe.origin import doubtful_keys
from weightsmith.recipe.text import KEYS, parse_recipe
from weightsmith.strict_yaml import parse_tree


@pytest.mark.parametrize(
    ("name", "python", "command", "recipe"),
    [
        ("lambda_", "lambda_", "--lambda", "lambda"),
        ("drop_top", "drop_top", "--drop-top", "drop_top"),
        ("models", "models", "--model", "models"),
    ],
)
def test_each_door_has_its_spelling(name: str, python: str, command: str, recipe: str) -> None:
    assert [Origin(door).spelled(name) for door in ("python", "command", "recipe")] == [python, command, recipe]


def test_what_is_given_on_the_command_line_is_quoted() -> None:
    assert Origin("command").given("copy", "a b*", several=True) == "--copy 'a b*'"
    assert Origin("recipe").given("base", "MODEL") == "base: MODEL"


def test_a_file_lends_lines() -> None:
    text = """\
method: ties
base: b
slices:
  - sources:
      - {model: b, layers: [0, 1]}
      - model: c
        layers: [0, 1]
        density: [{match: "*.mlp.*", value: 0.1}, 0.2]
    parameters:
      lambda:
        - {match: "*.norm.*", layers: [0, 1]}
        - 1
copy:
  - x*
drop: [y*]
parameters: {scope: tensor}
"""
    recipe = parse_recipe(text)
    assert recipe.origin.door == "recipe"
    assert recipe.origin.lines == {
        ("model", "b"): 2,
        ("slice", "1"): 4,
        ("model", "c"): 6,
        ("slice 1, source 2", "density"): 8,
        ("density", "*.mlp.*"): 8,
        ("slice 1: parameters", "lambda_"): 10,
        ("lambda_", "*.norm.*"): 11,
        ("copy", "x*"): 14,
        ("drop", "y*"): 15,
        ("parameters", "scope"): 16,
    }
    assert recipe.origin.at(("model", "d"), ("model", "c")) == "line 6: "
    assert recipe.origin.at(("model", "d")) == ""


def test_the_origin_is_no_part_of_what_a_recipe_says() -> None:
    assert Recipe("linear", ("a",)) == Recipe("linear", ("a",), origin=Origin("recipe", {("model", "a"): 1}))
    assert "origin" not in repr(Recipe("linear", ("a",)))


@pytest.mark.parametrize(
    ("text", "lines", "doubtful"),
    [
        ("method: ties\nmodels: [a]\n", (), set()),
        ("method: ties\nmodels:\n  - 1\n", (3,), {"models"}),
        ("models: [a]\n", (), {"method"}),
        ("method: ties\n", (), {"models"}),
        ("method: ties\nslices: []\n", (2,), {"slices"}),
        ("method: ties\nmodles: [a]\n", (2,), {"modles", "models", "base"}),
        ("method: ties\nmodels: [a]\ncopyy: [b]\n", (3,), {"copyy", "copy", "base"}),
        ("method: ties\nbase: b\nslices: []\nquux: [b]\n", (4,), {"quux"}),
        ("- a\n", (1,), set(KEYS)),
        ("method: ties\nmodels: [a\n", (2,), set(KEYS)),
    ],
)
def test_keys_that_nothing_can_be_concluded_from(text: str, lines: tuple[int, ...], doubtful: set[str]) -> None:
    assert doubtful_keys(parse_tree(text, []), KEYS, [(line, "") for line in lines]) == doubtful
