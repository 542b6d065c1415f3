"""Files that say how experts were used, and how alike their router logits are: JSON, or safetensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from weightsmith.align.experts_layout import ExpertLayer
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES
from weightsmith.checkpoint.folder import open_file, read_json
from weightsmith.checkpoint.names import layer_of
from weightsmith.checkpoint.read import read_array
from weightsmith.errors import ArgumentError, raise_all, shown
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import decode

MAX_TABLE_BYTES = 200_000_000


def read_frequencies(path: str | Path, layers: Sequence[ExpertLayer]) -> list[Array]:
    """Return how often each expert of each layer was used, (E,) float64 each.

    The file maps each layer, by the name that precedes `experts` or by its number, to a list of E numbers.

    Raises:
        ArgumentError: Layers are missing or unknown, or numbers are negative, too many or too few; all faults.
    """
    tables, faults = _tables(Path(path), layers, "frequencies", 1)
    for layer, table in zip(layers, tables, strict=True):
        if table is not None and not (table >= 0).all():
            faults.append(f"'{shown(layer.name)}' has a number below 0")
    if faults:
        raise_all(faults, ArgumentError, f"merge-experts: frequencies '{shown(path)}'")
    return [table for table in tables if table is not None]


def read_similarities(path: str | Path, layers: Sequence[ExpertLayer]) -> list[Array]:
    """Return how alike every two experts of each layer are, (E, E) float64 each; larger is more alike.

    Raises:
        ArgumentError: Layers are missing or unknown, or a table is not symmetric and (E, E); all faults.
    """
    tables, faults = _tables(Path(path), layers, "similarities", 2)
    for layer, table in zip(layers, tables, strict=True):
        if table is not None and not np.allclose(table, table.T, rtol=1e-5, atol=1e-6):
            faults.append(f"'{shown(layer.name)}' is not symmetric")
    if faults:
        raise_all(faults, ArgumentError, f"merge-experts: similarity '{shown(path)}'")
    return [table for table in tables if table is not None]


def _tables(path: Path, layers: Sequence[ExpertLayer], what: str, axes: int) -> tuple[list[Array | None], list[str]]:
    """Return each layer's table, None where it has a fault, and the faults."""
    given, faults = _read(path)
    used: set[str] = set()
    tables: list[Array | None] = []
    for layer in layers:
        number = layer_of(layer.name)
        is_alone = [layer_of(other.name) for other in layers].count(number) == 1
        key = next((k for k in (layer.name, *([str(number)] if is_alone else [])) if k in given), None)
        table = None if key is None else given[key]
        shape = (layer.experts,) * axes
        if key is None:
            faults.append(f"'{shown(layer.name)}' is missing")
        elif table is None or table.shape != shape or not np.isfinite(table).all():
            faults.append(f"'{shown(key)}': expected {what} of shape {shape}, finite numbers")
            table = None
        used |= {key} if key else set()
        tables.append(table)
    faults += [f"'{shown(key)}' is no layer with experts" for key in given if key not in used]
    return tables, faults


def _read(path: Path) -> tuple[dict[str, Array | None], list[str]]:
    """Return every table of a file, None where it is not one of numbers, and what else is wrong."""
    if not path.is_file():
        raise ArgumentError(f"file '{shown(path)}' does not exist", expected="a JSON or safetensors file")
    if path.suffix == ".safetensors":
        found: dict[str, Array | None] = {}
        for name, entry in open_file(path, str(path)).tensors.items():
            values = np.empty(entry.size, np.float64)
            if entry.dtype in ARITHMETIC_DTYPES:
                decode(np.frombuffer(read_array(entry), np.uint8), entry.dtype, values)
            elif entry.dtype == "I64":
                values[:] = np.frombuffer(read_array(entry), "<i8")
            else:
                values[:] = np.nan
            found[name] = values.reshape(entry.shape)
        return found, []
    content = read_json(path, MAX_TABLE_BYTES)
    if not isinstance(content, Mapping):
        return {}, ["expected a mapping of layers to lists"]
    return {str(key): _array(value) for key, value in content.items()}, []


def _array(value: object) -> Array | None:
    """Return a list of numbers, or of such lists, as an array; None for anything else."""
    rows = value if isinstance(value, list) else None
    flat = [x for row in rows or [None] for x in (row if isinstance(row, list) else [row])]
    if rows is None or not all(type(x) in (int, float) for x in flat):
        return None
    lengths = {len(row) if isinstance(row, list) else -1 for row in rows}
    if len(lengths) != 1 or any(abs(x) > sys.float_info.max for x in flat):
        return None
    return np.array(rows, np.float64)
