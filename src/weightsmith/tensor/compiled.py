"""The loops of `loops.py` and `digits.py`, imported when first used: numba takes a third of a second to import."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from weightsmith.tensor import digits, loops

    function = getattr(digits if hasattr(digits, name) else loops, name)
    globals()[name] = function
    return function
