"""How each tensor of a bundle's task is formed, as part.json states it, checked against the pieces that are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from weightsmith.checkpoint.entry import DTYPE_BITS, Checkpoint, Entry, Packed, Term
from weightsmith.checkpoint.packed import FORMS, element_bytes, frame_count
from weightsmith.errors import CheckpointError, shown
from weightsmith.tensor.mixed import BITS, code_bytes, scale_count

AGAIN = "Restore the bundle, or pack again"
_FLOATS = ("BF16", "F16", "F32")
_PIECES = {
    "dense": ("vector",),
    "low_rank": ("left", "right"),
    "mask": ("frames", "lengths", "vector"),
    "basis": ("left", "right", "mean_left", "mean_right", "basis_left", "basis_right"),
}
_CODES = ("left", "left_scales", "right", "right_scales")


def packed_entry(
    item: Any, base: Checkpoint, own: Mapping[str, Entry], shared: Mapping[str, Entry], file: Path
) -> Entry:
    """Return the entry of one tensor; whatever does not fit the files is a CheckpointError."""
    check_listed(item, f"file '{shown(file.with_suffix('.json'))}'")
    name, dtype, shape, origin = item["name"], item["dtype"], tuple(item["shape"]), item["base"]
    what = f"tensor '{shown(name)}'"
    size, bits = math.prod(shape), math.prod(shape) * DTYPE_BITS[dtype]
    start = None if origin is None else base.tensors.get(origin)
    if origin is not None and (start is None or start.size != size):
        refuse(what, f"'{shown(origin)}' of the base", f"a tensor of the base with {size} elements")
    entry = Entry(name, dtype, shape, file, 0, bits // 8)
    terms = tuple(_term(entry, term, own, shared) for term in item["terms"])
    exact = [t for t in terms if t.form == "difference"]
    if exact and len(terms) > 1:
        refuse(what, f"{len(terms)} terms", "a difference alone")
    if not exact and (terms or start is None or start.dtype != dtype) and (size and dtype not in _FLOATS):
        refuse(what, f"terms for {dtype}", f"one of {', '.join(_FLOATS)}, or a difference")
    if start is not None and not terms and start.dtype == dtype:
        return Entry(name, dtype, shape, start.file, start.offset, start.nbytes)
    if (
        start is not None
        and start.dtype != dtype
        and (start.dtype not in (*_FLOATS, "F64") or dtype not in (*_FLOATS, "F64"))
    ):
        refuse(what, f"a base of {start.dtype} for {dtype}", "dtypes that numbers can be rounded between")
    return Entry(name, dtype, shape, file, 0, bits // 8, packed=Packed(start, terms))


def check_listed(item: Any, what: str) -> None:
    """Refuse a tensor of part.json that cannot be one, as far as it can be told without the pieces; CheckpointError."""
    name, dtype = taken(item, "name", str, what), taken(item, "dtype", str, what)
    what = f"tensor '{shown(name)}'"
    shape = tuple(taken(item, "shape", list, what))
    if dtype not in DTYPE_BITS or not all(type(n) is int and 0 <= n < 2**63 for n in shape) or not name.isprintable():
        refuse(what, f"dtype {shown(dtype)} and shape {shown(shape)}", "a name, dtype and shape of a tensor")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits >= 2**63:
        refuse(what, f"{math.prod(shape)} elements of {dtype}", "whole bytes")
    taken(item, "base", (str, type(None)), what)
    for term in taken(item, "terms", list, what):
        taken(term, "form", str, what)
        for key in ("parts", "shared", "settings"):
            taken(term, key, dict, what)


def _term(entry: Entry, item: Any, own: Mapping[str, Entry], shared: Mapping[str, Entry]) -> Term:
    what = f"tensor '{shown(entry.name)}'"
    form, settings = item["form"], item["settings"]
    if form not in FORMS:
        refuse(what, f"the form '{shown(form)}'", "one of " + ", ".join(FORMS))
    scale = settings.get("scale", 1.0)
    if type(scale) not in (int, float) or not math.isfinite(scale):
        refuse(what, f"the scale {shown(scale)}", "a finite number")
    parts: dict[str, Entry] = {}
    for key, found in (("parts", own), ("shared", shared)):
        for piece, stored in item[key].items():
            if not isinstance(stored, str) or stored not in found:
                refuse(
                    what,
                    f"the {key[:-1] if key == 'parts' else key} piece '{shown(stored)}', which is not stored",
                    "a stored piece",
                )
            parts[piece] = found[stored]
    wanted = _CODES if form == "low_rank" and "bits" in settings else _PIECES.get(form, ("frames", "lengths"))
    if set(parts) - {"scales"} != set(wanted):
        refuse(what, f"the pieces {', '.join(map(shown, parts))} for {form}", ", ".join(wanted))
    if "frames" in parts:
        _check_frames(entry, parts, what)
    if "vector" in parts:
        _check_vector(entry, parts, what)
    if form == "low_rank" and "bits" in settings:
        _check_codes(entry, parts, settings, what)
    elif form in ("low_rank", "basis"):
        _check_factors(entry, form, parts, what)
    if form == "sparse" and settings.get("dtype") not in (*_FLOATS, "I8"):
        refuse(what, f"sparse values of {shown(settings.get('dtype'))}", f"one of {', '.join((*_FLOATS, 'I8'))}")
    return Term(form, parts, settings)


def _check_frames(entry: Entry, parts: Mapping[str, Entry], what: str) -> None:
    frames, lengths = parts["frames"], parts["lengths"]
    count = frame_count(entry.nbytes // element_bytes(entry.dtype))
    if frames.dtype != "U8" or lengths.dtype != "U32" or lengths.shape != (count,):
        got = f"{lengths.dtype} {list(lengths.shape)} lengths of {frames.dtype} frames"
        refuse(what, got, f"{count} frames for its {entry.size} elements, U32 lengths and U8 frames")


def _check_vector(entry: Entry, parts: Mapping[str, Entry], what: str) -> None:
    vector, scales = parts["vector"], parts.get("scales")
    if vector.size != entry.size or vector.dtype not in (*_FLOATS, "I8"):
        got = f"a vector of {vector.size} elements of {vector.dtype}"
        refuse(what, got, f"{entry.size} of one of {', '.join((*_FLOATS, 'I8'))}")
    rows = vector.size // max(1, vector.shape[-1] if vector.shape else 1)
    fits = (
        scales is None if vector.dtype != "I8" else scales is not None and (scales.dtype, scales.size) == ("F32", rows)
    )
    if not fits:
        refuse(what, "scales that do not fit the vector", "one F32 scale per row of I8, none of others")


def _check_factors(entry: Entry, form: str, parts: Mapping[str, Entry], what: str) -> None:
    """Check factors (rows, r) and (r, columns), or coefficients (rows, p) and (columns, p) of bases."""
    rows, columns = entry.shape[0] if entry.shape else 1, math.prod(entry.shape[1:])
    shapes = {name: part.shape for name, part in parts.items()}
    wanted: dict[str, tuple[int, ...]] = {}
    if all(shapes.values()):
        rank = shapes["left"][-1]
        wanted = {"left": (rows, rank), "right": (rank, columns)}
        if form == "basis":
            r, own = shapes["mean_left"][-1], shapes["right"][-1]
            wanted = {"left": (rows, rank), "right": (columns, own), "mean_left": (rows, r), "mean_right": (columns, r)}
            wanted |= {"basis_left": (rows, rank, r), "basis_right": (columns, own, r)}
    if shapes != wanted or not {p.dtype for p in parts.values()} <= {*_FLOATS}:
        refuse(what, f"factors {shown(shapes)}", f"numbers {shown(wanted)}, whose product has the shape {entry.shape}")


def _check_codes(entry: Entry, parts: Mapping[str, Entry], settings: Mapping[str, Any], what: str) -> None:
    """Check factors in few bits: the bytes of their codes and the number of their scales."""
    bits, widths, group = (settings.get(name) for name in ("bits", "widths", "group"))
    fits = isinstance(bits, list) and isinstance(widths, list) and len(bits) == len(widths) and len(entry.shape) > 1
    fits = fits and all(type(b) is int and b in BITS for b in bits or ()) and type(group) is int and group > 0
    fits = fits and all(type(w) is int and 0 <= w <= entry.size for w in widths or ())
    if not fits or not isinstance(bits, list) or not isinstance(widths, list) or not isinstance(group, int):
        refuse(what, "bits, widths and group that do not fit", "as many widths as bits, each of 8, 4 or 2")
    for name, length in (("left", entry.shape[0]), ("right", math.prod(entry.shape[1:]))):
        codes, scales = parts[name], parts[f"{name}_scales"]
        stated = (codes.dtype, codes.nbytes, scales.dtype, scales.size)
        wanted = ("U8", code_bytes(length, bits, widths), "F16", scale_count(length, widths, group))
        if stated != wanted:
            refuse(what, f"codes and scales {stated}", f"{wanted}")


def taken(mapping: Any, key: str, kind: Any, what: str) -> Any:
    """Return a value of a mapping that must be there and of a type."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(mapping, dict) or key not in mapping or type(value) not in kinds:
        got = type(value).__name__ if isinstance(mapping, dict) and key in mapping else "none"
        refuse(what, got, f"'{key}' to be there, of type {' or '.join(k.__name__ for k in kinds)}")
    return value


def refuse(what: str, got: str, expected: str) -> NoReturn:
    """Raise CheckpointError: the bundle is not as it should be."""
    raise CheckpointError(what, expected=expected, got=got, do=AGAIN)
