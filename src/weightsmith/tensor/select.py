"""Which entries: the largest by magnitude, a random share, those that a task needs.

A k-th magnitude is exact. `Kth` says who is among the k largest: |v| > value, or |v| == value and the entry lies
before `cut`; so among equals the earlier entry wins, and exactly k are taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, is_torch, like, namespace
from weightsmith.tensor.sign import majority


@dataclass(frozen=True)
class Kth:
    """The k-th largest magnitude, or derived value, of each vector, and where the last of the k lies.

    Attributes:
        value: (T, units), float64: the k-th; infinity for k = 0. A unit is the whole vector, or a row.
        cut: (T, units), int64: entries equal to `value` are taken before this index of their unit.
    """

    value: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    cut: np.ndarray[tuple[int, int], np.dtype[np.int64]]


def kth_magnitude(vectors: Array, ranks: Sequence[int], units: int = 1) -> list[Kth]:
    """Find the k-th largest magnitudes of vectors held in memory.

    Args:
        vectors: (T, n); each vector is `units` rows of n / units entries.
        ranks: The k's, 0 <= k <= n / units.
        units: Rows per vector, searched one by one.

    Returns:
        One Kth per rank.
    """
    return kth_largest(namespace(vectors).abs(vectors), ranks, units)


def kth_largest(values: Array, ranks: Sequence[int], units: int = 1) -> list[Kth]:
    """Find the k-th largest of values, sign and all; as `kth_magnitude`, of (V, n)."""
    count, size = values.shape[0], values.shape[1] // units
    host = np.asarray(values.cpu() if is_torch(values) else values).reshape(count, units, size)
    wanted = sorted({size - k for k in ranks if k > 0})
    parted = np.partition(host, wanted, axis=-1) if wanted else host
    found = []
    for k in ranks:
        if k == 0:
            value = np.full((count, units), np.inf)
            found.append(Kth(value, np.zeros((count, units), np.int64)))
            continue
        value = parted[..., size - k]
        cut = compiled.cuts(np.ascontiguousarray(host), np.ascontiguousarray(value), k)
        found.append(Kth(value.astype(np.float64) + 0.0, cut))  # -0 is 0
    return found


def is_among_largest(vectors: Array, kth: Kth, start: int = 0) -> Array:
    """Tell which entries are among the k largest of their unit. (T, n) -> (T, n), bool.

    `start` is the index, in its unit, of the first entry given; only for units = 1.
    """
    return is_above(namespace(vectors).abs(vectors), kth, start)


def is_above(values: Array, kth: Kth, start: int = 0) -> Array:
    """Tell which values, sign and all, are among the k largest of their unit; as `is_among_largest`, of (V, n)."""
    xp = namespace(values)
    count, units = kth.value.shape
    rows = values.reshape(count, units, -1)
    index = xp.arange(rows.shape[2])
    value, cut = like(kth.value[:, :, None], values), kth.cut[:, :, None] - start
    if is_torch(values):
        index, cut = index.to(values.device), xp.as_tensor(cut, device=values.device)
    chosen = (rows > value) | ((rows == value) & (index < cut))
    return chosen.reshape(values.shape)


def trim(vectors: Array, inside: Kth, outside: Kth | None = None, start: int = 0) -> Array:
    """Keep the entries among the k largest of `inside` and not among those of `outside`; zero the rest.

    Args:
        vectors: (T, n), part of a longer vector from index `start` on (start = 0 where units > 1).
        inside: From `kth_magnitude` or a streamed search.
        outside: The largest, to be dropped as well; none by default.

    Returns:
        (T, n), a new array.
    """
    if is_compiled(vectors):
        bounds = inside if outside is None else outside
        return compiled.trim(
            vectors, inside.value, inside.cut - start, bounds.value, bounds.cut - start, outside is not None
        )
    keep = is_among_largest(vectors, inside, start)
    if outside is not None:
        keep = keep & ~is_among_largest(vectors, outside, start)
    return vectors * keep


def sift(vectors: Array, low: Array, top: Array, votes: bool = True) -> tuple[Array, Array, int]:
    """Part the entries of a tile into open ones, where any vector's magnitude lies in one of its windows, and others.

    Args:
        vectors: (T, n), float32 or float64 numpy; without NaN.
        low: (T, ranks), the windows' smallest magnitudes, of the vectors' dtype.
        top: (T, ranks), their largest.
        votes: Whether the majority is asked for.

    Returns:
        The open entries' indices (m,) uint32, in order; how many of each vector lie above its windows (T, ranks), int64;
        the majority, over the entries that are not open, of the vectors trimmed to what lies above the first window, 0
        where it is not asked for.
    """
    if is_compiled(vectors):
        index, above = np.empty(vectors.shape[1] + 1, np.uint32), np.zeros(low.shape, np.int64)
        found, balance = compiled.sift(vectors, low, top, above, index, votes)
        return index[:found], above, balance
    magnitude = np.abs(vectors)[:, None]
    is_above = magnitude > top[:, :, None]
    is_open = ((magnitude >= low[:, :, None]) & ~is_above).any((0, 1))
    kept = (vectors * is_above[:, 0])[:, ~is_open]
    return np.flatnonzero(is_open).astype(np.uint32), is_above.sum(2), majority(kept) if votes else 0


def sorted_magnitudes(magnitudes: Array) -> Array:
    """Return magnitudes (n,) in ascending order; numpy alone, without NaN and -0."""
    if magnitudes.dtype == np.float32 and is_compiled(magnitudes):
        return compiled.sorted_bits(magnitudes.view(np.uint32)).view(np.float32)  # they sort as their bits do
    return np.sort(magnitudes)


def ordered(values: Array) -> Array:
    """Return numbers (V, n) as unsigned whole numbers of the same order and width; -0 as 0. Numpy alone."""
    signed = np.dtype(f"i{values.dtype.itemsize}")
    bits = np.ascontiguousarray(values + values.dtype.type(0)).view(signed)  # + 0 turns -0 into 0
    least = np.iinfo(signed).min
    return (bits ^ ((bits >> (8 * signed.itemsize - 1)) | least)).view(f"u{signed.itemsize}")


def unordered(keys: Array) -> Array:
    """Return the numbers that `ordered` turned into keys."""
    signed = np.dtype(f"i{keys.dtype.itemsize}")
    bits = keys.view(signed)
    return (bits ^ (~(bits >> (8 * signed.itemsize - 1)) | np.iinfo(signed).min)).view(f"f{signed.itemsize}")


def random_key(seed: int, task: int, name: str) -> int:
    """Return the 64-bit key of a random mask, from the seed, the task's position and the tensor's name."""
    text = f"{seed}\0{task}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def drop_random(vectors: Array, density: float, keys: Sequence[int], start: int = 0) -> Array:
    """Keep each entry with probability `density`, scaled by 1 / density; zero the rest.

    Entry i of vector t is kept where u(key_t, i) < density; u is the SplitMix64 output at position i of the
    sequence that starts at key_t, as a fraction of 2**53. No state: any tile gives the same mask.

    Args:
        vectors: (T, n), from flat index `start` on.
        density: Share kept, in (0, 1].
        keys: T 64-bit keys, see `random_key`.

    Returns:
        (T, n), a new array.
    """
    bound = round(density * 2**53)
    scale = like(1.0 / density, vectors)
    if is_compiled(vectors):
        return compiled.drop_random(vectors, np.array(keys, np.uint64), np.uint64(bound), scale[()], start)
    rows = [uniform(vectors[t], keys[t], start) < bound for t in range(len(keys))]
    return vectors * scale * namespace(vectors).stack(rows)


def uniform(vector: Array, key: int, start: int) -> Array:
    """Return the 53-bit SplitMix64 numbers of one vector, (n,), int64: what is random about its entries."""
    xp = namespace(vector)
    index = cast(xp.arange(vector.shape[0]), "int64") + (start + 1)
    if is_torch(vector):
        index = index.to(vector.device)
    state = _signed(key) + index * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shift_right(state, shift)) * _signed(factor)
    return _shift_right(state ^ _shift_right(state, 31), 11)


def _signed(value: int) -> int:
    """Return a 64-bit pattern as the signed number that int64 arrays hold."""
    return value - 2**64 if value >= 2**63 else value


def _shift_right(state: Array, by: int) -> Array:
    """Shift int64 right, filling with zeros."""
    return (state >> by) & (2 ** (64 - by) - 1)


def task_mask(task_vectors: Array, merged: Array, mask_lambda: float) -> Array:
    """TALL-masks: which entries of the merged vector each task needs.

    m_t = [ |tau_t| > mask_lambda * |merged - tau_t| ]

    Args:
        task_vectors: (T, n).
        merged: (n,), the merged task vector, scale 1.
        mask_lambda: Larger selects fewer entries.

    Returns:
        (T, n), bool.
    """
    xp = namespace(task_vectors)
    return xp.abs(task_vectors) > xp.abs(merged - task_vectors) * like(mask_lambda, task_vectors)


def count_tasks(task_vectors: Array, merged: Array, mask_lambda: float) -> Array:
    """Return how many tasks need each entry, by `task_mask`: (T, n), (n,) -> (n,), int32."""
    if is_compiled(task_vectors, merged):
        return compiled.count_tasks(task_vectors, merged, like(mask_lambda, task_vectors)[()])
    return cast(task_mask(task_vectors, merged, mask_lambda).sum(0), "int32")
