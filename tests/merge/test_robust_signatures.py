"""Robust Weight Signatures."""

import math

import numpy as np
import pytest

from weightsmith.merge.rebase import rebase
from weightsmith.merge.robust_signatures import robust_signatures


def slow_signature(start, clean, robust):
    """One number at a time."""
    there = [c - s for c, s in zip(clean.tolist(), start.tolist(), strict=True)]
    also = [r - s for r, s in zip(robust.tolist(), start.tolist(), strict=True)]
    square = math.fsum(c * c for c in there)
    factor = math.fsum(r * c for r, c in zip(also, there, strict=True)) / square if square else 0.0
    return np.array([r - factor * c for r, c in zip(also, there, strict=True)])


def test_by_hand():
    # d_c = (2, 0), d_r = (3, 4): the part of d_r along d_c is (3, 0), R = (0, 4).
    start, clean, robust = np.zeros(2), np.array([2.0, 0.0]), np.array([3.0, 4.0])
    target = np.array([1.0, 1.0])
    assert robust_signatures(target, [start, clean, robust]).tolist() == [1.0, 5.0]
    assert robust_signatures(target, [start, clean, robust], lambda_=-0.5).tolist() == [1.0, -1.0]
    assert robust_signatures(start, [clean, robust]).tolist() == [0.0, 4.0]


@pytest.mark.parametrize("seed", range(5))
def test_against_one_number_at_a_time(seed, levels):
    base, models = levels(seed)
    expected = base + 0.7 * slow_signature(*models)
    np.testing.assert_allclose(robust_signatures(base, list(models), lambda_=0.7), expected, rtol=0, atol=1e-13)


def test_the_signature_is_at_right_angles_to_clean_training():
    rng = np.random.default_rng(1)
    start = rng.standard_normal(5000).astype(np.float32)
    clean, robust = (start + rng.standard_normal(5000).astype(np.float32) / 8 for _ in range(2))
    robust += clean - start
    signature = robust_signatures(np.zeros(5000, np.float32), [start, clean, robust]).astype(np.float64)
    change = (clean - start).astype(np.float64)
    assert abs(signature @ change) < 1e-6 * np.linalg.norm(signature) * np.linalg.norm(change)
    assert np.linalg.norm(signature) > 1


def test_two_ways_to_apply(levels):
    base, models = levels(2)
    start = models[0]
    extracted = robust_signatures(start, list(models[1:]))
    by_hand = rebase(base, [start, extracted])
    np.testing.assert_allclose(by_hand, robust_signatures(base, list(models)), rtol=0, atol=1e-13)


def test_removing_undoes_applying(levels):
    base, models = levels(3)
    patched = robust_signatures(base, list(models))
    assert np.abs(patched - base).max() > 1
    np.testing.assert_allclose(robust_signatures(patched, list(models), lambda_=-1.0), base, rtol=0, atol=1e-13)


def test_robust_training_that_is_clean_training_leaves_nothing(levels):
    base, (start, clean, _) = levels(4)
    assert np.array_equal(robust_signatures(base, [start, clean, clean.copy()]), base)


def test_where_clean_training_changed_nothing_all_of_the_change_is_the_signature(levels):
    base, (start, _, robust) = levels(5)
    assert np.array_equal(robust_signatures(base, [start, start.copy(), robust]), base + (robust - start))
