"""Keeping entries at random, each with a probability of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, namespace
from weightsmith.tensor.select import uniform


def keep_random(vectors: Array, probabilities: Array, keys: Sequence[int], start: int = 0) -> Array:
    """Keep each entry with its probability, unscaled; zero the rest.

    Entry i of vector t is kept where u(key_t, i) < probability; u as in `select.drop_random`, so any tile gives the same.

    Args:
        vectors: (T, n), from flat index `start` on.
        probabilities: (T, n), or (T, 1) for one per vector; of the vectors' dtype.
        keys: T 64-bit keys, see `select.random_key`.

    Returns:
        (T, n), a new array.
    """
    if is_compiled(vectors, probabilities):
        return compiled.keep_random(vectors, probabilities, np.array(keys, np.uint64), start)
    xp = namespace(vectors)
    drawn = xp.stack([cast(uniform(vectors[t], keys[t], start), "float64") for t in range(len(keys))])
    return xp.where(drawn * 2.0**-53 < cast(probabilities, "float64"), vectors, xp.zeros_like(vectors))
