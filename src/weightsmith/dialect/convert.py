"""mergekit's recipe files to our own."""

from __future__ import annotations

import shlex
from pathlib import Path

from weightsmith.dialect.steps import has_key, is_dialect, read_steps
from weightsmith.errors import Gathered, RecipeError, shown
from weightsmith.recipe.text import write_recipe


def convert_recipe(path: str | Path, *, peer_exact: bool = False) -> str:
    """Return a mergekit recipe as the text of one of our own; merging that gives the same bytes.

    Args:
        path: The recipe file.
        peer_exact: Reproduce mergekit's harmless defects; `weightsmith convert-recipe --help` lists them.

    Raises:
        RecipeError: It is not a recipe of mergekit, but one of ours for instance, cannot be run, or has several documents.

    The same on the command line: weightsmith convert-recipe mergekit.yml
    """
    if not is_dialect(path):
        if has_key(path, "method"):
            told = f"recipe {shown(path)} is one of ours already, so there is nothing to convert"
            raise RecipeError(told, do=f"Run it with: weightsmith merge {shlex.quote(shown(path))} OUT")
        raise RecipeError(f"recipe {shown(path)}", expected="mergekit's key 'merge_method'", got="none")
    found = Gathered()
    steps = read_steps(path, found)
    translated = [step.translate(peer_exact=peer_exact, found=found) for step in steps]
    if len(steps) > 1:
        several = RecipeError(
            f"recipe {shown(path)}",
            expected="one document, since a recipe of our own holds one merge",
            got=f"{len(steps)}",
            do="Merge the file as it is, or put each document into a file",
        )
        found.add_errors([several], f"recipe {shown(path)}")
    found.raise_any()
    (made,) = translated
    return "".join(f"# {shown(note)}\n" for note in made.notes) + write_recipe(made.recipe)
