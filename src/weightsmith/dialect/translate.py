"""One mergekit recipe to our own: methods by table, parameters level by level, precision from dtypes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.dialect.document import Document, Input, Part
from weightsmith.dialect.idle import without_idle
from weightsmith.dialect.methods import COLUMN, PEER_METHODS, ROW_WISE, Argument, PeerMethod
from weightsmith.dialect.setting import Level, in_force, setting_of
from weightsmith.dialect.tree import Notes
from weightsmith.errors import Gathered, RecipeError, WeightsmithError, nearest, shown
from weightsmith.recipe import Origin, Recipe, Setting, Slice, Source
from weightsmith.recipe.schedule import Schedule
from weightsmith.strict_yaml import Faults

_ROUNDED = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Translation:
    """A recipe of our own, and what its reader should know."""

    recipe: Recipe
    notes: tuple[str, ...]


def translate(
    document: Document,
    where: str = "recipe",
    *,
    places: Mapping[str, str] | None = None,
    peer_exact: bool = False,
    follow_symlinks: bool = False,
    found: Gathered | None = None,
) -> Translation:
    """Return our recipe for a document of mergekit's dialect.

    Headers of the models are read where the recipe leaves the precision to them.

    Args:
        document: What was written.
        where: What it is, for messages.
        places: Folders of the results of other documents, by name.
        peer_exact: Reproduce the peer's harmless defects; `weightsmith convert-recipe --help` lists them.
        follow_symlinks: Let links of a model's folder lead outside it.
        found: Receives the faults instead of their being raised; what is sound is then returned, to be looked at further.

    Raises:
        RecipeError: The recipe cannot be run; all faults together.
    """
    faults: Faults = []
    notes: Notes = []
    method = PEER_METHODS.get(document.method)
    if method is None:
        told = f"unknown merge_method '{shown(document.method)}'; {nearest(document.method, PEER_METHODS)}"
        faults.append((document.method_line, told))
        recipe = Recipe("", document.references)
    else:
        _tell_unused(document, method, notes)
        recipe = _recipe(document, method, peer_exact, faults, notes)
    gathered = found or Gathered()
    gathered.add((f"line {line}: {fault}" for line, fault in sorted(set(faults))), RecipeError, shown(where))
    if faults or not document.is_sound:
        gathered.doubtful |= {"method", "base", "models", "slices", "parameters"}
    if found is None:
        gathered.raise_any()
    if not document.is_sound:
        recipe = Recipe(recipe.method, document.references, parameters=recipe.parameters)
    recipe = _placed(replace(recipe, origin=Origin("recipe", _lines(document, method))), places or {})
    if method is None:
        return Translation(recipe, tuple(notes))
    opened = _opened(recipe, follow_symlinks)
    recipe = without_idle(recipe, opened, notes) if opened else recipe
    opened = opened if len(opened) == len(recipe.references) else []
    if peer_exact and method.widens and document.out_dtype is None:
        recipe = replace(recipe, dtype="F32")
    if document.dtype is None:
        recipe = _with_precision(recipe, opened, notes)
    precision = recipe.compute_dtype or "float32"
    scope = "" if recipe.method == document.method else f" as {recipe.method}"
    read = f"read as mergekit's dialect: {document.method}{scope} with mergekit's formulas, tensor by tensor, in {precision}"
    return Translation(recipe, tuple(dict.fromkeys([read, *notes])))


def _lines(document: Document, method: PeerMethod | None) -> dict[tuple[str, str], int]:
    """Return where models, slices and shared parameters stand; see `Origin`."""
    lines = {("slice", f"{i}"): part.line for i, part in enumerate(document.parts, 1)}
    for part in document.parts:
        for given in part.inputs:
            lines.setdefault(("model", given.model), given.line)
    for place, part in enumerate(document.parts, 1):
        where = "parameters" if document.whole else f"slice {place}: parameters"
        for name, argument in (method.shared if method else {}).items():
            entries = in_force([part.parameters, *document.levels], name)
            if entries and argument.ours:
                lines[where, argument.ours] = entries[0].line
    return lines


def _recipe(document: Document, method: PeerMethod, peer_exact: bool, faults: Faults, notes: Notes) -> Recipe:
    fixed = {**method.fixed, **(method.exact if peer_exact else {})}
    notes += [] if peer_exact else method.notes
    has_base = method.base == "optional" and any(part.base or document.base for part in document.parts)
    recipe = Recipe(
        method.with_base if has_base else method.ours,
        base=document.base if method.base in ("needed", "optional") else None,
        dtype=document.out_dtype or document.dtype,
        compute_dtype=_ROUNDED.get(document.dtype or ""),
        vocabulary=document.vocabulary,
        chat_template=document.chat_template,
    )
    if recipe.vocabulary is not None and recipe.vocabulary.source == "base" and recipe.base is None:
        if document.base is None and document.is_sound:
            faults.append((document.line, "the tokenizer of the base is asked for, and key 'base_model' is missing"))
        recipe = replace(recipe, vocabulary=replace(recipe.vocabulary, source=document.base or "base"))
    lender = document.parts[0].inputs[0].model if document.parts[0].inputs else None
    if method.base == "model" and document.base not in (None, lender):
        notes.append(
            f"files beside the weights come from the first model, '{shown(lender)}'; mergekit takes base_model's"
        )
    if document.dtype == "F64":
        notes.append("dtype float64: computed in float64 only where an input is stored so, else in float32")
    build = _whole if document.whole else _sliced
    recipe = build(replace(recipe, parameters=fixed), document, method, faults, notes)
    return _by_columns(recipe, document.line, faults)


def _whole(recipe: Recipe, document: Document, method: PeerMethod, faults: Faults, notes: Notes) -> Recipe:
    """Return the recipe with whole models."""
    part = _with_base(document, method, faults)
    shared, settings = _settings(document, method, part, faults, notes)
    given = tuple(s for i, s in zip(part.inputs, settings, strict=True) if not _is_base(i, part, method))
    models = tuple(i.model for i in part.inputs if not _is_base(i, part, method))
    if not models and part.base and method.base == "needed" and method.least == 1 and method.most is None:
        notes.append("the base is the only model: copied")
        vocabulary = recipe.vocabulary
        if vocabulary is not None and vocabulary.source == "base":
            vocabulary = replace(vocabulary, source=part.base)
        return replace(
            recipe, method="passthrough", models=(part.base,), base=None, parameters={}, vocabulary=vocabulary
        )
    if document.is_sound:
        _count(method, len(models), part.line, faults)
    parameters = {**recipe.parameters, **shared}
    return replace(recipe, models=models, settings=given if any(given) else (), parameters=parameters)


def _sliced(recipe: Recipe, document: Document, method: PeerMethod, faults: Faults, notes: Notes) -> Recipe:
    """Return the recipe with slices."""
    slices, shares = [], []
    for part in document.parts:
        part = _with_base(document, method, faults, part)
        shared, settings = _settings(document, method, part, faults, notes)
        sources = [
            Source(i.model, i.layers or (0, 0), {} if _is_base(i, part, method) else s)
            for i, s in zip(part.inputs, settings, strict=True)
        ]
        beside = sum(not _is_base(i, part, method) for i in part.inputs)
        if document.is_sound and (
            beside or method.most is not None or method.least > 1
        ):  # else the base alone, which is copied
            _count(method, beside, part.line, faults)
        slices.append(Slice(tuple(sources), part.base if method.base in ("needed", "optional") else None))
        shares.append(shared)
    common = {n: v for n, v in shares[0].items() if not isinstance(v, Schedule) and all(s.get(n) == v for s in shares)}
    rests = [{n: v for n, v in s.items() if n not in common} for s in shares]
    placed = [
        replace(part, parameters=rest, base=None if part.base == recipe.base else part.base)
        for part, rest in zip(slices, rests, strict=True)
    ]
    if recipe.base is None and any(part.base for part in slices):
        recipe = replace(recipe, base=slices[0].base)
    return replace(recipe, slices=tuple(placed), parameters={**recipe.parameters, **common})


def _by_columns(recipe: Recipe, line: int, faults: Faults) -> Recipe:
    """Return the recipe with the method that goes along columns, where they are asked for."""
    if any(part.parameters.get("scope") == COLUMN for part in recipe.slices):
        faults.append((line, "nuslerp_flatten and nuslerp_row_wise: expected the same in all slices"))
    if recipe.parameters.get("scope") != COLUMN:
        return recipe
    others = {name: setting for name, setting in recipe.parameters.items() if name != "scope"}
    return replace(recipe, method=recipe.method.replace("nuslerp", "nuslerp_columns"), parameters=others)


def _with_base(document: Document, method: PeerMethod, faults: Faults, part: Part | None = None) -> Part:
    """Return a part with its base settled, and, as mergekit has it, the base appended to whole models where it is not listed."""
    whole = part is None
    part = part or document.parts[0]
    base = part.base or document.base
    listed = [i.model for i in part.inputs]
    twice = sorted({m for m in listed if listed.count(m) > 1})
    faults += [(part.line, f"model '{shown(m)}' is given twice") for m in twice]
    if base is None:
        if method.base in ("needed", "first") and document.is_sound:
            faults.append((document.method_line, f"{document.method}: key 'base_model' is missing"))
        return part
    inputs = part.inputs
    if base not in listed and whole:
        inputs = (*inputs, Input(base, part.line, {}))
    elif base not in listed and method.base in ("needed", "first") and document.is_sound:
        faults.append((part.line, f"the base '{shown(base)}' is not among the sources of this slice"))
    if method.base == "first":
        inputs = tuple(sorted(inputs, key=lambda i: i.model != base))
    return replace(part, inputs=inputs, base=base)


def _is_base(given: Input, part: Part, method: PeerMethod) -> bool:
    return method.base in ("needed", "optional") and given.model == part.base


def _count(method: PeerMethod, models: int, line: int, faults: Faults) -> None:
    if models >= method.least and (method.most is None or models <= method.most):
        return
    wanted = str(method.least)
    if method.most != method.least:
        wanted += " or more" if method.most is None else f" to {method.most}"
    beside = {"first": ", the base included", "model": ""}.get(method.base, " beside the base")
    faults.append((line, f"expected {wanted} models{beside}, got {models}"))


def _settings(
    document: Document, method: PeerMethod, part: Part, faults: Faults, notes: Notes
) -> tuple[dict[str, Setting], list[dict[str, Setting]]]:
    """Return the shared parameters of a part, and the per-model ones of each of its inputs."""
    levels = [part.parameters, *document.levels]
    resolve = partial(_resolve, is_sound=document.is_sound, faults=faults, notes=notes)
    shared = resolve(method.shared, levels, document.method, part.line)
    row_wise = shared.pop(ROW_WISE, False)
    if isinstance(row_wise, Schedule):
        faults.append((part.line, f"{document.method}: nuslerp_row_wise: expected one value for all tensors"))
    elif row_wise and shared.get("scope") == "row":
        shared["scope"] = COLUMN
    settings: list[dict[str, Setting]] = []
    for given in part.inputs:
        if _is_base(given, part, method):
            settings.append({})
            continue
        what = f"{document.method}: model '{shown(given.model)}'"
        settings.append(resolve(method.per_model, [given.parameters, *levels], what, given.line))
    if method.base == "model" and method.most == 1:  # of one model, its own parameters are the method's
        return shared | settings[0], [{} for _ in settings]
    return shared, settings


def _resolve(
    arguments: Mapping[str, Argument],
    levels: Sequence[Level],
    what: str,
    line: int,
    *,
    is_sound: bool,
    faults: Faults,
    notes: Notes,
) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for name, argument in arguments.items():
        entries = in_force(levels, name)
        setting = setting_of(entries, argument.kind, argument.default, f"{what}: {name}", faults, notes)
        if setting is None and argument.needed and not entries and is_sound:
            faults.append((line, f"{what}: parameter '{name}' is missing"))
        if isinstance(setting, Schedule) and argument.words:
            faults.append((entries[0].line, f"{what}: {name}: expected one value for all tensors"))
        elif argument.words and isinstance(setting, bool) and argument.ours is not None:
            found[argument.ours] = argument.words[setting]
        elif setting is not None and argument.ours is not None:
            found[argument.ours] = setting
    return found


def _tell_unused(document: Document, method: PeerMethod, notes: Notes) -> None:
    """Tell parameters that have no effect where they stand."""
    both = [*method.shared, *method.per_model]

    def tell(level: Level, known: Sequence[str], where: str) -> None:
        for name, entries in level.items():
            line = entries[0].line if entries else document.line
            if name in known:
                continue
            hint = (
                "it is shared by all models and belongs under 'parameters'"
                if name in method.shared
                else nearest(name, known)
            )
            no_effect = f"line {line}: parameter '{shown(name)}' has no effect{where}, nor in mergekit"
            notes.append(no_effect + (f"; {hint}" if known else f"; {document.method} takes none"))

    for part in document.parts:
        for given in part.inputs:
            tell(given.parameters, list(method.per_model), f" beside model '{shown(given.model)}'")
        tell(part.parameters, both, f" on {document.method}")
    for level in document.levels:
        tell(level, both, f" on {document.method}")


def _placed(recipe: Recipe, places: Mapping[str, str]) -> Recipe:
    """Return the recipe with the names of other documents replaced by the folders of their results."""
    if not places:
        return recipe

    def place(reference: str) -> str:
        name = reference.partition("+")[0].partition("@")[0]
        return places[name] + reference.removeprefix(name) if name in places else reference

    vocabulary = recipe.vocabulary
    if vocabulary is not None:
        tokens = {t: replace(r, source=place(r.source)) for t, r in vocabulary.tokens.items()}
        vocabulary = replace(vocabulary, source=place(vocabulary.source), tokens=tokens)
    slices = tuple(
        replace(
            part,
            base=None if part.base is None else place(part.base),
            sources=tuple(replace(source, model=place(source.model)) for source in part.sources),
        )
        for part in recipe.slices
    )
    return replace(
        recipe,
        models=tuple(map(place, recipe.models)),
        base=None if recipe.base is None else place(recipe.base),
        slices=slices,
        vocabulary=vocabulary,
    )


def _opened(recipe: Recipe, follow_symlinks: bool) -> list[Checkpoint]:
    """Return the inputs without those that cannot be opened, which the plan will tell."""
    opened = []
    for reference in recipe.references:
        with contextlib.suppress(WeightsmithError):
            opened.append(open_checkpoint(reference, follow_symlinks=follow_symlinks))
    return opened


def _with_precision(recipe: Recipe, inputs: Sequence[Checkpoint], notes: Notes) -> Recipe:
    """Return the recipe with the precision that mergekit would have computed in, and the dtype it would have written."""
    if not inputs:
        notes.append("no dtype is given and the models cannot be opened: computed in float32, not in their own dtype")
        return recipe
    promoted = _promoted(inputs)
    if len(promoted) > 1:
        notes.append(
            "no dtype is given and the models' tensors are of several: computed in float32, not each in its own"
        )
        return recipe
    (common,) = promoted or {"F32"}
    return replace(recipe, compute_dtype=_ROUNDED.get(common), dtype=recipe.dtype or common)


def _promoted(inputs: Sequence[Checkpoint]) -> set[str]:
    """Return the dtypes that arithmetic on each tensor of all inputs comes out in, as torch promotes them."""
    found = set()
    for name, entry in inputs[0].tensors.items():
        dtypes = {c.tensors[name].dtype for c in inputs if name in c.tensors} & set(ARITHMETIC_DTYPES)
        if entry.dtype in ARITHMETIC_DTYPES and dtypes:
            found.add(next(iter(dtypes)) if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32")
    return found
