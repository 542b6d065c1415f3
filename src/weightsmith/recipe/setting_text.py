"""How recipe files write the values of parameters: plain, by pattern, or as a curve over the layers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator, Mapping, MutableMapping

import yaml

from weightsmith.errors import nearest, shown
from weightsmith.recipe import Setting, singular
from weightsmith.recipe.origin import key_of
from weightsmith.recipe.schedule import Rule, Schedule, glob_fault
from weightsmith.strict_yaml import Faults, Node, items_of, mapping, number_of, resolve, scalar, seen, text_of

_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+@-]*")


def settings_of(
    node: Node,
    what: str,
    faults: Faults,
    *,
    names: Collection[str] | None = None,
    beside: Collection[str] = (),
    skip: Collection[str] = (),
    numbers: bool = False,
    marks: MutableMapping[tuple[str, str], int] | None = None,
) -> dict[str, Setting]:
    """Return a mapping of parameters by Python name.

    Args:
        node: The mapping.
        what: What it is, for messages.
        faults: Gathers what is wrong.
        names: The valid Python names; None where they are not known.
        beside: Names that may only stand beside a model; {model: ..., coefficient: 0.5}.
        skip: Keys of the mapping that are no parameters.
        numbers: Accept numbers only.
        marks: Receives the lines of parameters and patterns, see `Origin`.
    """
    found: dict[str, Setting] = {}
    keys = None if names is None else [key_of(name) for name in names]
    lines = {item.text: item.line for item in node.items[::2]}
    for key, value in mapping(node, what, None, faults).items():
        if key in skip:
            continue
        fault = ""
        if keys is not None and key not in keys:
            fault = f"unknown key '{shown(key)}'; {nearest(key, [*keys, *skip])}"
        elif not key.isidentifier() or key != key_of(key):
            fault = f"'{shown(key)}' is not a parameter's name"
            fault += "" if key == key_of(key) else f"; write '{key_of(key)}'"
        if singular(key) in beside and (keys is None or key not in keys):
            fault = f"'{key}' stands beside each model: {{model: ..., {singular(key)}: 0.5}}"
        if fault:
            faults.append((lines[key], f"{what}: {fault}"))
        else:
            setting = _setting(value, f"{what}: {key}", faults)
            if numbers and isinstance(setting, bool | str):
                faults.append((value.line, f"{what}: {key}: expected a number, got {seen(value)}"))
            elif setting is not None:
                name = key + "_" if keyword.iskeyword(key) else key
                found[name] = setting
                if marks is not None:
                    _mark(name, what, lines[key], value, marks)
    return found


def _mark(name: str, what: str, line: int, value: Node, marks: MutableMapping[tuple[str, str], int]) -> None:
    """Note where a parameter and its patterns stand; where one stands twice, the first."""
    marks.setdefault((what, name), line)
    for entry in value.items:
        for key, item in zip(entry.items[::2], entry.items[1::2], strict=False):
            if key.text == "match":
                marks.setdefault((name, item.text), item.line)


def globs_of(
    node: Node | None, what: str, faults: Faults, marks: MutableMapping[tuple[str, str], int]
) -> tuple[str, ...]:
    """Return the patterns of a list, their lines noted in `marks`; () for no node."""
    if node is None:
        return ()
    items = items_of(node, what, "a list of patterns", faults, empty=True)
    globs = [_glob(item, f"{what}, entry {place}", faults) for place, item in enumerate(items, 1)]
    for item, glob in zip(items, globs, strict=True):
        if glob is not None:
            marks.setdefault((what, glob), item.line)
    return tuple(glob for glob in globs if glob is not None)


def _glob(node: Node, what: str, faults: Faults) -> str | None:
    glob = text_of(node, what, faults)
    fault = glob_fault(glob) if glob is not None else ""
    if fault:
        faults.append((node.line, f"{what}: '{shown(glob)}' {fault}"))
        return None
    return glob


def _setting(node: Node, what: str, faults: Faults) -> Setting | None:
    """Return a plain value, or the schedule that a list of entries means."""
    if node.kind == "scalar":
        return scalar(node, what, faults)
    expected = "a value, or a list of {match: ..., value: ...} and {match: ..., layers: [...]}"
    rules: list[Rule] = []
    for place, item in enumerate(items_of(node, what, expected, faults), 1):
        entry = f"{what}, entry {place}"
        if item.kind == "mapping":
            rule = _rule(item, entry, faults)
            rules += [rule] if rule else []
            continue
        value = scalar(item, entry, faults)
        if value is not None:
            rules.append(Rule("*", (value,)))
        if place < len(node.items):
            fault = "a plain value holds for every tensor left, so it comes last; a curve is {layers: [...]}"
            faults.append((item.line, f"{entry}: {fault}"))
    return Schedule(tuple(rules)) if rules else None


def _rule(node: Node, what: str, faults: Faults) -> Rule | None:
    """Return the rule that one {match, value} or {match, layers} entry means."""
    fields = mapping(node, what, ("match", "value", "layers"), faults)
    match = _glob(fields["match"], f"{what}: match", faults) if "match" in fields else "*"
    if ("value" in fields) == ("layers" in fields):
        faults.append((node.line, f"{what}: expected either 'value' or 'layers'"))
        return None
    if "value" in fields:
        values = [scalar(fields["value"], f"{what}: value", faults)]
    else:
        what = f"{what}: layers"
        items = items_of(fields["layers"], what, "a list of at least one number", faults)
        values = [number_of(item, what, faults) for item in items]
    given = tuple(value for value in values if value is not None)
    return Rule(match, given) if match is not None and given and len(given) == len(values) else None


def flow(value: object) -> str:
    """Return a value as one line of YAML; text is quoted wherever it could be read as anything else.

    >>> flow({"model": "a b", "layers": (0, 2), "density": Schedule((Rule("*.mlp.*", (0.5,)), Rule("*", (1,))))})
    '{model: "a b", layers: [0, 2], density: [{match: "*.mlp.*", value: 0.5}, 1]}'
    """
    if isinstance(value, Schedule):
        return "[" + ", ".join(schedule_entries(value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))
    text = str(value)
    if isinstance(value, int) or (_BARE.fullmatch(text) and resolve(text) == (text, "")):
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**30).rstrip("\n")


def schedule_entries(schedule: Schedule) -> Iterator[str]:
    """Yield each rule of a schedule as one line of YAML."""
    for place, rule in enumerate(schedule.rules, 1):
        if place == len(schedule.rules) and rule.match == "*" and len(rule.values) == 1:
            yield flow(rule.values[0])
        elif len(rule.values) == 1:
            yield flow({"match": rule.match, "value": rule.values[0]})
        else:
            yield flow({"match": rule.match, "layers": list(rule.values)})
