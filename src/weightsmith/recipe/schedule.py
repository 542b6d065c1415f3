"""A parameter that differs between tensors: globs of tensor names, each with a value or a layer curve."""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass

from weightsmith.errors import ArgumentError, shown
from weightsmith.strict_yaml import Value

MAX_PATTERN = 256  # characters
_REGEX_SIGNS = re.compile(r"[\\^$()|]|\A\.\*")


@dataclass(frozen=True)
class Rule:
    """One entry of a schedule: a glob of tensor names, and one value or a curve over the layers."""

    match: str = "*"
    values: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        fault = glob_fault(self.match) or ("" if self.values else "has no value")
        if len(self.values) > 1 and any(isinstance(v, bool | str) for v in self.values):
            fault = fault or "has a curve with values that are not numbers"
        if any(isinstance(v, float) and not math.isfinite(v) for v in self.values):
            fault = fault or "has a value that is not finite"
        if fault:
            raise ArgumentError(f"rule for pattern '{shown(self.match)}' {fault}")


@dataclass(frozen=True)
class Schedule:
    """A parameter that differs between tensors: rules in order, the first that matches wins."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ArgumentError("schedule", expected="at least one rule", got="none")

    def value(self, name: str, layer: int | None, layers: int) -> Value:
        """Return the parameter's value for one tensor.

        Args:
            name: Full tensor name; globs distinguish upper and lower case.
            layer: The tensor's layer, from 0; None for a tensor outside the layers, which takes a curve's
                first value.
            layers: Number of layers that a curve spans; on one layer it has its last value.

        Raises:
            ArgumentError: No rule matches, or the layer is not one of the model's.

        Example:
            >>> schedule = Schedule((Rule("*.mlp.*", (0.0, 1.0)), Rule("*", (0.5,))))
            >>> schedule.value("layers.1.mlp.up.weight", 1, 5), schedule.value("norm.weight", None, 5)
            (0.25, 0.5)
        """
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.match):
                values = rule.values
                return values[0] if len(values) == 1 else _on_curve(values, name, layer, layers)
        patterns = ", ".join(f"'{shown(rule.match)}'" for rule in self.rules[:5])
        raise ArgumentError(
            f"tensor '{shown(name)}' matches no entry of the schedule",
            expected=f"one of {patterns}",
            do="End the list with a plain value, which holds for all other tensors",
        )


def glob_fault(glob: str) -> str:
    """Return what is wrong with a pattern, "" for nothing."""
    if not glob:
        return "is empty"
    if len(glob) > MAX_PATTERN:
        return f"has {len(glob)} characters; a pattern has at most {MAX_PATTERN}"
    if _REGEX_SIGNS.search(glob):
        return "looks like a regular expression; patterns are globs with *, ? and [...]"
    return ""


def _on_curve(values: tuple[Value, ...], name: str, layer: int | None, layers: int) -> float:
    """Interpolate between values spread evenly over layers 0 to layers - 1."""
    if layer is not None and not 0 <= layer < layers:
        raise ArgumentError(f"tensor '{shown(name)}' has layer {layer}", expected=f"a layer from 0 to {layers - 1}")
    if layer is not None and layers == 1:
        return float(values[-1])
    steps = max(layers - 1, 1)
    place, rest = divmod((layer or 0) * (len(values) - 1), steps)
    start, stop = float(values[place]), float(values[min(place + 1, len(values) - 1)])
    share = rest / steps
    return start if start == stop else start * (1 - share) + stop * share
