"""Bit-exact differences of stored words, byte plane by byte plane.

A difference d = finetuned - base wraps around in the words' width and is stored as 2 d, or as -2 d - 1 where it is
negative, so that small changes of either sign have zeros in their upper bytes. All lowest bytes of a frame come first, then
the next ones: each such plane is compressed by itself.
"""

from __future__ import annotations

import numpy as np

from weightsmith.tensor import compiled, zstd
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.damage import damaged

SAME, RAW, ZSTD = 0, 2, 4  # a frame's first byte
_LENGTH = np.dtype("<u4")


def write(base: Array, finetuned: Array) -> bytes:
    """Return the shortest frame of the difference of two arrays (n,) of one unsigned dtype.

    The codec ZSTD holds the length of each plane, then the planes: one of zeros takes no bytes, one that zstd does not
    make shorter is stored as it is.
    """
    folded = np.empty(base.size, base.dtype)
    compiled.fold_differences(base, finetuned, folded)
    if not folded.any():
        return bytes([SAME])
    planes = np.empty((folded.itemsize, base.size), np.uint8)
    if len(planes) == 2:
        compiled.split_pairs(folded, planes[0], planes[1])
    else:
        planes[:] = folded.view(np.uint8).reshape(base.size, -1).T
    whole = bytes([RAW]) + planes.tobytes()
    if not zstd.has_zstandard():
        return whole
    pieces = [min(p.tobytes(), zstd.compress(p.tobytes()), key=len) if p.any() else b"" for p in planes]
    lengths = np.array([len(piece) for piece in pieces], _LENGTH)
    return min(whole, bytes([ZSTD]) + lengths.tobytes() + b"".join(pieces), key=len)


def read(data: Array, base: Array, out: Array, where: str) -> None:
    """Write to `out` what `write` was given as finetuned; data (k,) uint8, base and out (n,) of one unsigned dtype.

    Raises:
        CheckpointError: The frame is damaged: cut short, too long, of an unknown codec, or not of n elements.
        ResourceError: The frame needs the package zstandard, which is missing.
    """
    size, width = out.size, out.itemsize
    if not data.size:
        raise damaged(where, f"a frame of {size} elements", "no bytes")
    codec, body = int(data[0]), data[1:]
    if codec == SAME:
        if body.size:
            raise damaged(where, "no bytes after the codec", f"{body.size}")
        out[:] = base
        return
    if codec == RAW:
        if body.size != size * width:
            raise damaged(where, f"{size * width} bytes after the codec", f"{body.size}")
        planes = tuple(body.reshape(width, size))
    elif codec == ZSTD:
        planes = _decompress(body, width, size, where)
    else:
        raise damaged(where, f"a codec of {SAME}, {RAW} or {ZSTD}", f"{codec}")
    compiled.unfold_differences(planes, base, out)


def _decompress(body: Array, width: int, size: int, where: str) -> tuple[Array, ...]:
    """Return the planes of a frame of codec ZSTD, each (size,) uint8."""
    head = width * _LENGTH.itemsize
    if body.size < head:
        raise damaged(where, f"{head} bytes for the lengths of {width} planes", f"{body.size}")
    lengths = [int(x) for x in body[:head].view(_LENGTH)]
    if head + sum(lengths) != body.size:
        raise damaged(where, f"planes of {sum(lengths)} bytes", f"{body.size - head}")
    planes = []
    for length in lengths:
        piece, body = body[head : head + length], body[length:]
        if length > size:
            raise damaged(where, f"planes of at most {size} bytes", f"{length}")
        if length < size:
            whole = zstd.decompress(piece, size, size, where) if length else bytes(size)
            piece = np.frombuffer(whole, np.uint8)
        planes.append(piece)
    return tuple(planes)
