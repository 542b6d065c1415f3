"""Singular vectors in few bits: the first ones in more, the later in fewer, with one scale for each run of entries.

Of b bits the levels are step * (k + 1/2 - 2^(b-1)) for codes k = 0 .. 2^b - 1, symmetric and without 0, and each entry takes the
nearest. The step of a run is the one of STEPS shares of max|x| / (2^(b-1) - 1/2) with the smallest squared error: in two bits
a few large entries are cut off rather than all small ones rounded badly. A run of zeros has step 0.

Codes lie vector after vector, the lowest bits of a byte first; each vector begins a byte of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from weightsmith.tensor.arrays import Array

STEPS = 12  # shares of the largest magnitude that are tried, from 1 down to 1 / STEPS
BITS = (8, 4, 2)


def to_codes(vectors: Array, bits: Sequence[int], widths: Sequence[int], group: int) -> tuple[Array, Array]:
    """Return codes and scales of vectors, the first widths[0] in bits[0] bits, the next widths[1] in bits[1], ...

    Args:
        vectors: (k, length), the most important first; k is the sum of the widths.
        bits: Of each part, one of BITS.
        widths: How many vectors each part has.
        group: Entries that share a scale.

    Returns:
        (`code_bytes`,) uint8 and (`scale_count`,) float16.
    """
    codes: list[Array] = []
    scales: list[Array] = []
    for part, width in _parts(vectors, bits, widths):
        count, length = part.shape
        padded = np.zeros((count, -(-length // group) * group), np.float32)
        padded[:, :length] = part
        runs = padded.reshape(-1, group)
        there = np.broadcast_to(np.arange(padded.shape[1]) < length, padded.shape).reshape(-1, group)
        steps = _steps(runs, there, width)
        scales.append(steps)
        levels = 1 << (width - 1)
        safe = np.where(steps > 0, steps, np.float16(1)).astype(np.float32)[:, None]
        found = np.clip(np.floor(runs / safe) + levels, 0, 2 * levels - 1).astype(np.uint8)
        codes.append(_packed(found.reshape(padded.shape)[:, :length], width))
    return _joined(codes, np.uint8), _joined(scales, np.float16)


def from_codes(
    codes: Array, scales: Array, length: int, bits: Sequence[int], widths: Sequence[int], group: int
) -> Array:
    """Return the vectors (k, length), float32, that `to_codes` stored. codes: (`code_bytes`,); scales: (`scale_count`,)."""
    out = np.empty((sum(widths), length), np.float32)
    place = code = scale = 0
    runs = -(-length // group)
    for count, width in zip(widths, bits, strict=True):
        row = -(-length * width // 8)
        packed = codes[code : code + count * row].reshape(count, row)
        steps = scales[scale : scale + count * runs].astype(np.float32).reshape(count, runs)
        entries = _unpacked(packed, width)[:, :length].astype(np.float32)
        entries += np.float32(0.5 - (1 << (width - 1)))
        out[place : place + count] = entries * np.repeat(steps, group, 1)[:, :length]
        place, code, scale = place + count, code + count * row, scale + count * runs
    return out


def code_bytes(length: int, bits: Sequence[int], widths: Sequence[int]) -> int:
    """Return how many bytes the codes take."""
    return sum(count * -(-length * width // 8) for count, width in zip(widths, bits, strict=True))


def scale_count(length: int, widths: Sequence[int], group: int) -> int:
    """Return how many scales there are."""
    return sum(widths) * -(-length // group)


def widths_of(rank: int, wanted: Sequence[int]) -> list[int]:
    """Return how many of `rank` vectors each part gets: as many as wanted while they last, the last part all others.

    >>> widths_of(300, [20, 180]), widths_of(50, [20, 180])
    ([20, 180, 100], [20, 30, 0])
    """
    found: list[int] = []
    for want in wanted:
        found.append(min(want, rank - sum(found)))
    return [*found, rank - sum(found)]


def effective_bits(shape: tuple[int, int], bits: Sequence[int], widths: Sequence[int], group: int) -> float:
    """Return the bits per entry of a (rows, columns) matrix stored by two such factors, scales included."""
    stored = sum(8 * code_bytes(n, bits, widths) + 16 * scale_count(n, widths, group) for n in shape)
    return stored / (shape[0] * shape[1])


def _parts(vectors: Array, bits: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[Array, int]]:
    ends = np.cumsum([0, *widths])
    for begin, end, width in zip(ends[:-1], ends[1:], bits, strict=True):
        yield vectors[begin:end], width


def _steps(runs: Array, there: Array, width: int) -> Array:
    """Return the step of each run (n, group), float16; entries that are not `there` do not count."""
    levels = 1 << (width - 1)
    largest = np.abs(runs).max(1, initial=0.0) / np.float32(levels - 0.5)
    best, least = np.zeros(len(runs), np.float16), np.full(len(runs), np.inf, np.float32)
    for share in range(STEPS, 0, -1):
        steps = (largest * np.float32(share / STEPS)).astype(np.float16)
        wide = np.where(steps > 0, steps, np.float16(1)).astype(np.float32)[:, None]
        near = (np.clip(np.floor(runs / wide), -levels, levels - 1) + np.float32(0.5)) * wide
        error = np.square((near - runs) * there).sum(1)
        better = (error < least) & (steps > 0)
        best, least = np.where(better, steps, best), np.where(better, error, least)
    return best


def _packed(codes: Array, width: int) -> Array:
    """Return codes (count, length) as bytes, 8 / width in each."""
    per = 8 // width
    padded = np.zeros((len(codes), -(-codes.shape[1] // per) * per), np.uint8)
    padded[:, : codes.shape[1]] = codes
    out = padded[:, ::per].copy()
    for lane in range(1, per):
        out |= padded[:, lane::per] << np.uint8(lane * width)
    return out


def _unpacked(packed: Array, width: int) -> Array:
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    lanes = (packed[..., None] >> shifts) & np.uint8((1 << width) - 1)
    return lanes.reshape(len(packed), packed.shape[1] * len(shifts))


def _joined(parts: Sequence[Array], dtype: type) -> Array:
    return np.concatenate([p.reshape(-1) for p in parts]).astype(dtype, copy=False) if parts else np.empty(0, dtype)
