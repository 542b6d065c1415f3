"""Where a recipe comes from: what messages call its parameters, and on which line of a file each thing stands."""

from __future__ import annotations

import difflib
import keyword
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from weightsmith.strict_yaml import Faults, Node

_OPTIONS = {"models": "--model"}  # where an option is not called as the argument


@dataclass(frozen=True)
class Origin:
    """The way by which a recipe came in; it changes messages alone.

    Attributes:
        door: "python" for arguments, "command" for options of the command line, "recipe" for a file.
        lines: Lines in that file, counted from 1, by what stands there: ("model", reference), ("copy", glob), ("drop", glob),
            ("slice", its number), ("parameters" or "slice 2: parameters", name) and, for a pattern, (name, glob).
    """

    door: str = "python"
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def spelled(self, name: str) -> str:
        """Return a parameter's name as the user writes it.

        >>> [Origin(door).spelled("lambda_") for door in ("python", "command", "recipe")]
        ['lambda_', '--lambda', 'lambda']
        """
        if self.door == "command":
            return option_of(name)
        return key_of(name) if self.door == "recipe" else name

    def given(self, name: str, value: str, *, several: bool = False) -> str:
        """Return how the user gives a value, or `several` of them, to an argument of `merge`.

        >>> [Origin(door).given("copy", "GLOB", several=True) for door in ("python", "command", "recipe")]
        ["copy=['GLOB']", '--copy GLOB', "copy: ['GLOB']"]
        """
        if self.door == "command":
            return f"{option_of(name)} {shlex.quote(value)}"
        value = f"['{value}']" if several else value
        return f"{name}: {value}" if self.door == "recipe" else f"{name}={value}"

    def at(self, *spots: tuple[str, str]) -> str:
        """Return the line of the first of some spots that has one, to stand before a message; "" for none.

        >>> Origin("recipe", {("model", "a"): 3}).at(("slice", "1"), ("model", "a"))
        'line 3: '
        """
        return next((f"line {self.lines[spot]}: " for spot in spots if spot in self.lines), "")


def key_of(name: str) -> str:
    """Return a parameter's name as a recipe writes it.

    >>> key_of("lambda_")
    'lambda'
    """
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def option_of(name: str) -> str:
    """Return a parameter's name as the command line writes it.

    >>> option_of("lambda_"), option_of("drop_top")
    ('--lambda', '--drop-top')
    """
    return _OPTIONS.get(name, "--" + name.rstrip("_").replace("_", "-"))


def doubtful_keys(root: Node | None, known: Collection[str], faults: Faults) -> set[str]:
    """Return the keys that faults stand at, and those that are not there though needed, or perhaps there misspelled."""
    if root is None or root.kind != "mapping":
        return set(known)
    keys = root.items[::2]
    unknown = [key.text for key in keys if key.text not in known]
    meant = {close for text in unknown for close in difflib.get_close_matches(text, known)}
    meant |= {"method"} | ({"base"} if unknown else set())
    meant |= set() if {"models", "slices"} & {key.text for key in keys} else {"models"}
    lines = {max((key.line for key in keys if key.line <= line), default=0) for line, _ in faults}
    return {key.text for key in keys if key.line in lines} | (meant - {key.text for key in keys})
