"""A mergekit recipe file: its documents in the order in which they can be run, each translated when its inputs are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.dialect.document import Document, read_document
from weightsmith.dialect.translate import Translation, translate
from weightsmith.dialect.tree import documents
from weightsmith.errors import Gathered, RecipeError, shown
from weightsmith.recipe.text import recipe_text
from weightsmith.strict_yaml import Faults


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

    @property
    def uses(self) -> set[str]:
        """The names that may be those of other documents."""
        return {_head(reference) for reference in self.document.references}

    def translate(
        self,
        places: Mapping[str, str] | None = None,
        *,
        peer_exact: bool = False,
        follow_symlinks: bool = False,
        found: Gathered | None = None,
    ) -> Translation:
        """Return our recipe; see `translate`."""
        given = {"peer_exact": peer_exact, "follow_symlinks": follow_symlinks}
        made = translate(self.document, self.where, places=places, found=found, **given)
        return Translation(made.recipe, (*made.notes, *self.notes))


def is_dialect(path: str | Path) -> bool:
    """Tell whether a recipe file is mergekit's: one of its documents has the key `merge_method`."""
    return has_key(path, "merge_method")


def has_key(path: str | Path, name: str) -> bool:
    """Tell whether one of the documents of a recipe file has a key."""
    roots = [root for root in documents(recipe_text(Path(path)), []) if root.kind == "mapping"]
    return any(key.kind == "scalar" and key.text == name for root in roots for key in root.items[::2])


def read_steps(path: str | Path, found: Gathered | None = None) -> tuple[Step, ...]:
    """Return the steps of a recipe file in mergekit's dialect, in an order in which they can be run, the result last.

    Args:
        path: The recipe file.
        found: Receives the faults instead of their being raised; steps that can be read are then returned, to be looked at
            further.

    Raises:
        RecipeError: The file cannot be read as recipes; all faults together.
    """
    where = f"recipe {shown(path)}"
    faults: Faults = []
    steps = []
    roots = documents(recipe_text(Path(path)), faults)
    for root in roots:
        notes: list[str] = []
        document = read_document(root, faults, notes)
        if document is not None:
            called = f", '{shown(document.name)}'" if document.name else ""
            steps.append(Step(document, where + called, tuple(notes)))
    if len(steps) < len(roots):
        steps = []  # of a document that cannot be read, what it is called is not known either
    ordered = steps if faults else _ordered(steps, faults)
    gathered = found or Gathered()
    gathered.add((f"line {line}: {fault}" for line, fault in sorted(set(faults))), RecipeError, where)
    if found is None:
        gathered.raise_any()
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
    return {_head(reference) for reference in document.references} & {name for name in names if name is not None}


def _head(reference: str) -> str:
    """Return a reference without its revision and adapters."""
    return reference.partition("+")[0].partition("@")[0]


def _finals(names: Sequence[str | None], uses: Sequence[set[int]]) -> list[int]:
    """Return which documents are the result: those without a name, else those that no other uses."""
    unnamed = [i for i, name in enumerate(names) if name is None]
    return unnamed or [i for i in range(len(names)) if not any(i in used for used in uses)]
