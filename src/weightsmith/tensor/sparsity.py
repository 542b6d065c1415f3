"""How many entries a share is in mergekit's counting, and bounds that differ between vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor.select import Kth


def band(density: float, gamma: float, way: str, size: int) -> list[int]:
    """Return the ranks (outer, inner) by magnitude that bound what is kept: the outer largest go, those up to the inner stay.

    "magnitude" keeps the max(1, trunc(density * size)) largest, none for density <= 0. "outliers" drops the
    trunc(gamma * size) largest, fewer where too few would be left, and keeps trunc(density * size). Density >= 1 keeps all.
    """
    kept = min(max(0, int(density * size)), size)
    if density >= 1:
        return [0, size]
    if way == "magnitude":
        return [0, max(1, kept) if density > 0 else 0]
    below = max(0, size - kept - int(gamma * size))
    return [max(0, size - below - kept), max(0, size - below)]


def own_kth(kths: Sequence[Kth]) -> Kth:
    """Return the first vector's bound of the first Kth, the second's of the second, and so on, as one Kth."""
    return Kth(
        np.stack([k.value[t] for t, k in enumerate(kths)]),
        np.stack([k.cut[t] for t, k in enumerate(kths)]),
    )
