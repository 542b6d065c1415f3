"""Kinds of parameter: one declaration checks a value, parses an option, prints the help and yields bad values.

A method's signature carries them: `density: Proportion = 0.2`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from weightsmith.errors import ArgumentError, nearest, shown

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Real:
    """A finite real number with low <= x <= high; an open end excludes the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def check(self, value: object, name: str, caller: str) -> float:
        """Return value as a float, or raise ArgumentError with the bound and the value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ArgumentError(f"{caller}: {name}", expected=self.describe(), got=repr(value))
        under = value <= self.low if self.open_low else value < self.low
        over = value >= self.high if self.open_high else value > self.high
        if under or over:
            raise ArgumentError(f"{caller}: {name}", expected=self.describe(), got=repr(value))
        return float(value)

    def parse(self, text: str) -> float | str:
        """Return the number that text spells, or the text, which `check` refuses."""
        try:
            return float(text)
        except ValueError:
            return text

    def describe(self) -> str:
        """Return the bounds in words."""
        if self.low == -math.inf and self.high == math.inf:
            return "a finite number"
        left = "(" if self.open_low or self.low == -math.inf else "["
        right = ")" if self.open_high or self.high == math.inf else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"

    def bad(self) -> list[Any]:
        """Return values that `check` must refuse."""
        values: list[Any] = [math.nan, math.inf, "much", True]
        if self.low > -math.inf:
            values += [self.low - 1] + ([self.low] if self.open_low else [])
        if self.high < math.inf:
            values += [self.high + 1] + ([self.high] if self.open_high else [])
        return values


@dataclass(frozen=True)
class Whole:
    """A whole number with low <= x <= high."""

    low: int
    high: int = 2**63 - 1

    def check(self, value: object, name: str, caller: str) -> int:
        """Return value, or raise ArgumentError with the bound and the value."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise ArgumentError(f"{caller}: {name}", expected=self.describe(), got=repr(value))
        return value

    def parse(self, text: str) -> int | str:
        """Return the whole number that text spells, or the text, which `check` refuses."""
        try:
            return int(text)
        except ValueError:
            return text

    def describe(self) -> str:
        """Return the bounds in words."""
        return f"a whole number from {self.low}" + (f" to {self.high}" if self.high < 2**63 - 1 else "")

    def bad(self) -> list[Any]:
        """Return values that `check` must refuse."""
        return [self.low - 1, self.low + 0.5, "many", True]


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    values: tuple[str, ...]

    def check(self, value: object, name: str, caller: str) -> str:
        """Return value, or raise ArgumentError with the valid words."""
        if not isinstance(value, str) or value not in self.values:
            hint = nearest(value, self.values) if isinstance(value, str) else ""
            got = f"'{shown(value)}'" if isinstance(value, str) else repr(value)
            raise ArgumentError(f"{caller}: {name}", expected=self.describe(), got=got, do=hint)
        return value

    def parse(self, text: str) -> str:
        """Return text as it is."""
        return text

    def describe(self) -> str:
        """Return the words."""
        return "one of " + ", ".join(self.values)

    def bad(self) -> list[Any]:
        """Return values that `check` must refuse."""
        return ["no such word", 1, None]


@dataclass(frozen=True)
class Reals:
    """Finite numbers, one per model, in the caller's order."""

    def check(self, value: object, name: str, caller: str) -> tuple[float, ...]:
        """Return value as a tuple of floats, or raise ArgumentError."""
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise ArgumentError(f"{caller}: {name}", expected=self.describe(), got=repr(value))
        return tuple(Real().check(v, f"{name}[{i}]", caller) for i, v in enumerate(value))

    def parse(self, text: str) -> tuple[Any, ...]:
        """Return the numbers that a comma-separated text spells."""
        return tuple(Real().parse(part) for part in text.split(","))

    def describe(self) -> str:
        """Return the kind in words."""
        return "finite numbers, one per model, separated by commas"

    def bad(self) -> list[Any]:
        """Return values that `check` must refuse."""
        return [[math.nan], "a lot", 1.0, [None]]


@dataclass(frozen=True)
class YesNo:
    """True or false."""

    def check(self, value: object, name: str, caller: str) -> bool:
        """Return value, or raise ArgumentError."""
        if not isinstance(value, bool):
            raise ArgumentError(f"{caller}: {name}", expected=self.describe(), got=repr(value))
        return value

    def parse(self, text: str) -> bool | str:
        """Return the truth value that text spells, or the text, which `check` refuses."""
        return {"true": True, "false": False}.get(text.lower(), text)

    def describe(self) -> str:
        """Return the kind in words."""
        return "true or false"

    def bad(self) -> list[Any]:
        """Return values that `check` must refuse."""
        return [1, "yes", None]


Kind: TypeAlias = Real | Whole | Choice | Reals | YesNo

Proportion: TypeAlias = Annotated[float, Real(0, 1, open_low=True)]
Share: TypeAlias = Annotated[float, Real(0, 1, open_high=True)]
Number: TypeAlias = Annotated[float, Real()]
OptionalNumber: TypeAlias = Annotated[float | None, Real()]
NonNegative: TypeAlias = Annotated[float, Real(0)]
Count: TypeAlias = Annotated[int, Whole(0)]
Ordinal: TypeAlias = Annotated[int, Whole(1)]
Seed: TypeAlias = Annotated[int, Whole(0)]
Coefficients: TypeAlias = Annotated[tuple[float, ...] | None, Reals()]
Flag: TypeAlias = Annotated[bool, YesNo()]


@dataclass(frozen=True)
class Parameter:
    """One keyword of a method: its name, kind, default and help."""

    name: str
    kind: Kind
    default: Any
    help: str

    def check(self, value: object, caller: str, spelled: Callable[[str], str] = str) -> Any:
        """Return the checked value; None passes where None is the default. `spelled` is what messages call the parameter."""
        return None if value is None and self.default is None else self.kind.check(value, spelled(self.name), caller)


def check_all(
    parameters: Mapping[str, Parameter], given: Mapping[str, Any], caller: str, spelled: Callable[[str], str] = str
) -> dict[str, Any]:
    """Return every parameter with its checked value or default; an unknown name is an ArgumentError."""
    for name in given:
        if name not in parameters:
            hint = nearest(spelled(name), map(spelled, parameters))
            raise ArgumentError(f"{caller}: unknown parameter '{shown(spelled(name))}'", do=hint)
    return {n: p.check(given.get(n, p.default), caller, spelled) for n, p in parameters.items()}
