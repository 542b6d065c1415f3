"""Permutation groups as data: which axes of which tensors move together. A file in strict YAML, or JSON, which is YAML.

    groups:
      mlp.{layer}:                                                     # one group per layer
        - {tensor: "model.layers.{layer}.mlp.up_proj.weight", axis: 0}
        - {tensor: "model.layers.{layer}.mlp.up_proj.bias", axis: 0}
        - {tensor: "model.layers.{layer}.mlp.down_proj.weight", axis: 1}
      heads.{layer}:
        - {tensor: "model.layers.{layer}.attention.[qkv]_proj.weight", axis: 0, block: 16}   # a head moves as one
        - {tensor: "model.layers.{layer}.attention.o_proj.weight", axis: 1, block: 16}
      stream:
        - {tensor: "*.up_proj.weight", axis: 1}                        # a glob: every tensor that it matches
        - {tensor: [model.embed_tokens.weight, lm_head.weight], axis: 1}   # names of one shared tensor: those stored
    counted: [stream]

A member reads its axis as (repeat, units, block) in row-major order: `block` neighbors are one unit, and all units follow
one another `repeat` times (fused q, k and v: repeat 3). `{layer}` stands for every layer number that some member of the
group has; in the group's name it makes one group per layer. `side: reads` marks weights that sum over the units
(outgoing weights), `side: writes` those that make them; the default is `reads` for an axis after the first, which is
how PyTorch stores Linear and Conv. Groups listed under `counted` are normalized, averaged or paired over their units by
some operator: they may be permuted, but like units must not be merged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import layer_count, matches
from weightsmith.errors import ArgumentError, MismatchError, nearest, raise_all, shown
from weightsmith.recipe.schedule import glob_fault
from weightsmith.strict_yaml import Faults, Node, items_of, mapping, number_of, parse_tree, read_text, text_of
from weightsmith.tensor.permute import UnitAxis

MAX_FILE_BYTES = 10_000_000
MAX_NODES = 500_000
MAX_AXIS, MAX_REPEAT = 7, 2**31
LAYER = "{layer}"
SIDES = ("reads", "writes")


@dataclass(frozen=True)
class Member:
    """One axis that belongs to a group.

    Attributes:
        tensor: A name or glob, with `{layer}` for layer numbers; or several names of one shared tensor.
        axis: From 0.
        block: Neighbors that are one unit.
        repeat: How often all units follow one another.
        side: "reads" or "writes"; "" for the default of the axis.
    """

    tensor: str | tuple[str, ...]
    axis: int
    block: int = 1
    repeat: int = 1
    side: str = ""


@dataclass(frozen=True)
class Groups:
    """Permutation groups by name; `counted` names those whose units may not be merged, `fixed` says what was left out."""

    members: Mapping[str, tuple[Member, ...]]
    counted: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """One axis of one stored tensor in a group."""

    entry: Entry
    where: UnitAxis
    reads: bool


@dataclass(frozen=True)
class Group:
    """A group of one checkpoint: its name, how many units it has, and where they lie."""

    name: str
    units: int
    places: tuple[Place, ...]
    counted: bool = False


def read_groups(path: str | Path) -> Groups:
    """Read a file of permutation groups; see `parse_groups`.

    Raises:
        ArgumentError: The file is missing, too large, not UTF-8, or has faults.
        ResourceError: It cannot be read.
    """
    what = f"groups file '{shown(path)}'"
    text = read_text(Path(path), what, MAX_FILE_BYTES, ArgumentError)
    return parse_groups(text, what)


def parse_groups(text: str, what: str = "groups") -> Groups:
    """Check the text of a groups file and return what it says; every fault is reported at once.

    >>> parse_groups('groups: {hidden: [{tensor: a.weight, axis: 0}, {tensor: b.weight, axis: 1}]}').members["hidden"][1].axis
    1

    Raises:
        ArgumentError: Faults, each with its line.
    """
    faults: Faults = []
    root = parse_tree(text, faults, max_nodes=MAX_NODES)
    fields = mapping(root, "groups file", ("groups", "counted"), faults) if root else {}
    if root and "groups" not in fields and not faults:
        faults.append((root.line, "groups: the key is missing"))
    found = mapping(fields["groups"], "groups", None, faults) if "groups" in fields else {}
    if "groups" in fields and not found and not faults:
        faults.append((fields["groups"].line, "groups: no group is given"))
    members = {name: _members(node, f"group '{shown(name)}'", faults) for name, node in found.items()}
    for name, node in found.items():
        if not name.strip() or not name.isprintable() or len(name) > 300:
            faults.append((node.line, f"group '{shown(name)}': expected a printable name of at most 300 characters"))
    counted = []
    for node in items_of(fields["counted"], "counted", "a list of groups", faults) if "counted" in fields else []:
        name = text_of(node, "counted", faults) or ""
        if name and name not in found:
            faults.append((node.line, f"counted: no group '{shown(name)}'; {nearest(name, found)}"))
        counted.append(name)
    if faults:
        raise_all([f"line {line}: {told}" for line, told in sorted(faults)], ArgumentError, what)
    return Groups(members, tuple(counted))


def _members(node: Node, what: str, faults: Faults) -> tuple[Member, ...]:
    made = []
    for item in items_of(node, what, "a list of members such as {tensor: NAME, axis: 0}", faults):
        fields = mapping(item, what, ("tensor", "axis", "block", "repeat", "side"), faults)
        for key in ("tensor", "axis"):
            if item.kind == "mapping" and key not in fields:
                faults.append((item.line, f"{what}: a member without '{key}'"))
        tensor = _tensor(fields["tensor"], what, faults) if "tensor" in fields else ""
        side = (text_of(fields.get("side"), f"{what}: side", faults)) or ""
        if side and side not in SIDES:
            faults.append((fields["side"].line, f"{what}: side '{shown(side)}'; {nearest(side, SIDES)}"))
        axis = _whole(fields.get("axis"), f"{what}: axis", 0, MAX_AXIS, faults)
        block = _whole(fields.get("block"), f"{what}: block", 1, MAX_REPEAT, faults)
        repeat = _whole(fields.get("repeat"), f"{what}: repeat", 1, MAX_REPEAT, faults)
        made.append(Member(tensor, axis, block, repeat, side))
    return tuple(made)


def _tensor(node: Node, what: str, faults: Faults) -> str | tuple[str, ...]:
    if node.kind == "list":
        names = [text_of(n, f"{what}: tensor", faults) for n in items_of(node, f"{what}: tensor", "names", faults)]
        return tuple(n for n in names if n)
    text = text_of(node, f"{what}: tensor", faults) or ""
    wrong = glob_fault(text.replace(LAYER, "0")) if text else ""
    if wrong:
        faults.append((node.line, f"{what}: tensor '{shown(text)}' {wrong}"))
    return text


def _whole(node: Node | None, what: str, least: int, most: int, faults: Faults) -> int:
    """Return a whole number within bounds; the least where there is no node."""
    value = number_of(node, what, faults) if node else least
    if value is None or (isinstance(value, int) and least <= value <= most):
        return least if value is None else int(value)
    faults.append((node.line if node else 1, f"{what}: expected a whole number from {least} to {most}, got {value}"))
    return least


def write_groups(groups: Groups, path: str | Path) -> None:
    """Write groups as a file that `read_groups` reads; what was left out, and why, stands in comments."""
    lines = ["groups:"]
    for name, members in groups.members.items():
        lines.append(f"  {_quoted(name)}:")
        lines += [f"    - {{{', '.join(_pairs(m))}}}" for m in members]
    if groups.counted:
        lines.append(f"counted: [{', '.join(map(_quoted, groups.counted))}]")
    lines += [f"# left as it is: {shown(name)}: {shown(why)}" for name, why in groups.fixed.items()]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pairs(member: Member) -> Iterable[str]:
    names = [member.tensor] if isinstance(member.tensor, str) else member.tensor
    listed = ", ".join(map(_quoted, names))
    yield f"tensor: {listed if isinstance(member.tensor, str) else f'[{listed}]'}"
    yield f"axis: {member.axis}"
    yield from (f"{key}: {value}" for key in ("block", "repeat") if (value := getattr(member, key)) != 1)
    if member.side:
        yield f"side: {member.side}"


def _quoted(text: str) -> str:
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**30)
    return dumped.strip()


def resolve(groups: Groups, checkpoint: Checkpoint, what: str) -> tuple[Group, ...]:
    """Return the groups of a checkpoint; headers alone are looked at.

    Raises:
        MismatchError: A tensor is missing or not computed with, axes do not fit, or one is in two groups; all faults.
    """
    faults: list[str] = []
    found: dict[str, tuple[list[Place], bool]] = {}
    for pattern, members in groups.members.items():
        for name, layer in _names(pattern, members, checkpoint, faults):
            places, counted = found.setdefault(name, ([], pattern in groups.counted))
            for member in members:
                _add(places, member, layer, checkpoint, f"group '{shown(name)}'", faults)
    taken: dict[tuple[str, int], str] = {}
    made = []
    for name, (places, counted) in found.items():
        for place in places:
            key = place.entry.name, place.where.axis
            if key in taken:
                other = "twice in one group" if taken[key] == name else f"also in group '{shown(taken[key])}'"
                faults.append(f"group '{shown(name)}': axis {key[1]} of '{shown(key[0])}' is {other}")
            taken.setdefault(key, name)
        units = {place.where.units(place.entry.shape) for place in places}
        if len(units) > 1:
            told = ", ".join(
                f"{p.where.units(p.entry.shape)} in '{shown(p.entry.name)}'" for p in _first_of_each(places)
            )
            faults.append(f"group '{shown(name)}': its members hold different numbers of units: {told}")
        made.append(Group(name, max(units, default=0), tuple(places), counted))
    if faults:
        raise_all(
            list(dict.fromkeys(faults)),
            MismatchError,
            f"{what}: the groups do not fit '{shown(checkpoint.reference)}'",
            f"List the tensors with: weightsmith inspect {shown(checkpoint.reference)} --tensors",
        )
    return tuple(made)


def _names(
    pattern: str, members: tuple[Member, ...], checkpoint: Checkpoint, faults: list[str]
) -> Iterable[tuple[str, int | None]]:
    """Yield the groups that a name stands for, each with its layer, None for all layers."""
    if LAYER not in pattern:
        yield pattern, None
        return
    names = [*checkpoint.tensors, *checkpoint.aliases]
    layers = range(layer_count(names))
    used = [n for n in layers if any(LAYER in t and _matching(t, n, names) for m in members for t in _listed(m))]
    if not used:
        faults.append(f"group '{shown(pattern)}': no layer has any of its tensors")
    for layer in used:
        yield pattern.replace(LAYER, str(layer)), layer


def _listed(member: Member) -> tuple[str, ...]:
    return (member.tensor,) if isinstance(member.tensor, str) else member.tensor


def _matching(pattern: str, layer: int | None, names: Iterable[str]) -> list[str]:
    """Return the names that a member's text stands for, in one layer or, with None, in all."""
    if layer is None and LAYER in pattern:
        parts = [re.escape(p).replace(r"\*", ".*").replace(r"\?", ".") for p in pattern.split(LAYER)]
        number = re.compile("([0-9]{1,5})".join(parts))
        return [n for n in names if (hit := number.fullmatch(n)) and len(set(hit.groups())) == 1]
    text = pattern.replace(LAYER, str(layer))
    names = list(names)
    return [text] if text in names else [n for n in names if matches(text, n)]


def _add(
    places: list[Place], member: Member, layer: int | None, checkpoint: Checkpoint, what: str, faults: list[str]
) -> None:
    """Add the axes that a member stands for to a group's."""
    names = [*checkpoint.tensors, *checkpoint.aliases]
    found = list(dict.fromkeys(n for text in _listed(member) for n in _matching(text, layer, names)))
    if not found:
        text = " or ".join(shown(t.replace(LAYER, str(layer)) if layer is not None else t) for t in _listed(member))
        hint = nearest(text, names) if not any(c in text for c in "*?[{") else "the pattern matches no tensor"
        faults.append(f"{what}: no tensor '{text}'; {hint}")
    where = UnitAxis(member.axis, member.repeat, member.block)
    stored = dict.fromkeys(checkpoint.aliases.get(n, n) for n in found)
    for name in stored:
        entry = checkpoint.tensors[name]
        unit = member.block * member.repeat
        if entry.dtype not in ARITHMETIC_DTYPES:
            faults.append(f"{what}: '{shown(name)}' is {entry.dtype}, which is not computed with")
        elif member.axis >= len(entry.shape):
            faults.append(f"{what}: '{shown(name)}' has no axis {member.axis}; its shape is {entry.shape}")
        elif not entry.size or entry.shape[member.axis] % unit:
            faults.append(f"{what}: axis {member.axis} of '{shown(name)}' {entry.shape} is not a multiple of {unit}")
        else:
            shares = Place(entry, where, member.side == "reads" if member.side else member.axis > 0)
            is_alias = any(n in checkpoint.aliases for n in found) and shares in places
            places += [] if is_alias else [shares]


def _first_of_each(places: Iterable[Place]) -> list[Place]:
    return list({p.where.units(p.entry.shape): p for p in reversed(list(places))}.values())[::-1]


def tensors_of(groups: Iterable[Group]) -> dict[str, list[tuple[Place, str]]]:
    """Return, by tensor name, the places on its axes, each with its group's name."""
    found: dict[str, list[tuple[Place, str]]] = {}
    for group in groups:
        for place in group.places:
            found.setdefault(place.entry.name, []).append((place, group.name))
    return found


def summary_of(groups: Iterable[Group]) -> dict[str, Any]:
    """Return groups as plain data."""
    return {
        g.name: [
            {"tensor": p.entry.name, **p.where._asdict(), "side": "reads" if p.reads else "writes"} for p in g.places
        ]
        for g in groups
    }
