"""Strict, bounded reading of YAML: a tree with line numbers, and faults collected instead of raised.

Text is read event by event, so depth and size are known before anything is built: no tag is obeyed, an
alias counts as all that it stands for, and words that YAML readers disagree about are faults.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from weightsmith.errors import ResourceError, WeightsmithError, nearest, shown

Value = float | int | bool | str
Faults = list[tuple[int, str]]  # line, counted from 1, and what is wrong there

MAX_NODES = 20_000  # after every alias is replaced by what it stands for
MAX_DEPTH = 16
MAX_NUMBER = 100  # characters

_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_AMBIGUOUS = re.compile(r"[-+]?(0[xob][0-9a-f_]*|[0-9][0-9_]*(:[0-9]+)+(\.[0-9]*)?|\.(inf|nan))", re.I)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def read_text(path: Path, what: str, most_bytes: int, fault: type[WeightsmithError]) -> str:
    """Return the text of a small file, which `what` names in messages.

    Raises:
        fault: The file is missing, larger than most_bytes, or not UTF-8.
        ResourceError: It cannot be read.
    """
    if not path.is_file():
        raise fault(what, expected="a file", got="a folder" if path.is_dir() else "no such file")
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ResourceError(f"{what} cannot be read: {error.strerror}") from error
    if len(data) > most_bytes:
        raise fault(what, expected=f"at most {most_bytes} bytes", got="more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fault(f"{what}, line {line}", expected="UTF-8 text", got=f"byte {error.start}") from error


@dataclass(slots=True)
class Node:
    """A piece of YAML and its line; the items of a mapping are key, value, key, value, ..."""

    line: int
    kind: str  # "scalar", "list" or "mapping"
    text: str = ""
    plain: bool = False
    items: list[Node] = field(default_factory=list)
    size: int = 1  # nodes in it, itself included, aliases expanded
    height: int = 1


def parse_tree(text: str, faults: Faults, *, max_nodes: int = MAX_NODES) -> Node | None:
    """Return the one document of `text` as a tree; None, with a fault added, where there is none.

    Time and memory are bounded: nesting deeper than MAX_DEPTH or more than `max_nodes` nodes end the reading.

    >>> faults = []
    >>> parse_tree("a: [1, &x b, *x]", faults).size, faults
    (6, [])
    >>> parse_tree("a: [1", faults), faults
    (None, [(1, "YAML: expected ',' or ']', but got '<stream end>'")])
    """
    try:
        root = _build(text, faults, max_nodes)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        faults.append((line, f"YAML: {shown(error.problem or error.context)}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        faults.append((line, f"YAML: the control character {ord(text[error.position]):#04x} is not allowed"))
    except (ValueError, OverflowError):
        faults.append((1, "YAML: an escape or a directive holds a number that is out of range"))
    else:
        if root is None:
            faults.append((1, "the text is empty"))
        return root
    return None


def _build(text: str, faults: Faults, max_nodes: int) -> Node | None:
    """Build the tree; raise MarkedYAMLError at the first thing that forbids going on."""
    document = Node(1, "document")
    unclosed: list[tuple[Node, str | None]] = [(document, None)]
    anchors: dict[str, Node] = {}
    total = 0
    event: Any  # the stubs give marks and anchors several types
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        problem = ""
        if isinstance(event, yaml.CollectionEndEvent):
            node, anchor = unclosed.pop()
            _attach(node, unclosed[-1][0])
            anchors |= {anchor: node} if anchor else {}
            continue
        if isinstance(event, yaml.AliasEvent):
            node = anchors.get(str(event.anchor), document)
            problem = f"alias '*{event.anchor}' stands for nothing, or for itself" if node is document else ""
        elif isinstance(event, yaml.NodeEvent):
            node = _node(event, faults)
        elif isinstance(event, yaml.DocumentStartEvent) and document.items:
            problem, node = "a second document starts here; one file holds one document", document
        else:
            continue
        total += node.size
        if total > max_nodes:
            problem = problem or f"more than {max_nodes} values, aliases expanded"
        elif len(unclosed) - 1 + node.height > MAX_DEPTH:
            problem = problem or f"nested deeper than {MAX_DEPTH} levels"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            unclosed.append((node, event.anchor))
        else:
            _attach(node, unclosed[-1][0])
            anchors |= {event.anchor: node} if event.anchor else {}
    return document.items[0] if document.items else None


def _node(event: Any, faults: Faults) -> Node:
    """Return an unattached node for a NodeEvent; a tag is a fault."""
    line = event.start_mark.line + 1
    if isinstance(event, yaml.ScalarEvent):
        node = Node(line, "scalar", event.value, plain=event.style is None)
    else:
        node = Node(line, "mapping" if isinstance(event, yaml.MappingStartEvent) else "list")
    if getattr(event, "tag", None) is not None:
        faults.append((line, f"tag '{shown(getattr(event, 'tag', ''))}' is refused; write the value without a tag"))
    return node


def _attach(node: Node, parent: Node) -> None:
    parent.items.append(node)
    parent.size += node.size
    parent.height = max(parent.height, node.height + 1)


def resolve(text: str) -> tuple[Value | None, str]:
    """Return what an unquoted word means, None for no value, and what is wrong with it, "" for nothing.

    >>> resolve("1e-5"), resolve("true"), resolve("a/b")
    ((1e-05, ''), (True, ''), ('a/b', ''))
    >>> resolve("no")
    (None, "'no' is refused: write true or false, or put it in quotes where text is meant")
    """
    if text in _NULLS or text in _BOOLS:
        return _BOOLS.get(text), ""
    if text.lower() in ("yes", "no", "on", "off"):
        return None, f"'{text}' is refused: write true or false, or put it in quotes where text is meant"
    number = _DECIMAL.fullmatch(text)
    if number and len(text) > MAX_NUMBER:
        return None, f"a number of {len(text)} characters is refused; write at most {MAX_NUMBER}"
    if _INTEGER.fullmatch(text):
        return int(text), ""
    if number:
        value = float(text)
        return (value, "") if abs(value) < float("inf") else (None, f"'{text}' is not a finite number")
    try:
        float(text)  # nan, infinity, 010, 1_000: numbers to some readers
    except ValueError:
        if not _AMBIGUOUS.fullmatch(text):
            return text, ""
    return None, (
        f"'{shown(text)}' is refused: write a finite number in decimal without leading zeros, "
        "or put it in quotes where text is meant"
    )


def mapping(node: Node, what: str, keys: Collection[str] | None, faults: Faults) -> dict[str, Node]:
    """Return the values of a mapping by key; keys outside `keys` and keys given twice are faults."""
    if node.kind != "mapping":
        faults.append((node.line, f"{what}: expected a mapping of keys to values, got {seen(node)}"))
        return {}
    found: dict[str, Node] = {}
    lines: dict[str, int] = {}
    for key, value in zip(node.items[::2], node.items[1::2], strict=True):
        name = key.text
        if key.kind != "scalar":
            faults.append((key.line, f"{what}: expected text as a key, got {seen(key)}"))
        elif key.plain and name == "<<":
            faults.append((key.line, f"{what}: merge key '<<' is refused; write the entries out"))
        elif name in lines:
            faults.append((key.line, f"{what}: key '{shown(name)}' is given twice, first on line {lines[name]}"))
        elif keys is not None and name not in keys:
            faults.append((key.line, f"{what}: unknown key '{shown(name)}'; {nearest(name, keys)}"))
        else:
            found[name] = value
        lines.setdefault(name, key.line)
    return found


def items_of(node: Node, what: str, expected: str, faults: Faults, *, empty: bool = False) -> list[Node]:
    """Return the items of a list; [], with a fault added, for anything else, or for an empty list."""
    if node.kind == "list" and (node.items or empty):
        return node.items
    faults.append((node.line, f"{what}: expected {expected}, got {seen(node)}"))
    return []


def scalar(node: Node, what: str, faults: Faults) -> Value | None:
    """Return a node's one value; None, with a fault added, where it has none."""
    value, problem = (node.text, "") if not node.plain else resolve(node.text)
    if node.kind != "scalar":
        problem = f"expected one value, got {seen(node)}"
    elif isinstance(value, str) and _CONTROL.search(value):
        problem = f"{seen(node)} holds a control character"
    elif value is None and not problem:
        problem = "has no value; give one or leave the key out"
    if problem:
        faults.append((node.line, f"{what}: {problem}"))
        return None
    return value


def text_of(node: Node | None, what: str, faults: Faults) -> str | None:
    """Return a node's text; None for no node, and, with a fault added, for anything but text."""
    value = scalar(node, what, faults) if node else None
    if node and value is not None and (not isinstance(value, str) or not value.strip()):
        faults.append((node.line, f"{what}: expected text, got {seen(node)}; put it in quotes if text is meant"))
        return None
    return value if isinstance(value, str) else None


def number_of(node: Node, what: str, faults: Faults) -> float | int | None:
    """Return a node's number; None, with a fault added, for anything else."""
    value = scalar(node, what, faults)
    if isinstance(value, bool | str):
        faults.append((node.line, f"{what}: expected a number, got {seen(node)}"))
        return None
    return value


def any_text_of(node: Node | None, what: str, faults: Faults) -> str | None:
    """Return a node's text, which may hold line breaks and any other character; None for no node or a fault."""
    if node and node.kind == "scalar" and not node.plain and node.text and not _SURROGATE.search(node.text):
        return node.text
    return text_of(node, what, faults)


def whole_of(node: Node | None, what: str, faults: Faults, *, least: int = 0) -> int | None:
    """Return a node's whole number of at least `least`; None for no node, and, with a fault added, for anything else."""
    number = number_of(node, what, faults) if node else None
    if node and number is not None and (not isinstance(number, int) or number < least):
        faults.append((node.line, f"{what}: expected a whole number of at least {least}, got {seen(node)}"))
        return None
    return number if isinstance(number, int) else None


def flag_of(node: Node | None, what: str, faults: Faults) -> bool:
    """Return a node's truth value; False for no node, and, with a fault added, for anything else."""
    value = scalar(node, what, faults) if node else False
    if node and value is not None and not isinstance(value, bool):
        faults.append((node.line, f"{what}: expected true or false, got {seen(node)}"))
    return value is True


def seen(node: Node) -> str:
    """Return a few words on what was written."""
    if node.kind == "scalar":
        return f"'{shown(node.text)}'"
    return f"a {node.kind}" if node.items else f"an empty {node.kind}"
