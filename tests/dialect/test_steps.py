"""Files of several documents: order, names, circles."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightsmith.dialect import is_dialect, read_steps
from weightsmith.errors import RecipeError


def _text(name: str | None, *models: str) -> str:
    listed = ", ".join(f"{{model: {m}}}" for m in models)
    return f"merge_method: linear\nmodels: [{listed}]\nparameters: {{weight: 1}}\n" + (
        f"name: {name}\n" if name else ""
    )


def _write(folder: Path, *texts: str) -> Path:
    path = folder / "recipe.yml"
    path.write_text("---\n".join(texts))
    return path


def test_steps_come_after_what_they_use(tmp_path: Path) -> None:
    path = _write(tmp_path, _text(None, "two", "x"), _text("two", "one+adapter", "y"), _text("one", "x", "y"))
    assert [step.document.name for step in read_steps(path)] == ["one", "two", None]
    path = _write(tmp_path, _text("last", "first", "x"), _text("first", "x"))
    assert [step.document.name for step in read_steps(path)] == ["first", "last"]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ((_text("a", "b"), _text("b", "a"), _text(None, "a")), "in a circle: 'a' -> 'b' -> 'a'"),
        ((_text("a", "x"), _text("b", "x")), "got 'a' and 'b'"),
        ((_text(None, "x"), _text(None, "y")), "got line 1 and line 5"),
        ((_text("a", "x"), _text("a", "y"), _text(None, "a")), "name 'a'"),
        ((_text("../a", "x"), _text(None, "y")), "name '../a'"),
        ((_text(None, "x"), "merge_method: linear\n"), "line 5: expected one of models"),
    ],
)
def test_what_has_no_order_is_refused(tmp_path: Path, texts: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_steps(_write(tmp_path, *texts))
    assert told in str(error.value)


def test_names_stand_for_the_folders_of_results(tmp_path: Path) -> None:
    path = _write(tmp_path, _text("one", "x"), _text(None, "one+adapter", "ones"))
    recipe = read_steps(path)[1].translate({"one": "/place/one"}).recipe
    assert recipe.models == ("/place/one+adapter", "ones")


def test_only_mergekits_recipes_are_taken_for_them(tmp_path: Path) -> None:
    assert is_dialect(_write(tmp_path, "# words\n---\nx: 1\nmerge_method: linear\n"))
    assert not is_dialect(_write(tmp_path, "method: linear\nmodels: [merge_method]\n"))
    assert not is_dialect(_write(tmp_path, "[merge_method]\n"))
