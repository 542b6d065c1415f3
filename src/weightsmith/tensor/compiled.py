"""The compiled loops of the modules in `_MODULES`, imported when first used: numba takes a third of a second to import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = (
    "loops",
    "gram_loops",
    "sphere_loops",
    "digits",
    "select_loops",
    "elementwise_loops",
    "competition_loops",
    "rounding_loops",
    "chance_loops",
    "variance_loops",
    "importance_loops",
    "unified_loops",
    "frame_loops",
    "patch_loops",
)


def __getattr__(name: str) -> Any:
    for module in _MODULES:
        found = getattr(import_module(f"weightsmith.tensor.{module}"), name, None)
        if found is not None:
            globals()[name] = found
            return found
    raise AttributeError(name)
