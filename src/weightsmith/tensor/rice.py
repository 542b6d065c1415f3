"""Golomb-Rice coding of the gaps between selected elements, as in ComPEFT (Yadav et al., 2023, arXiv:2311.13171).

A gap, the number of elements that are passed over, is written as its quotient by 2^b in as many zeros, a one, and its
remainder in b bits, lowest first.
"""

from __future__ import annotations

import math
import struct
from functools import cache

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.damage import damaged

_HEAD = struct.Struct("<BI")  # b, how many are selected
HEAD_BYTES = _HEAD.size
_TABLES = 5  # b from 0 to 4 is looked up: two and more codes at a time
_LARGEST = 31  # b of a frame that is read
_FAULTS = ("", "an end within a code", "one beyond the end", "more bits than they take")


def rice_parameter(density: float) -> int:
    """Return b for a share of selected elements: 1 + floor(log2(log(phi - 1) / log(1 - density))), at least 0.

    phi is the golden ratio. The remainder of a gap takes b bits.

    >>> [rice_parameter(p) for p in (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)]
    [0, 6, 4, 3, 2, 1, 0, 0]
    """
    if not 0 < density < 1:
        return 0
    ratio = math.log((math.sqrt(5) - 1) / 2) / math.log1p(-density)
    return max(0, 1 + math.floor(math.log2(ratio)))


def expected_bits(density: float) -> float:
    """Return the bits per element of a ternary vector whose gaps are Rice coded, for elements selected at random.

        density * (b + 1 / (1 - (1 - density)^(2^b)) + 1)

    The last 1 is the sign. The vector's scale is not counted.

    >>> [round(expected_bits(p), 3) for p in (0.05, 0.1, 0.2, 0.3, 0.5)]
    [0.339, 0.576, 0.939, 1.188, 1.5]
    """
    if density == 0:
        return 0.0
    b = rice_parameter(density)
    return density * (b + 1 / (1 - (1 - density) ** (1 << b)) + 1)


def entropy_bits(density: float) -> float:
    """Return the least bits per element that any code of a random ternary vector takes; see `expected_bits`.

        -density * log2(density / 2) - (1 - density) * log2(1 - density)

    >>> [round(entropy_bits(p), 3) for p in (0.05, 0.1, 0.2, 0.3, 0.5)]
    [0.336, 0.569, 0.922, 1.181, 1.5]
    """
    kept, passed = density, 1 - density
    return (-kept * math.log2(kept / 2) if kept else 0.0) - (passed * math.log2(passed) if passed else 0.0)


def rice_bytes(positions: Array, size: int) -> int:
    """Return the length of what `encode_positions` returns, without coding."""
    b = rice_parameter(positions.size / size)
    return HEAD_BYTES + -(-_bits(positions, b) // 8)


def encode_positions(positions: Array, size: int) -> bytes:
    """Code the flat indices of selected elements, (k,) int32, ascending, k >= 1, of `size` elements.

    Returns:
        b in a byte, k in four, and the codes; the last byte is filled up with zeros.
    """
    b = rice_parameter(positions.size / size)
    length = -(-_bits(positions, b) // 8)
    words = np.zeros(length // 8 + 2, np.uint64)
    compiled.rice_encode(positions, b, words)
    return _HEAD.pack(b, positions.size) + words.view(np.uint8)[:length].tobytes()


def coded_count(data: Array, size: int, where: str) -> int:
    """Return how many of `size` elements coded bytes (n,) uint8, or their beginning, say that they select.

    Raises:
        CheckpointError: More than there are, or the bytes are too few to tell.
    """
    if data.size < HEAD_BYTES:
        raise damaged(where, f"{HEAD_BYTES} bytes before the codes", f"{data.size}")
    b, selected = _HEAD.unpack(data[:HEAD_BYTES].tobytes())
    if b > _LARGEST:
        raise damaged(where, f"remainders of at most {_LARGEST} bits", f"{b}")
    if selected > size:
        raise damaged(where, f"at most {size} selected elements", f"{selected}")
    return int(selected)


def decode_positions(data: Array, size: int, where: str) -> Array:
    """Return the indices (k,) int32 that `encode_positions` coded: data (n,) uint8, used to its last bit.

    Raises:
        CheckpointError: The bytes are cut short or too many, or select elements beyond `size`.
    """
    positions = np.empty(coded_count(data, size, where), np.int32)
    length = data.size - HEAD_BYTES
    words = np.zeros(length // 8 + 3, np.uint64)
    words.view(np.uint8)[:length] = data[HEAD_BYTES:]
    fault = int(compiled.rice_decode(words, 8 * length, int(data[0]), size, positions))
    if fault:
        raise damaged(where, f"codes of {positions.size} selected elements out of {size}", _FAULTS[fault])
    return positions


@cache
def tables() -> Array:
    """Return what `compiled.rice_decode_two` looks codes up in, for small b."""
    found: Array = compiled.rice_tables(_TABLES)
    return found


def _bits(positions: Array, b: int) -> int:
    """Return the bits of the codes of all gaps."""
    return int(compiled.rice_bits(positions, b))
