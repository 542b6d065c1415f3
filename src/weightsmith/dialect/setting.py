"""What mergekit lets a parameter be: a value, a gradient over the layers, a list of conditions; and our own setting for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightsmith.dialect.tree import Notes, fields_of, number, text_of, value_of
from weightsmith.errors import shown
from weightsmith.recipe import Setting
from weightsmith.recipe.schedule import Rule, Schedule, glob_fault
from weightsmith.strict_yaml import Faults, Node, Value

_WILD = re.compile(r"[*?[]")
_TRUE, _FALSE = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")


@dataclass(frozen=True)
class Entry:
    """One condition of a setting: a part of tensor names, "" for every tensor, and a value or a gradient."""

    line: int
    part: str
    values: tuple[Value, ...]


Level = Mapping[str, tuple[Entry, ...]]


def read_level(node: Node | None, what: str, faults: Faults, notes: Notes) -> Level:
    """Return the entries of every parameter of one `parameters` mapping."""
    if node is None or _is_null(node):
        return {}
    found = {}
    for name, value in fields_of(node, what, (), faults, notes).items():
        found[name] = tuple(_entries(value, f"{what}: {shown(name)}", faults, notes))
    return found


def _entries(node: Node, what: str, faults: Faults, notes: Notes) -> list[Entry]:
    if node.kind == "mapping":
        return _condition(node, what, faults, notes)
    if node.kind == "list" and any(item.kind == "mapping" for item in node.items):
        return [entry for item in node.items for entry in _condition(item, what, faults, notes)]
    values = _values(node, what, faults)
    return [Entry(node.line, "", values)] if values else []


def _condition(node: Node, what: str, faults: Faults, notes: Notes) -> list[Entry]:
    fields = fields_of(node, what, ("filter", "value"), faults, notes)
    if "value" not in fields:
        if node.kind == "mapping":
            faults.append((node.line, f"{what}: key 'value' is missing"))
        return []
    part = text_of(fields.get("filter"), f"{what}: filter", faults)
    values = _values(fields["value"], f"{what}: value", faults)
    return [Entry(node.line, "" if part in (None, "*") else str(part), values)] if values else []


def _values(node: Node, what: str, faults: Faults) -> tuple[Value, ...]:
    """Return one value, or those of a gradient; () for null or an empty list, which set nothing."""
    nodes = node.items if node.kind == "list" else [node]
    values = [value_of(item, what, faults) for item in nodes]
    if node.kind == "list" and any(_is_null(item) for item in nodes):
        faults.append((node.line, f"{what}: a gradient holds an entry without a value"))
    return tuple(value for value in values if value is not None)


def _is_null(node: Node) -> bool:
    return node.kind == "scalar" and value_of(node, "", []) is None


def in_force(levels: Sequence[Level], name: str) -> tuple[Entry, ...]:
    """Return the entries of a parameter from all levels, highest precedence first, up to one that fits every tensor."""
    found: list[Entry] = []
    for level in levels:
        for entry in level.get(name, ()):
            found.append(entry)
            if not entry.part:
                return tuple(found)
    return tuple(found)


def setting_of(
    entries: Sequence[Entry], kind: str, default: Value | None, what: str, faults: Faults, notes: Notes
) -> Setting | None:
    """Return our setting for a parameter's entries; None for no entries and no default.

    Args:
        entries: Those in force.
        kind: "number", "whole" or "flag".
        default: Holds for tensors that no entry fits; None for none.
        what: The parameter, for messages.
        faults: Receives values of the wrong kind.
        notes: Receives entries that can fit no tensor.

    >>> setting_of([Entry(1, "mlp", ("1e-1",)), Entry(2, "", (0, 1))], "number", None, "t", [], [])
    Schedule(rules=(Rule(match='*mlp*', values=(0.1,)), Rule(match='*', values=(0, 1))))
    """
    rules: list[Rule] = []
    for entry in entries:
        glob = _glob(entry.part)
        fault = glob_fault(glob)
        values = [_as_kind(value, kind, f"{what}, line {entry.line}", entry.line, faults) for value in entry.values]
        given = tuple(value for value in values if value is not None)
        if len(set(given)) == 1:
            given = given[:1]
        if fault:
            notes.append(
                f"line {entry.line}: {what}: filter '{shown(entry.part)}' {fault}; it fits no tensor, nor in mergekit"
            )
        elif len(given) > 1 and kind != "number":
            told = f"{what}: a gradient is for numbers; write conditions with 'filter' for single layers"
            faults.append((entry.line, told))
        elif given and len(values) >= len(given):
            rules.append(Rule(glob, given))
    if default is not None and not (rules and rules[-1].match == "*"):
        rules.append(Rule("*", (default,)))
    if not rules:
        return None
    only = {rule.values for rule in rules}
    if rules[-1].match == "*" and len(only) == 1 and len(rules[-1].values) == 1:
        return rules[-1].values[0]
    return Schedule(tuple(rules))


def _as_kind(value: Value, kind: str, what: str, line: int, faults: Faults) -> Value | None:
    found: Value | None
    if kind == "flag":
        word = str(value).lower()
        found = True if word in _TRUE else False if word in _FALSE else None
    else:
        found = number(value)
        if kind == "whole" and isinstance(found, float):
            found = int(found) if found.is_integer() else None
    if found is None:
        wanted = {"flag": "true or false", "whole": "a whole number", "number": "a finite number"}[kind]
        faults.append((line, f"{what.partition(', line')[0]}: expected {wanted}, got '{shown(value)}'"))
    return found


def _glob(part: str) -> str:
    """Return the glob of names that contain a text."""
    return "*" + _WILD.sub(r"[\g<0>]", part) + "*" if part else "*"
