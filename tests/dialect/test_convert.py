"""mergekit's recipes as text of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weightsmith
from weightsmith.errors import RecipeError
from weightsmith.recipe.text import parse_recipe

TEXT = """\
merge_method: {method}
base_model: {base}
slices:
  - sources:
      - {{model: {base}, layer_range: [0, 2]}}
      - {{model: {a}, layer_range: [1, 3]}}
    parameters: {{t: [{{filter: mlp, value: [0.2, 0.9]}}, {{value: 0.3}}]}}
  - sources: [{{model: {b}, layer_range: [2, 3]}}, {{model: {base}, layer_range: [2, 3]}}]
parameters: {{t: 0.6}}
dtype: float32
"""


def test_the_converted_recipe_merges_to_the_same_bytes(family: list[Path], tmp_path: Path) -> None:
    base, a, b = family
    old, new = tmp_path / "old.yml", tmp_path / "new.yml"
    old.write_text(TEXT.format(method="slerp", base=base, a=a, b=b))
    new.write_text(weightsmith.convert_recipe(old))
    assert parse_recipe(new.read_text()).method == "slerp"
    weightsmith.merge(old, out=tmp_path / "one")
    weightsmith.merge(new, out=tmp_path / "two")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_notes_stand_above_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_text("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1, wieght: 2}\ndtype: float32\n")
    text = weightsmith.convert_recipe(path)
    notes = [line for line in text.splitlines() if line.startswith("#")]
    assert len(notes) == 2
    assert "'wieght' has no effect" in notes[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]\ndtype: much\n",
            r"(?s)2 faults:.*line 3: dtype.*line 2: linear: model 'a': weight",
        ),
        ("models: [a]\n", "expected mergekit's key 'merge_method'"),
        ("method: linear\nmodels: [a]\n", "is one of ours already.* Run it with: weightsmith merge .* OUT"),
        (
            "merge_method: linear\nmodels: [{model: a}]\nname: x\n---\nmerge_method: linear\nmodels: [{model: x}]\n",
            "one document",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "r.yml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told):
        weightsmith.convert_recipe(path)


def test_the_command_prints_or_writes_and_never_replaces(command: Callable[..., Any], tmp_path: Path) -> None:
    path, out = tmp_path / "r.yml", tmp_path / "new.yaml"
    path.write_text("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ndtype: float32\n")
    printed = command("convert-recipe", path)
    assert (printed.code, printed.out) == (0, weightsmith.convert_recipe(path))
    assert command("convert-recipe", path, "--out", out).code == 0
    assert out.read_text() == printed.out
    out.write_text("mine")
    refused = command("convert-recipe", path, "--out", out)
    assert refused.code == 2
    assert "--force" in refused.err
    assert out.read_text() == "mine"
    assert command("convert-recipe", path, "--out", out, "--force").code == 0
    assert out.read_text() == printed.out
