"""Which elements of a frame are stored, coded in the fewest bytes, and what is stored of them: the tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weightsmith.tensor import bits, compiled, rice, zstd
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.damage import damaged

NONE, ALL, RAW, RICE, ZSTD = range(5)  # a frame's first byte


@dataclass(frozen=True, slots=True)
class Support:
    """What a frame selects, in one of two forms, and its tail."""

    size: int  # elements of the frame
    count: int  # of them selected
    packed: Array | None  # a bit each, (ceil(size / 8),) uint8
    listed: Array | None  # their indices, (count,) int32
    tail: Array  # bytes, uint8

    def mask(self) -> Array:
        """Return the selected elements as a mask (size,), bool."""
        if self.packed is not None:
            return bits.unpack(self.packed, self.size)
        mask = np.zeros(self.size, np.bool_)
        compiled.put(mask, self.positions(), np.ones(self.count, np.bool_))
        return mask

    def positions(self) -> Array:
        """Return the selected elements' indices (count,), int32, ascending."""
        if self.listed is not None:
            return self.listed
        return _positions(self.packed, self.size, self.count)


def write(mask: Array, tail_of: Callable[[Array], bytes]) -> bytes:
    """Return the shortest frame that selects a mask (n,), bool; of equally short ones the first codec's.

    `tail_of` gives the tail for the selected elements' indices, (k,) int32.
    """
    packed = bits.pack(mask)
    selected = _positions(packed, mask.size, bits.count(packed))
    if not selected.size:
        return bytes([NONE])
    tail = tail_of(selected)
    plain: bytes = packed.tobytes() + tail
    frames = [bytes([RAW]) + plain]
    if selected.size == mask.size:
        frames.insert(0, bytes([ALL]) + tail)
    if rice.rice_bytes(selected, mask.size) < len(plain) - len(tail):
        frames.append(bytes([RICE]) + rice.encode_positions(selected, mask.size) + tail)
    if zstd.has_zstandard():
        frames.append(bytes([ZSTD]) + zstd.compress(plain))
    return min(frames, key=len)


def read(data: Array, size: int, tail_bytes: Callable[[int], int], where: str) -> Support:
    """Read what `write` wrote of `size` elements.

    Args:
        data: The frame, (n,) uint8.
        size: Elements of the frame.
        tail_bytes: How long the tail is when so many elements, one or more, are selected.
        where: What an error's message starts with.

    Raises:
        CheckpointError: The frame is damaged: cut short, too long, of an unknown codec, or its parts disagree.
        ResourceError: The frame needs the package zstandard, which is missing.
    """
    if not data.size:
        raise damaged(where, f"a frame of {size} elements", "no bytes")
    codec, body = int(data[0]), data[1:]
    length = bits.packed_bytes(size)
    packed, listed = None, np.empty(0, np.int32)
    if codec in (NONE, ALL):
        packed, tail = bits.pack(np.full(size, codec == ALL)), body
    elif codec in (RAW, ZSTD):
        if codec == ZSTD:
            body = np.frombuffer(zstd.decompress(body, length, length + tail_bytes(size), where), np.uint8)
        packed, tail = body[:length], body[length:]
        if packed.size < length:
            raise damaged(where, f"{length} bytes for the bits of {size} elements", f"{packed.size}")
        if not bits.is_padded_with_zeros(packed, size):
            raise damaged(where, f"{size} elements", "bits set after the last one")
    elif codec == RICE:
        coded = rice.coded_count(body, size, where)
        split = max(body.size - (tail_bytes(coded) if coded else 0), rice.HEAD_BYTES)
        listed, tail = rice.decode_positions(body[:split], size, where), body[split:]
    else:
        raise damaged(where, f"a codec from {NONE} to {ZSTD}", f"{codec}")
    count = len(listed) if packed is None else bits.count(packed)
    expected = tail_bytes(count) if count else 0
    if tail.size != expected:
        raise damaged(where, f"{expected} bytes after the choice of {count} elements", f"{tail.size}")
    return Support(size, count, packed, listed if packed is None else None, tail)


def _positions(packed: Array, size: int, count: int) -> Array:
    """Return the indices (count,) int32 of the set bits."""
    words = np.zeros(-(-size // 64), np.uint64)
    words.view(np.uint8)[: packed.size] = packed
    positions = np.empty(count, np.int32)
    compiled.bit_positions(words, positions)
    return positions
