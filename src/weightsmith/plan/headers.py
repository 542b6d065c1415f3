"""What a plan starts from: the inputs opened, the parts of the output, their parameters; and what is wrong with any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.errors import ArgumentError, Gathered, WeightsmithError, nearest, shown
from weightsmith.merge import METHODS
from weightsmith.method import Method
from weightsmith.plan.settings import Resolver, parameter_faults, resolver
from weightsmith.plan.slicing import Part, find_parts
from weightsmith.recipe import Recipe

_STRUCTURE = frozenset({"method", "base", "models", "slices"})


@dataclass(frozen=True)
class Headers:
    """What was read before tensors are looked at.

    Attributes:
        inputs: The checkpoints of `recipe.references`; None for one that could not be opened.
        parts: The parts of the output; without those that have faults.
        resolvers: The parameters of each; None where they have faults.
        is_whole: Whether `parts` are all that the recipe asks for.
    """

    inputs: tuple[Checkpoint | None, ...]
    parts: list[Part]
    resolvers: list[Resolver | None]
    is_whole: bool


def find_method(name: str) -> Method:
    """Return the merge method of that name; ArgumentError with the nearest names otherwise."""
    for method in METHODS:
        if method.name == name:
            return method
    raise ArgumentError(f"unknown method '{shown(name)}'", do=nearest(name, [m.name for m in METHODS]))


def read_headers(recipe: Recipe, method: Method | None, follow_symlinks: bool, found: Gathered) -> Headers:
    """Open the inputs and check slices and parameters; everything that is wrong with them goes into `found`.

    Args:
        recipe: What was asked.
        method: Its method; None where that is not known, and inputs are only opened.
        follow_symlinks: Let links of a model's folder lead outside it.
        found: Receives the faults; of keys in its `doubtful` nothing is said to be missing.
    """
    errors: list[WeightsmithError] = []
    opened: list[Checkpoint | None] = []
    for reference in recipe.references:
        try:
            opened.append(open_checkpoint(reference, follow_symlinks=follow_symlinks))
        except WeightsmithError as error:
            opened.append(None)
            errors.append(_at(recipe.origin.at(("model", reference)), error))
    if method is None:
        found.add_errors(errors, "the inputs cannot be used")
        return Headers(tuple(opened), [], [], False)
    wrong = _base_fault(recipe, method, found)
    errors += [wrong] if wrong else []
    doubtful = found.doubtful if method.has_base else found.doubtful - {"base"}
    is_clear = wrong is None and not doubtful & _STRUCTURE
    parts, faults = find_parts(recipe, method, opened) if _is_laid_out(recipe, method, doubtful) else ([], [])
    for place, fault in faults:
        errors.append(ArgumentError(recipe.origin.at(("slice", f"{place}")) + fault))
    faulty = parameter_faults(recipe, method)
    errors += [error for _, error in faulty]
    unsound = {label for label, _ in faulty}
    resolvers: list[Resolver | None] = []
    for part in parts:
        where = f"{part.label}: " if part.label else ""
        made = None
        try:
            _check_distinct([c for c in (opened[i] for i in part.inputs) if c], method)
            if part.label and len(part.inputs) <= method.has_base:
                made = Resolver(method, {}, {}, {}, part.count)  # the base alone, which is copied
            elif is_clear and not {"", part.label} & unsound and "parameters" not in doubtful:
                made = resolver(recipe, method, part)
        except WeightsmithError as error:
            line = recipe.origin.at(("slice", part.label.removeprefix("slice ")))
            errors.append(_at(line + where, error))
        resolvers.append(made)
    sound = [r for r in resolvers if r is not None]
    if not errors and not doubtful and len(parts) > 1:
        errors += _scope_errors(recipe, method, parts, sound)
    found.add_errors(errors, f"merge {method.name}: the inputs cannot be used")
    is_whole = is_clear and not faults and bool(opened) and all(opened)
    return Headers(tuple(opened), parts, resolvers, is_whole)


def _at(where: str, error: WeightsmithError) -> WeightsmithError:
    return type(error)(f"{where}{error}") if where else error


def _base_fault(recipe: Recipe, method: Method, found: Gathered) -> ArgumentError | None:
    if method.has_base and recipe.base is None and not recipe.slices and not {"base", "slices"} & found.doubtful:
        return ArgumentError(
            f"merge {method.name}: the base is missing",
            do=f"Give {recipe.origin.given('base', 'MODEL')}, the model all others were trained from",
        )
    if not method.has_base and recipe.base is not None:
        return ArgumentError(
            f"{recipe.origin.at(('model', recipe.base))}merge {method.name} takes no base",
            do="Leave it out, or list it as a model if it is to be merged",
        )
    return None


def _is_laid_out(recipe: Recipe, method: Method, doubtful: set[str]) -> bool:
    """Tell whether it is known which input is which: whole models need the base where the method has one, slices everything."""
    if recipe.slices or "slices" in doubtful:
        return not doubtful & _STRUCTURE
    return method.has_base == (recipe.base is not None)


def _check_distinct(opened: Sequence[Checkpoint], method: Method) -> None:
    """Refuse two references to the same files among the inputs of one tensor."""
    seen: dict[tuple[str, ...], str] = {}
    for checkpoint in opened:
        files = tuple(map(os.path.realpath, checkpoint.files))
        if files in seen:
            raise ArgumentError(
                f"merge {method.name}: '{shown(checkpoint.reference)}' and '{shown(seen[files])}' are the same files",
                do="Name each model once, and the base only as the base",
            )
        seen[files] = checkpoint.reference


def _scope_errors(
    recipe: Recipe, method: Method, parts: Sequence[Part], resolvers: Sequence[Resolver]
) -> list[ArgumentError]:
    """Return why slices cannot share a reduction over the whole model."""
    scoped = [r.example for p, r in zip(parts, resolvers, strict=True) if len(p.inputs) > method.has_base]
    asked = [tuple((n, f.get(n)) for n in sorted({*method.prepared_by, "scope"})) for f in scoped]
    is_whole = any(method.reduction_scope(f) == "model" for f in scoped)
    if is_whole and (len(set(asked)) > 1 or len({p.inputs for p in parts}) > 1):
        return [
            ArgumentError(
                f"merge {method.name}: {recipe.origin.spelled('scope')}",
                expected="the same models and parameters in every slice, since it is the whole model",
                got="slices that differ",
                do=f"Set {recipe.origin.spelled('scope')} to tensor",
            )
        ]
    return []
