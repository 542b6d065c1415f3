"""The functions of `loops.py`, imported when first used: numba takes a third of a second, which `--help` need not wait."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from weightsmith.tensor import loops

    function = getattr(loops, name)
    globals()[name] = function
    return function
