"""Masks of one bit per element, the lowest bit of a byte first, and what several of them have in common."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import Array


def packed_bytes(size: int) -> int:
    """Return how many bytes a mask of `size` elements takes.

    >>> [packed_bytes(n) for n in (0, 1, 8, 9)]
    [0, 1, 1, 2]
    """
    return -(-size // 8)


def pack(mask: Array) -> Array:
    """Pack a mask (n,) into bytes (ceil(n / 8),), uint8; the last byte is filled up with zeros.

    >>> pack(np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], bool)).tolist()
    [9, 1]
    """
    return np.packbits(mask, bitorder="little")


def unpack(packed: Array, size: int) -> Array:
    """Unpack the first `size` bits of bytes, uint8, into a mask (size,), bool.

    >>> unpack(np.array([9, 1], np.uint8), 9).astype(int).tolist()
    [1, 0, 0, 1, 0, 0, 0, 0, 1]
    """
    return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)


def is_padded_with_zeros(packed: Array, size: int) -> bool:
    """Tell whether the bits that follow the first `size` ones in the last byte are zero."""
    return size % 8 == 0 or int(packed[-1]) >> (size % 8) == 0


def count(packed: Array) -> int:
    """Return how many bits are set in bytes, uint8."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def overlaps(packed: Array) -> Array:
    """Count what each two masks share: (T, bytes) uint8 -> (T, T) int64, the masks' own counts on the diagonal.

    Counts of parts of a tensor may be added: the bits that fill up a last byte are zero.

    >>> overlaps(np.array([[0b0111], [0b1110]], np.uint8)).tolist()
    [[3, 2], [2, 3]]
    """
    tasks = len(packed)
    shared = np.zeros((tasks, tasks), np.int64)
    for s in range(tasks):
        for t in range(s, tasks):
            shared[s, t] = shared[t, s] = count(packed[s] & packed[t])
    return shared


def jaccard(shared: Array) -> Array:
    """Return the shared entries of each two masks over those that either has, from the counts of `overlaps`.

    Two empty masks are equal: 1.

    Args:
        shared: (T, T), int64.

    Returns:
        (T, T), float64, 0 to 1.

    Example:
        >>> jaccard(np.array([[3, 2], [2, 3]])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    own = np.diagonal(shared)
    either = own[:, None] + own[None, :] - shared
    return np.where(either == 0, 1.0, shared / np.maximum(either, 1))


def agreement(packed: Array, size: int) -> Array:
    """Count the elements that exactly k of T masks select, for k from 0 to T.

    The number of masks that select an element is itself held in packed bits, one row per binary digit, and each
    mask is added to all of them at once.

    Args:
        packed: (T, bytes), uint8.
        size: Elements of a mask.

    Returns:
        (T + 1,), int64; its sum is `size`.

    Example:
        >>> agreement(np.array([[0b0111], [0b1110]], np.uint8), 5).tolist()
        [1, 2, 2]
    """
    tasks = len(packed)
    digits = np.zeros((tasks.bit_length(), packed.shape[1]), np.uint8)
    for mask in packed:
        carry = mask
        for digit in digits:
            digit[:], carry = digit ^ carry, digit & carry
    found = np.zeros(tasks + 1, np.int64)
    for k in range(1, tasks + 1):
        chosen = np.full(packed.shape[1], 0xFF, np.uint8)
        for place, digit in enumerate(digits):
            chosen &= digit if k >> place & 1 else ~digit
        found[k] = count(chosen)
    found[0] = size - found.sum()
    return found
