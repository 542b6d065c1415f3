"""DARE."""

import numpy as np
import pytest

from weightsmith.merge.dare import dare
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.method import Tile
from weightsmith.tensor.select import random_key


def slow(base, taus, density, coefficients, seed, name):
    """One entry at a time, with the generator written out in whole numbers."""
    merged = []
    for i, b in enumerate(base.tolist()):
        total = 0.0
        for t, c in enumerate(coefficients):
            z = (random_key(seed, t, name) + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            uniform = ((z ^ (z >> 31)) >> 11) / 2**53
            total += c * (float(taus[t, i]) / density if uniform < density else 0.0)
        merged.append(b + 0.5 * total)
    return merged


def test_by_hand():
    # Half the entries of (4, 4, ...) survive and are doubled: every result is 1 or 1 + 8.
    found = dare(np.ones(1000), [np.full(1000, 4.0)], density=0.5)
    assert set(found.tolist()) == {1.0, 9.0}
    assert 400 < (found == 9.0).sum() < 600


@pytest.mark.parametrize("density", [0.5, 0.125, 1.0])
def test_against_one_number_at_a_time(density, levels):
    base, taus = levels(1)
    coefficients = (1.0, -0.5, 2.0)
    found = dare(
        base, list(taus), density=density, coefficients=coefficients, lambda_=0.5, seed=9, tile=Tile(name="a.w")
    )
    expected = slow(base, taus, density, coefficients, 9, "a.w")
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


def test_full_density_is_task_arithmetic(levels):
    base, taus = levels(2)
    parameters = {"coefficients": (1.0, 0.3, -1.0), "lambda_": 0.7}
    found = dare(base, list(taus), density=1.0, **parameters)
    assert found.tobytes() == task_arithmetic(base, list(taus), **parameters).tobytes()


def test_mean_over_seeds_is_task_arithmetic(levels):
    base, taus = levels(3, size=16)
    mean = sum(dare(base, list(taus), density=0.5, seed=seed) for seed in range(1000)) / 1000
    deviation = np.sqrt((taus**2).sum(0) / 1000)  # variance v^2 (1 - p) / p, p = 1/2
    assert np.all(np.abs(mean - base - taus.sum(0)) <= 5 * deviation)


def test_tasks_have_masks_of_their_own():
    one = np.ones(200)
    first, second = (dare(np.zeros(200), [one, one], coefficients=c) != 0 for c in ((1, 0), (0, 1)))
    assert 60 < (first != second).sum() < 140
