"""Helpers of the tests of merge methods."""

import numpy as np
import pytest


def _levels(seed, tasks=3, size=60, most=8):
    """Draw a base (size,) and task vectors (tasks, size): multiples of 1/8, so that sums are exact and ties many."""
    rng = np.random.default_rng(seed)
    return rng.integers(-40, 41, size) / 8, rng.integers(-most, most + 1, (tasks, size)) / 8


@pytest.fixture
def levels():
    """`levels(seed, tasks=3, size=60, most=8)` gives a base and task vectors in float64."""
    return _levels


def _top(vector, rank):
    """Return which entries of a list are its `rank` largest by magnitude, the earlier first when equal."""
    order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))
    return [i in set(order[:rank]) for i in range(len(vector))]


@pytest.fixture
def top():
    """`top(vector, rank)` tells which entries a full sort puts first."""
    return _top


def _elect(columns, merge, undecided):
    """Merge entry by entry those whose sign is that of the sum: plain Python, one number at a time."""
    merged = []
    for column in zip(*columns, strict=True):
        vote = sum(column)
        sign = (vote > 0) - (vote < 0) or undecided
        agreeing = [v for v in column if v * sign > 0]
        if not agreeing:
            merged.append(0.0)
        elif merge == "max":
            merged.append(max(agreeing, key=abs))
        else:
            merged.append(sum(agreeing) / (len(agreeing) if merge == "mean" else 1))
    return merged


@pytest.fixture
def elect():
    """`elect(vectors, merge, undecided)` merges those who agree with the elected sign."""
    return _elect
