"""The pieces in which a bundle stores masks, signs, sparse values and differences: each frame is coded by itself.

A tensor is cut into frames of FRAME elements of its flat order, the last one shorter. A frame's first byte says how it is
coded; what is coded the shortest way is stored. Numbers are little-endian; of a byte the lowest bit comes first.

| form | first byte | what follows |
|---|---|---|
| mask, ternary, sparse | 0 none selected | nothing |
| | 1 all selected | the tail |
| | 2 | a bit per element, set where selected; the tail |
| | 3 | Golomb-Rice codes of the gaps, see `rice`; the tail |
| | 4 | what would follow 2, as one zstd frame |
| sign | 2 | a bit per element, set where negative |
| rounded | as difference | of the codes, two bytes each, from zeros |
| difference | 0 equal to the base | nothing |
| | 2 | byte planes, see `planes` |
| | 4 | four bytes per plane, its length; the planes, each a zstd frame unless that is not shorter |

The tail of a mask is empty; of a ternary frame it is a bit per selected element, set where negative; of a sparse frame the
selected values in their dtype, before those of I8 their scale in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weightsmith.errors import ArgumentError, NonFiniteError, nearest
from weightsmith.tensor import bits, coding, compiled, int8, planes, rice, support
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.damage import damaged
from weightsmith.tensor.vector import add_scaled
from weightsmith.tensor.zstd import has_zstandard

__all__ = [
    "FORMS",
    "FRAME",
    "PATCHED",
    "add_masked",
    "add_rounded",
    "add_signs",
    "add_sparse",
    "add_ternary",
    "decode_frame",
    "encode_frame",
    "has_zstandard",
    "patch",
    "patch_frames",
]

FRAME = 65_536  # elements of a frame
FORMS = ("mask", "ternary", "sign", "sparse", "rounded", "difference")
PATCHED = ("mask", "ternary", "sign", "sparse")  # forms that can be added to stored bfloat16 numbers in place
Data = bytes | bytearray | memoryview | Array  # of a frame


def encode_frame(form: str, values: Mapping[str, Array], settings: Mapping[str, Any]) -> bytes:
    """Return the shortest frame of n elements, n <= FRAME.

    Args:
        form: One of FORMS.
        values: By form, arrays of n elements:
            mask: "mask", bool.
            ternary: "signs", integers or floats: -1, 0 or 1.
            sign: "signs", integers or floats: below 0 means -1, all else +1.
            sparse: "mask", bool, and "values", float32, read where the mask is set.
            rounded: "codes", int16.
            difference: "base" and "finetuned", stored words of one unsigned dtype.
        settings: sparse: "dtype", one of F32, BF16, F16 or I8 (with one scale per frame); empty for all others.

    Returns:
        The frame's bytes; the first codec wins a tie. Without the package zstandard the codecs that need it are left
        out, see `has_zstandard`.

    Raises:
        NonFiniteError: A value of a sparse frame is not a finite number in its dtype.

    Cost: about 2 to 6 ns per element.

    Example:
        >>> encode_frame("ternary", {"signs": np.array([0, -1, 0, 1, 1, 0, 0, 0, 0])}, {}).hex()
        '021a0001'
    """
    if form == "mask":
        return support.write(values["mask"], lambda positions: b"")
    if form == "ternary":
        signs = values["signs"]
        return support.write(signs != 0, lambda positions: _pack_signs_at(signs, positions))
    if form == "sign":
        return bytes([support.RAW]) + _pack_signs(values["signs"])
    if form == "sparse":
        numbers, dtype = values["values"], settings["dtype"]
        return support.write(values["mask"], lambda positions: _pack_values(numbers[positions], dtype))
    if form == "rounded":
        codes = np.ascontiguousarray(values["codes"], "<i2").view("<u2")
        return planes.write(np.zeros_like(codes), codes)
    if form == "difference":
        return planes.write(values["base"], values["finetuned"])
    raise _unknown(form)


def decode_frame(
    form: str,
    data: Data,
    settings: Mapping[str, Any],
    out: Array,
    base: Array | None = None,
    where: str = "frame",
) -> None:
    """Decode a frame of `out.size` elements into `out` (n,), all of which is written.

    Args:
        form: One of FORMS.
        data: The frame's bytes, all of them and no more.
        settings: As for `encode_frame`.
        out: mask: bool. ternary, sign: int8. sparse: float32, zero where nothing is stored. rounded: int16.
            difference: stored words.
        base: difference: the base's stored words (n,), in out's dtype; may be `out` itself.
        where: What an error's message starts with: the file, tensor and number of the frame.

    Raises:
        CheckpointError: The frame is damaged: cut short, too long, of an unknown codec, or not of n elements.
        ResourceError: The frame needs the package zstandard, which is missing.

    Example:
        >>> out = np.empty(9, np.int8)
        >>> decode_frame("ternary", bytes.fromhex("021a0001"), {}, out)
        >>> out.tolist()
        [0, -1, 0, 1, 1, 0, 0, 0, 0]
    """
    if form == "mask":
        out[:] = _mask(data, out.size, where).mask()
    elif form == "ternary":
        found = _ternary(data, out.size, where)
        out[:] = 0
        compiled.put(out, found.positions(), 1 - 2 * bits.unpack(found.tail, found.count).view(np.int8))
    elif form == "sign":
        np.subtract(1, 2 * _negative(data, out.size, where).view(np.int8), out=out)
    elif form == "sparse":
        positions, values = _sparse(data, out.size, settings["dtype"], where)
        out[:] = 0
        compiled.put(out, positions, values)
    elif form == "rounded":
        out[:] = _codes(data, out.size, where)
    elif form == "difference":
        planes.read(_bytes(data), base, out, where)
    else:
        raise _unknown(form)


def add_masked(out: Array, data: Data, shared: Array, scale: float, where: str = "frame") -> None:
    """Add scale * shared to `out` where a frame of form mask is set: out_i + float32(scale) * shared_i.

    Like all `add_` functions it leaves the bits of an element alone where zero would be added.

    Args:
        out: (n,), float32, changed in place.
        data: A frame of form mask.
        shared: (n,), float32.
        scale: Of the task; rounded to float32.
        where: As for `decode_frame`.

    Raises:
        CheckpointError: As for `decode_frame`; so do the other `add_` functions.
        ResourceError: Likewise.

    Example:
        >>> out = np.ones(3, np.float32)
        >>> add_masked(out, encode_frame("mask", {"mask": np.array([True, False, True])}, {}), out.copy(), 0.5)
        >>> out.tolist()
        [1.5, 1.0, 1.5]
    """
    found = _mask(data, out.size, where)
    if found.packed is None:
        compiled.add_shared_at(out, found.positions(), shared, np.float32(scale))
    else:
        compiled.add_selected(out, found.mask().view(np.uint8), shared, np.float32(scale))


def add_ternary(out: Array, data: Data, scale: float, where: str = "frame") -> None:
    """Add float32(scale) * s, s in -1, 0, 1, of a ternary frame to `out` (n,) float32; see `add_masked`."""
    found = _ternary(data, out.size, where)
    if scale != 0:
        compiled.add_signed_at(out, found.positions(), found.tail, np.float32(scale))


def add_sparse(out: Array, data: Data, settings: Mapping[str, Any], scale: float, where: str = "frame") -> None:
    """Add float32(scale) times the values of a sparse frame to `out` (n,) float32; see `add_masked`."""
    positions, values = _sparse(data, out.size, settings["dtype"], where)
    compiled.add_at(out, positions, values, np.float32(scale))


def add_rounded(out: Array, data: Data, scale: float, where: str = "frame") -> None:
    """Add float32(scale) times the codes of a rounded frame to `out` (n,) float32; see `add_masked`."""
    out[:] = add_scaled(out, _codes(data, out.size, where).astype(np.float32), scale)


def add_signs(
    out: Array, data: Data, scales: Array, columns: int = FRAME, start: int = 0, where: str = "frame"
) -> None:
    """Add scale * (+1 or -1) of a sign frame to `out` (n,) float32; see `add_masked`.

    Args:
        out: (n,), float32, changed in place.
        data: A frame of form sign.
        scales: (rows,), float32; or (1,), for the whole tensor: then leave `columns` and `start` out.
        columns: Elements of a row.
        start: Flat index in the tensor of the frame's first element.
        where: As for `decode_frame`.

    Example:
        >>> out = np.zeros(4, np.float32)
        >>> data = encode_frame("sign", {"signs": np.array([1, -1, -1, 1])}, {})
        >>> add_signs(out, data, np.array([0.5, 2.0], np.float32), columns=3)
        >>> out.tolist()
        [0.5, -0.5, -0.5, 2.0]
    """
    compiled.add_signs(out, _negative(data, out.size, where).view(np.uint8), scales, columns, start)


def patch(
    words: Array,
    form: str,
    data: Data,
    settings: Mapping[str, Any],
    scale: float,
    shared: Array | None = None,
    where: str = "frame",
) -> None:
    """Add float32(scale) times a frame to stored bfloat16 numbers in place, each rounded once.

    The bits are those of decoding, `add_masked`, `add_ternary`, `add_sparse` or `add_signs`, and encoding; an element to
    which nothing is added keeps its own.

    Args:
        words: (n,), uint16, changed in place.
        form: One of PATCHED.
        data: A frame of that form.
        settings: As for `encode_frame`.
        scale: Of the task.
        shared: mask: (n,), float32.
        where: As for `decode_frame`.

    Raises:
        CheckpointError, ResourceError: As for `decode_frame`.

    Example:
        >>> words = np.array([0x3F80, 0x3F80], "<u2")  # 1.0
        >>> patch(words, "ternary", encode_frame("ternary", {"signs": np.array([0, -1])}, {}), {}, 3.0)
        >>> [hex(word) for word in words]
        ['0x3f80', '0xc000']
    """
    factor = np.float32(scale)
    if form == "mask":
        found = _mask(data, words.size, where)
        if found.packed is None:
            compiled.patch_shared_at(words, found.positions(), shared, factor)
        else:
            compiled.patch_selected(words, found.mask().view(np.uint8), shared, factor)
    elif form == "ternary":
        found = _ternary(data, words.size, where)
        compiled.patch_signed_at(words, found.positions(), bits.unpack(found.tail, found.count).view(np.uint8), factor)
    elif form == "sparse":
        positions, values = _sparse(data, words.size, settings["dtype"], where)
        compiled.patch_at(words, positions, values, factor)
    elif form == "sign":
        negative = _negative(data, words.size, where).view(np.uint8)
        if factor != 0:
            compiled.patch_signs(words, negative, factor)
    else:
        raise _unknown(form)


def patch_frames(words: Array, form: str, data: Array, ends: Array, scale: float) -> int:
    """Add as many whole frames as one loop can, and return how many, maybe none; the next one is for `patch`.

    Args:
        words: (n,), uint16, changed in place: frames of FRAME words, the last may be shorter.
        form: As for `patch`.
        data: The frames' bytes, (m,) uint8.
        ends: Where in data each frame begins, and the end of the last, (frames + 1,) int64.
        scale: As for `patch`.
    """
    if form != "ternary":
        return 0
    return int(compiled.patch_ternary_frames(words, _bytes(data), ends, FRAME, np.float32(scale), rice.tables()))


def _bytes(data: Data) -> Array:
    """Return data as bytes (n,) uint8 that cannot be written, so that each loop is compiled once."""
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False
    return view


def _mask(data: Data, size: int, where: str) -> support.Support:
    return support.read(_bytes(data), size, lambda count: 0, where)


def _ternary(data: Data, size: int, where: str) -> support.Support:
    found = support.read(_bytes(data), size, bits.packed_bytes, where)
    if not bits.is_padded_with_zeros(found.tail, found.count):
        raise damaged(where, f"{found.count} signs", "bits set after the last one")
    return found


def _negative(data: Data, size: int, where: str) -> Array:
    """Return where a sign frame is negative, (size,) bool."""
    found = _bytes(data)
    if found.size != 1 + bits.packed_bytes(size) or found[0] != support.RAW:
        got = f"{found.size}" + (f", the first {found[0]}" if found.size else "")
        raise damaged(where, f"{1 + bits.packed_bytes(size)} bytes, the first {support.RAW}", got)
    if not bits.is_padded_with_zeros(found[1:], size):
        raise damaged(where, f"{size} signs", "bits set after the last one")
    return bits.unpack(found[1:], size)


def _codes(data: Data, size: int, where: str) -> Array:
    """Return the codes of a rounded frame, (size,) int16."""
    found = np.empty(size, "<u2")
    planes.read(_bytes(data), np.zeros_like(found), found, where)
    return found.view("<i2")


def _pack_signs(signs: Array) -> bytes:
    """Return a bit per element, set where it is negative."""
    packed: bytes = bits.pack(signs < 0).tobytes()
    return packed


def _pack_signs_at(signs: Array, positions: Array) -> bytes:
    """Return a bit for each of the elements at positions, set where it is negative."""
    negative = np.empty(positions.size, np.uint8)
    compiled.take_negative(signs, positions, negative)
    packed: bytes = bits.pack(negative).tobytes()
    return packed


def _pack_values(values: Array, dtype: str) -> bytes:
    """Return the tail of a sparse frame: the selected values (k,) float32 in their dtype."""
    if dtype == "I8":
        scales = int8.row_scales(values[None])
        finite = bool(float(scales[0]) * int8.LARGEST <= float(np.finfo(np.float32).max))  # not so for NaN
        codes = int8.to_int8(values, scales if finite else np.zeros_like(scales), values.size)
        tail: bytes = scales.tobytes() + codes.tobytes()
    else:
        stored = np.empty(values.size * coding.stored_bytes(dtype), np.uint8)
        finite = coding.encode(values, dtype, stored)
        tail = stored.tobytes()
    if not finite:
        raise NonFiniteError(f"a value to be stored as {dtype} is not a finite number in it")
    return tail


def _sparse(data: Data, size: int, dtype: str, where: str) -> tuple[Array, Array]:
    """Return the positions (k,) int32 and values (k,) float32 of a sparse frame."""
    head, width = (4, 1) if dtype == "I8" else (0, coding.stored_bytes(dtype))
    found = support.read(_bytes(data), size, lambda count: head + width * count, where)
    values = np.empty(found.count, np.float32)
    if not found.count:
        return found.positions(), values
    if dtype == "I8":
        scales = found.tail[:4].copy().view(np.float32)
        int8.from_int8(found.tail[4:].view(np.int8), scales, found.count, values)
    else:
        coding.decode(found.tail.copy(), dtype, values)
    if not compiled.is_finite(values):
        raise damaged(where, "finite values", "NaN or infinity")
    return found.positions(), values


def _unknown(form: str) -> ArgumentError:
    return ArgumentError(f"form '{form}' is unknown", do=nearest(form, FORMS))
