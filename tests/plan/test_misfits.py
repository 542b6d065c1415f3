"""A model that does not fit: tensor by tensor while there are few, one line per model where there are many."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import MismatchError
from weightsmith.plan import make_plan
from weightsmith.run import make_recipe


def arrays(pattern, count, shape=(2, 3)):
    return {pattern.format(i): np.ones(shape, "float32") for i in range(count)}


def lines(folders):
    base, *models = map(str, folders)
    with pytest.raises(MismatchError) as caught:
        make_plan(make_recipe("task_arithmetic", base=base, models=models))
    return [line.partition(". ")[2] for line in str(caught.value).splitlines() if line.startswith("  ")]


@pytest.fixture
def folders(tmp_path, save_arrays):
    """`folders(base, model, ...)` saves models and returns their folders, called base, m1, m2, ..."""
    return lambda *models: [save_arrays(tmp_path / (f"m{i}" if i else "base"), m) for i, m in enumerate(models)]


def test_another_architecture_is_one_line(folders, tmp_path):
    found = folders(
        arrays("layers.{}.w", 30), arrays("h.{}.v", 20) | arrays("layers.{}.w", 1), arrays("layers.{}.w", 30)
    )
    (line,) = lines(found)
    base, other = tmp_path / "base", tmp_path / "m1"
    assert line == (
        f"model '{other}' lacks 29 of 30 tensors of '{base}', first: 'layers.1.w', 'layers.2.w', 'layers.3.w' and has 20"
        f" others; it looks like another architecture; list all with: weightsmith compare {base} {other}"
    )


@pytest.mark.parametrize(("kept", "foreign"), [(15, False), (14, True)])
def test_half_of_the_tensors_make_another_architecture(folders, kept, foreign):
    (line,) = lines(folders(arrays("layers.{}.w", 30), arrays("layers.{}.w", kept)))
    assert f"lacks {30 - kept} of 30 tensors" in line
    assert ("another architecture" in line) == foreign
    assert "others" not in line


@pytest.mark.parametrize(("gone", "count"), [(1, 1), (3, 3), (4, 1)])
def test_few_missing_tensors_are_told_one_by_one(folders, gone, count):
    told = lines(folders(arrays("layers.{}.w", 30), arrays("layers.{}.w", 30 - gone)))
    assert len(told) == count
    assert all(("is missing in" in line) == (count == gone) for line in told)


@pytest.mark.parametrize(("more", "count"), [(3, 3), (4, 1)])
def test_many_tensors_beside_are_one_line(folders, more, count):
    told = lines(folders(arrays("layers.{}.w", 30), arrays("layers.{}.w", 30 + more)))
    assert len(told) == count
    if more == 4:
        assert "has 4 tensors that" in told[0]
        assert "first: 'layers.30.w', 'layers.31.w', 'layers.32.w'; list all with: weightsmith compare" in told[0]


def test_another_size_is_one_line_per_model(folders, tmp_path):
    told = lines(
        folders(
            arrays("layers.{}.w", 9),
            arrays("layers.{}.w", 9, (4, 6)),
            arrays("layers.{}.w", 9, (2, 9)),
            arrays("x{}", 1),
        )
    )
    assert len(told) == 3
    told.sort()
    assert "lacks 9 of 9" in told.pop(0)
    for line, which, shape in zip(told, ("m2", "m1"), ((2, 9), (4, 6)), strict=True):
        assert f"tensor 'layers.0.w' has shape (2, 3) in {tmp_path / 'base' / 'model.safetensors'} and {shape}" in line
        assert f"8 more tensors of '{tmp_path / which}' have another shape, first: 'layers.1.w', 'layers.2.w'" in line


def test_names_for_the_shell_are_quoted(tmp_path, save_arrays):
    base = save_arrays(tmp_path / "base", arrays("layers.{}.w", 5))
    other = save_arrays(tmp_path / "it's $HOME", arrays("h.{}.w", 5))
    (line,) = lines([base, other])
    assert line.endswith(f"weightsmith compare {base} '{tmp_path}/it'\"'\"'s $HOME'")
