"""A method's parameters as they hold for one tensor: shared ones, and those that each model gives a part of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.arguments import Real, Reals, YesNo
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.method import Method
from weightsmith.plan.slicing import Part
from weightsmith.recipe import Origin, Recipe, Setting, Settings, plural, singular
from weightsmith.recipe.schedule import Schedule


def per_model(method: Method) -> list[str]:
    """Return the names of the parameters that have one number per model."""
    return [name for name, parameter in method.parameters.items() if isinstance(parameter.kind, Reals)]


def split_settings(
    method: Method, given: Mapping[str, Any], models: int, spelled: Callable[[str], str] = str
) -> tuple[dict[str, Setting], ...]:
    """Return, model by model, what per-model parameters among `given` say; () where none is given.

    `spelled` is what messages call a parameter.

    Raises:
        ArgumentError: One is no sequence of numbers, has another length than there are models, or is not the method's.
    """
    caller = f"merge {method.name}"
    found: list[dict[str, Setting]] = [{} for _ in range(models)]
    if "coefficients" in given and "coefficients" not in method.parameters:
        raise ArgumentError(f"{caller} takes no coefficients", do=f"Leave out {spelled('coefficients')}")
    for name in per_model(method):
        values = method.parameters[name].check(given[name], caller, spelled) if name in given else None
        if values is not None and len(values) != models:
            raise ArgumentError(f"{caller}: {spelled(name)}", expected=f"{models}, one per model", got=str(len(values)))
        for settings, value in zip(found, values or (), strict=False):
            settings[singular(name)] = value
    return tuple(found) if any(found) else ()


def known_parameters(methods: Sequence[Method]) -> dict[str, dict[str, bool]]:
    """Return each method's parameters, and which of them are given per model, for `recipe.text`."""
    return {m.name: {name: name in per_model(m) for name in m.parameters} for m in methods}


def parameter_faults(recipe: Recipe, method: Method) -> list[tuple[str, ArgumentError]]:
    """Return what is wrong with each parameter by itself, with the label of its slice; "" for what all slices share."""
    spelled = recipe.origin.spelled
    found: list[tuple[str, ArgumentError]] = []
    valid = [spelled(name) for name in method.parameters]
    for place, given in enumerate([recipe.parameters, *(part.parameters for part in recipe.slices)]):
        label = f"slice {place}" if place else ""
        where = label and f"{label}: "
        for name, setting in given.items():
            values = [v for rule in setting.rules for v in rule.values] if isinstance(setting, Schedule) else [setting]
            caller = f"{recipe.origin.at((f'{where}parameters', name))}{where}merge {method.name}"
            if name not in method.parameters:
                told = f"{caller}: unknown parameter '{shown(spelled(name))}'"
                found.append((label, ArgumentError(told, do=nearest(spelled(name), valid))))
                continue
            kind = method.parameters[name].kind
            if isinstance(setting, Schedule) and not isinstance(kind, Real | YesNo):
                told = f"{caller}: {spelled(name)}"
                found.append((label, ArgumentError(told, expected="one value for all tensors", got="a schedule")))
                continue
            try:
                for value in values:
                    method.parameters[name].check(value, caller, spelled)
            except ArgumentError as error:
                found.append((label, error))
    return found


def schedules(recipe: Recipe) -> Iterator[tuple[str, Schedule]]:
    """Yield every schedule of a recipe with the name it stands under."""
    sources = [source.settings for part in recipe.slices for source in part.sources]
    for given in (recipe.parameters, *recipe.settings, *(part.parameters for part in recipe.slices), *sources):
        yield from ((name, setting) for name, setting in given.items() if isinstance(setting, Schedule))


@dataclass(frozen=True)
class Resolver:
    """The parameters of one part, schedules kept, the rest checked.

    Attributes:
        method: The method.
        fixed: Parameters that are the same for every tensor, checked.
        shared: Schedules by parameter.
        parts: Per-model parameters that hold a schedule: one setting per model.
        layers: Number of layers that a curve spans.
        origin: Where they come from.
        example: All parameters, schedules by their first value.
    """

    method: Method
    fixed: Mapping[str, Any]
    shared: Mapping[str, Schedule]
    parts: Mapping[str, tuple[Setting | None, ...]]
    layers: int
    origin: Origin = field(default_factory=Origin)
    example: Mapping[str, Any] = field(default_factory=dict)

    def schedules(self) -> list[tuple[str, Schedule]]:
        """Return every schedule with the name it stands under."""
        given = [(singular(n), s) for n, values in self.parts.items() for s in values if isinstance(s, Schedule)]
        return [*self.shared.items(), *given]

    def resolve(self, name: str, own_names: Sequence[str], place: int | None) -> dict[str, Any]:
        """Return the parameters of one tensor.

        Args:
            name: Its name in the output, by which shared schedules go.
            own_names: Its name in each model, by which the model's own schedules go.
            place: Its layer, counted within the part; None outside the layers.

        Raises:
            ArgumentError: A schedule has no value for it, or one out of bounds.
        """
        found = dict(self.fixed)
        if not self.shared and not self.parts:
            return found
        caller, spelled = f"merge {self.method.name}", self.origin.spelled
        for key, schedule in self.shared.items():
            found[key] = self.method.parameters[key].check(schedule.value(name, place, self.layers), caller, spelled)
        for key, parts in self.parts.items():
            default = _default(self.method, key, found) if None in parts else None
            values = [
                part.value(own, place, self.layers) if isinstance(part, Schedule) else default if part is None else part
                for part, own in zip(parts, own_names, strict=True)
            ]
            found[key] = self.method.parameters[key].check(values, caller, spelled)
        return found


def resolver(recipe: Recipe, method: Method, part: Part) -> Resolver:
    """Check a part's parameters together, each being sound by itself, and return what resolves them tensor by tensor.

    Raises:
        ArgumentError: A parameter does not fit the method.
    """
    given: dict[str, Any] = dict(part.parameters)
    if "seed" in method.parameters:
        given.setdefault("seed", recipe.seed)
    models = [recipe.references[i] for i in part.inputs[method.has_base :]]
    shared = {n: v for n, v in given.items() if isinstance(v, Schedule)}
    plain = {n: v for n, v in given.items() if n not in shared}
    parts = _parts(method, part.settings, models, recipe.origin)
    first = {**plain, **{n: _first(s) for n, s in shared.items()}}
    examples = {n: tuple(_first(p) for p in values) for n, values in parts.items()}
    for name, values in examples.items():
        defaults = [_default(method, name, first, models[t]) if v is None else v for t, v in enumerate(values)]
        examples[name] = tuple(defaults)
    checked = method.check({**first, **examples}, len(models), recipe.origin.spelled)
    varying = {n: p for n, p in parts.items() if any(isinstance(s, Schedule) for s in p) or singular(n) in shared}
    for name in [*shared, *varying]:
        if name in method.prepared_by:
            _check_scope(method, name, checked, recipe.origin)
    fixed = {n: v for n, v in checked.items() if n not in shared and n not in varying}
    return Resolver(method, fixed, shared, varying, part.count, recipe.origin, checked)


def _check_scope(method: Method, name: str, checked: Mapping[str, Any], origin: Origin) -> None:
    """Refuse a schedule of what a reduction over the whole model depends on, or of whether there is one."""
    what = f"merge {method.name}: {origin.spelled(name)}"
    if isinstance(method.parameters[name].kind, YesNo):
        raise ArgumentError(what, expected="one value for all tensors", got="a schedule")
    if method.reduction_scope(checked) == "model":
        raise ArgumentError(
            what,
            expected="one value, since its scope is the whole model",
            got="a schedule",
            do=f"Set {origin.spelled('scope')} to tensor, or give one value",
        )


def _parts(
    method: Method, settings: Sequence[Settings], models: Sequence[str], origin: Origin
) -> dict[str, tuple[Setting | None, ...]]:
    """Return the per-model parameters by the method's name, None where a model gives no part."""
    names = per_model(method)
    for model, given in zip(models, settings, strict=False):  # a wrong number of models is told by method.check
        for key in given:
            if plural(key) not in names:
                line = origin.at(("model", model))
                raise ArgumentError(
                    f"{line}merge {method.name}: model '{shown(model)}' has '{shown(key)}', which {method.name} does not take",
                    do=nearest(key, [singular(n) for n in names]) if names else "Leave it out of the recipe",
                )
    return {
        name: tuple(given.get(singular(name)) for given in settings)
        for name in names
        if any(singular(name) in given for given in settings)
    }


def _default(method: Method, name: str, shared: Mapping[str, Any], model: str = "") -> Any:
    """Return a model's part of a per-model parameter where it gives none: what all models share, or what is usual."""
    one = singular(name)
    if one in method.parameters:
        return shared.get(one, method.parameters[one].default)
    default = method.parameters[name].default
    if default is None and name == "coefficients":
        return 1.0
    if isinstance(default, int | float):
        return default
    raise ArgumentError(
        f"merge {method.name}: model '{shown(model)}' has no {one}, and others have one",
        do=f"Give each model its {one}",
    )


def _first(setting: Setting | None) -> Any:
    return setting.rules[0].values[0] if isinstance(setting, Schedule) else setting
