"""mergekit's YAML, read within bounds: documents, lenient values, and keys nobody reads told as notes.

YAML 1.1 as PyYAML reads it (`yes`, `010`, `1_000`, merge keys), since recipes are written for it; tags are refused.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection
from typing import Any

import yaml

from weightsmith.errors import nearest, shown
from weightsmith.strict_yaml import MAX_DEPTH, MAX_NUMBER, Faults, Node, Value, parse_tree, seen

Notes = list[str]

_OPENING = (
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
)
_CLOSING = (yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken, yaml.BlockEndToken)


def documents(text: str, faults: Faults) -> list[Node]:
    """Return the trees of all documents; lines count from the start of the text.

    >>> [node.line for node in documents("a: 1\\n---\\nb: 2\\n", [])]
    [1, 3]
    """
    starts = _starts(text)
    found = []
    for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:stop]
        if _is_bare(part):
            continue
        tree = parse_tree("\n" * text.count("\n", 0, start) + part, faults)
        if tree is not None:
            found.append(tree)
    return found


def _starts(text: str) -> list[int]:
    """Return where documents start; [0] where the text cannot be read, so that reading it tells why."""
    found: list[int] = []
    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > MAX_DEPTH:
                return [0]
            if isinstance(token, yaml.DocumentStartToken):
                found.append(token.start_mark.index)
    except (yaml.YAMLError, ValueError, OverflowError):
        return [0]
    return [0, *(start for start in found if start > 0)]


def _is_bare(part: str) -> bool:
    """Tell whether a document holds nothing but its start, comments and blank lines."""
    lines = (line.strip() for line in part.splitlines())
    return all(not line or line.startswith(("#", "%")) or line in ("---", "...") for line in lines)


def fields_of(
    node: Node, what: str, known: Collection[str], faults: Faults, notes: Notes, others: Collection[str] = ()
) -> dict[str, Node]:
    """Return a mapping's values by key; keys that mergekit does not read are told, and left out.

    Args:
        node: The mapping.
        what: What it is, for messages.
        known: Keys that are read; empty for any.
        faults: Receives what is wrong.
        notes: Receives what has no effect.
        others: Keys that are known to have no effect, and are not told.
    """
    found: dict[str, Node] = {}
    for key, value in _pairs(node, what, faults):
        name = key.text
        if known and name not in known:
            if name not in others:
                notes.append(
                    f"line {key.line}: {what}: '{shown(name)}' has no effect, nor in mergekit; " + nearest(name, known)
                )
        else:
            found[name] = value
    return found


def _pairs(node: Node, what: str, faults: Faults) -> list[tuple[Node, Node]]:
    """Return (key, value) in order, a later one of the same key replacing an earlier one; merge keys come first."""
    if node.kind != "mapping":
        faults.append((node.line, f"{what}: expected a mapping of keys to values, got {seen(node)}"))
        return []
    merged: dict[str, tuple[Node, Node]] = {}
    own: dict[str, tuple[Node, Node]] = {}
    for key, value in zip(node.items[::2], node.items[1::2], strict=True):
        if key.kind != "scalar":
            faults.append((key.line, f"{what}: expected text as a key, got {seen(key)}"))
        elif key.plain and key.text == "<<":
            for source in value.items if value.kind == "list" else [value]:
                for pair in _pairs(source, what, faults):
                    merged.setdefault(pair[0].text, pair)
        elif key.text in own:
            told = f"{what}: key '{shown(key.text)}' is given twice, first on line {own[key.text][0].line}"
            faults.append((key.line, told))
        else:
            own[key.text] = (key, value)
    return list((merged | own).values())


def value_of(node: Node, what: str, faults: Faults) -> Value | None:
    """Return a scalar as PyYAML reads it; None for null, and, with a fault added, for anything else.

    >>> from weightsmith.strict_yaml import Node
    >>> [value_of(Node(1, "scalar", text, plain=True), "t", []) for text in ("1e-5", "1.0e-5", "010", "yes", "~", "a/b")]
    ['1e-5', 1e-05, 8, True, None, 'a/b']
    """
    if node.kind != "scalar":
        faults.append((node.line, f"{what}: expected one value, got {seen(node)}"))
        return None
    if not node.plain or len(node.text) > MAX_NUMBER:
        return node.text
    loader: Any = yaml.SafeLoader("")  # the stubs leave much of it untyped
    tag = loader.resolve(yaml.ScalarNode, node.text, (True, False))
    try:
        value = loader.construct_object(yaml.ScalarNode(tag, node.text))
    except (yaml.YAMLError, ValueError, OverflowError):
        value = node.text
    if isinstance(value, datetime.date) or not isinstance(value, str | bool | int | float | None):
        return node.text
    return value


def text_of(node: Node | None, what: str, faults: Faults) -> str | None:
    """Return a scalar as text; None for no node or null, and, with a fault added, for no text."""
    if node is None:
        return None
    value = value_of(node, what, faults)
    if value is None:
        return None
    if not node.text.strip() or not node.text.isprintable():
        faults.append((node.line, f"{what}: expected text, got {seen(node)}"))
        return None
    return node.text


def items_of(node: Node, what: str, faults: Faults) -> list[Node]:
    """Return the items of a list; [], with a fault added, for anything else or an empty one."""
    if node.kind == "list" and node.items:
        return node.items
    faults.append((node.line, f"{what}: expected a list with at least one entry, got {seen(node)}"))
    return []


def number(value: Value) -> float | int | None:
    """Return what a value is as a number, numeric text included; None for none or one that is not finite.

    >>> number("1e-5"), number(3), number(True), number(".nan"), number("x")
    (1e-05, 3, None, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value) if len(value) <= MAX_NUMBER else math.nan
        except ValueError:
            return None
    return value if abs(value) < math.inf else None
