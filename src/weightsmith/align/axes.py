"""Which positions of which axes must move together: a union-find over the factors of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias


class Factor:
    """Positions that may change places: an axis, or an outer or inner part of one in row-major order.

    Joined factors have one root. A root that was cut stands for its two parts, outer first. A fixed one stays as it
    is, and says why; a counted one keeps its function under permutation but not when like units are merged.
    """

    __slots__ = ("counted", "parent", "parts", "size", "why")

    def __init__(self, size: int, why: str = "") -> None:
        self.size = size
        self.why = why
        self.counted = False
        self.parent: Factor | None = None
        self.parts: tuple[Factor, Factor] | None = None


Axis: TypeAlias = list[Factor]  # in row-major order; an axis of one position has none
Axes: TypeAlias = list[Axis]


class ParameterAxis(list[Factor]):
    """An axis of a parameter itself, not of something computed from it; how many operators use it, and how many sum over it."""

    users = reads = 0


def fresh(shape: Sequence[int], why: str = "") -> Axes:
    """Return new axes; with a reason, fixed ones."""
    return [[Factor(size, why)] if size != 1 else [] for size in shape]


def leaves(axis: Sequence[Factor]) -> Axis:
    """Return the uncut roots that an axis now consists of."""
    found: Axis = []
    waiting = list(reversed(axis))
    while waiting:
        factor = waiting.pop()
        while factor.parent is not None:
            factor = factor.parent
        if factor.parts is None:
            found.append(factor)
        else:
            waiting += reversed(factor.parts)
    return found


def fix(axis: Sequence[Factor], why: str) -> None:
    """Forbid an axis to move; the first reason stays."""
    for factor in leaves(axis):
        factor.why = factor.why or why


def count(axis: Sequence[Factor]) -> None:
    """Note that an operator takes statistics over an axis, so that like units may not be merged."""
    for factor in leaves(axis):
        factor.counted = True


def contract(first: Axis, second: Axis) -> None:
    """Join two axes over whose product a sum is taken: the weights of one of them read the units of the other."""
    join(first, second)
    owned = [axis for axis in (first, second) if isinstance(axis, ParameterAxis)]
    if len(owned) == 1:
        owned[0].reads += 1
    else:
        count(first)


def cut(factor: Factor, outer: int) -> bool:
    """Cut a root into `outer` times the rest; False where that does not divide it."""
    if outer in (0, 1) or factor.size % outer or outer == factor.size:
        return False
    factor.parts = Factor(outer, factor.why), Factor(factor.size // outer, factor.why)
    for part in factor.parts:
        part.counted = factor.counted
    return True


def join(first: Sequence[Factor], second: Sequence[Factor]) -> None:
    """Make two axes of one size move together; both are fixed where their parts do not fit."""
    done = 0
    while True:
        left, right = leaves(first), leaves(second)
        if done == len(left) or done == len(right):
            if len(left) != len(right):
                raise ValueError("axes of different sizes cannot be joined")
            return
        a, b = left[done], right[done]
        if a is b:
            done += 1
        elif a.size == b.size:
            b.parent = a
            a.why = a.why or b.why
            a.counted = a.counted or b.counted
            done += 1
        elif not (cut(a, b.size) if a.size > b.size else cut(b, a.size)):
            for axis in (first, second):
                fix(axis, "its parts do not fit those of an axis it is joined to")
            return


def regroup(axes: Sequence[Axis], shape: Sequence[int]) -> Axes | None:
    """Return the axes that a row-major reshape makes; None where an axis would be cut where it cannot be."""
    flat = [factor for axis in axes for factor in axis]
    made: Axes = []
    passed = 1  # positions of the factors that are handed out
    for size in shape:
        axis: Axis = []
        held = 1
        while held < size:
            factor = _after(flat, passed)
            if factor is None or size % held:
                return None
            left = size // held
            if factor.size > left:
                if not cut(factor, left):
                    return None
                factor = leaves([factor])[0]
            if left % factor.size:
                return None
            axis.append(factor)
            held *= factor.size
            passed *= factor.size
        made.append(axis)
    return made


def _after(flat: Sequence[Factor], passed: int) -> Factor | None:
    """Return the first factor after those that hold `passed` positions together."""
    held = 1
    for factor in leaves(flat):
        if held == passed:
            return factor
        held *= factor.size
    return None
