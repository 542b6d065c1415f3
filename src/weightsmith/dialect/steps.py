"""A mergekit recipe file: its documents in the order in which they can be run, each translated when its inputs are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.dialect.document import Document, read_document
from weightsmith.dialect.translate import Translation, translate
from weightsmith.dialect.tree import documents
from weightsmith.errors import RecipeError, raise_all, shown
from weightsmith.recipe.text import recipe_text
from weightsmith.strict_yaml import Faults, Node


@dataclass(frozen=True)
class Step:
    """One document of a file.

    Attributes:
        document: What it says.
        where: What it is, for messages.
        notes: What in it has no effect.
    """

    document: Document
    where: str
    notes: tuple[str, ...]

    def translate(
        self, places: Mapping[str, str] | None = None, *, peer_exact: bool = False, follow_symlinks: bool = False
    ) -> Translation:
        """Return our recipe; see `translate`."""
        made = translate(
            self.document, self.where, places=places, peer_exact=peer_exact, follow_symlinks=follow_symlinks
        )
        return Translation(made.recipe, (*made.notes, *self.notes))


def is_dialect(path: str | Path) -> bool:
    """Tell whether a recipe file is mergekit's: one of its documents has the key `merge_method`."""
    text = recipe_text(Path(path))
    return any(_has_method(root) for root in documents(text, []))


def _has_method(root: Node) -> bool:
    return root.kind == "mapping" and any(
        key.kind == "scalar" and key.text == "merge_method" for key in root.items[::2]
    )


def read_steps(path: str | Path) -> tuple[Step, ...]:
    """Return the steps of a recipe file in mergekit's dialect, in an order in which they can be run, the result last.

    Raises:
        RecipeError: The file cannot be read as recipes; all faults together.
    """
    where = f"recipe {shown(path)}"
    faults: Faults = []
    steps = []
    for root in documents(recipe_text(Path(path)), faults):
        notes: list[str] = []
        document = read_document(root, faults, notes)
        if document is not None:
            called = f", '{shown(document.name)}'" if document.name else ""
            steps.append(Step(document, where + called, tuple(notes)))
    ordered = _ordered(steps, faults) if not faults else ()
    if faults or not ordered:
        raise_all([f"line {line}: {fault}" for line, fault in sorted(set(faults))], RecipeError, where)
    return tuple(ordered)


def _ordered(steps: Sequence[Step], faults: Faults) -> list[Step]:
    """Return the steps so that each comes after those whose results it uses."""
    names = [step.document.name for step in steps]
    for step, name in zip(steps, names, strict=True):
        if name is not None and (names.count(name) > 1 or Path(name).name != name or name.startswith(".")):
            faults.append(
                (step.document.line, f"name '{shown(name)}': expected a name of its own that can be a folder's")
            )
    uses = [{names.index(n) for n in _named(step.document, names)} for step in steps]
    ordered: list[int] = []

    def visit(i: int, above: tuple[int, ...]) -> None:
        if i in above:
            circle = " -> ".join(f"'{shown(names[j])}'" for j in (*above[above.index(i) :], i))
            faults.append((steps[i].document.line, f"documents use each other in a circle: {circle}"))
        elif i not in ordered:
            for j in sorted(uses[i]):
                visit(j, (*above, i))
            ordered.append(i)

    finals = _finals(names, uses)
    for i in sorted(range(len(steps)), key=finals.__contains__):
        visit(i, ())
    if len(finals) != 1 and not faults:
        listed = " and ".join(f"'{shown(names[i])}'" if names[i] else f"line {steps[i].document.line}" for i in finals)
        told = f"expected one document without a name, which gives the result; got {listed or 'none'}"
        faults.append((steps[finals[-1]].document.line if finals else 1, told))
    return [steps[i] for i in ordered]


def _named(document: Document, names: Sequence[str | None]) -> set[str]:
    """Return the names of documents that one uses."""
    heads = {reference.partition("+")[0].partition("@")[0] for reference in document.references}
    return heads & {name for name in names if name is not None}


def _finals(names: Sequence[str | None], uses: Sequence[set[int]]) -> list[int]:
    """Return which documents are the result: those without a name, else those that no other uses."""
    unnamed = [i for i, name in enumerate(names) if name is None]
    return unnamed or [i for i in range(len(names)) if not any(i in used for used in uses)]
