"""Iso-CTS."""

import numpy as np
import pytest

from weightsmith.merge.iso_c import iso_c
from weightsmith.merge.iso_cts import iso_cts, split_rank


def nearest(matrix):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def slow(taus, common=0.8):
    """Follow the card, line by line."""
    rank, count = min(taus[0].shape), len(taus)
    each = round((rank - int(rank * common)) / count)
    shared = rank - each * count
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    u, s, v = u[:, :shared], s[:shared], v[:shared]
    left, values, right = [], [], []
    for tau in taus:
        a, b, c = np.linalg.svd(tau - u @ (u.T @ tau), full_matrices=False)
        left.append(a[:, :each])
        values.append(b[:each])
        right.append(c[:each])
    mean = np.concatenate([*values, s]).mean()
    return mean * nearest(np.concatenate([*left, u], 1)) @ nearest(np.concatenate([*right, v]))


def draw(shape, tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) * 0.1 for _ in range(tasks)]


def test_by_hand():
    # r = 4, so 2 are common: those of 8 and 1.5; task 1 has nothing else, task 2 the 1. Mean (8 + 1.5 + 0 + 1) / 4.
    taus = [np.diag([4.0, 0.0, 1.5, 0.0]), np.diag([4.0, 0.0, 0.0, 1.0])]
    found = iso_cts(np.zeros((4, 4)), taus, common=0.5)
    np.testing.assert_allclose(found, np.diag([2.625, 0, 2.625, 2.625]), atol=1e-12)


@pytest.mark.parametrize("shape", [(24, 24), (20, 50), (50, 20)])
@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("common", [0.5, 0.8])
def test_against_decompositions(shape, tasks, common):
    base, taus = draw(shape, tasks)
    found = iso_cts(base, taus, common=common, lambda_=1.5)
    np.testing.assert_allclose(found, base + 1.5 * slow(taus, common), atol=1e-7)


@pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
def test_all_singular_values_are_equal(shape):
    _, taus = draw(shape)
    s = np.linalg.svd(iso_cts(np.zeros(shape), taus), compute_uv=False)
    np.testing.assert_allclose(s, s[0], rtol=1e-7)


@pytest.mark.parametrize("shape", [(8, 8), (3, 12), (1, 7), (7, 1), (1, 1), (12, 3)])
def test_all_common_is_iso_c(shape):
    base, taus = draw(shape)
    np.testing.assert_allclose(iso_cts(base, taus, common=1.0), iso_c(base, taus), atol=1e-9)


def test_rounding_may_leave_tasks_nothing():
    assert split_rank(5, 3, 0.8) == 0
    assert split_rank(2, 3, 0.0) == 0  # round(2 / 3) = 1 would need 3 directions
    assert split_rank(768, 8, 0.8) == 19
    base, taus = draw((5, 9))
    np.testing.assert_allclose(iso_cts(base, taus), iso_c(base, taus), atol=1e-9)


def test_deficient_and_zero():
    rng = np.random.default_rng(2)
    taus = [rng.standard_normal((20, 2)) @ rng.standard_normal((2, 30)) for _ in range(3)]
    s = np.linalg.svd(iso_cts(np.zeros((20, 30)), taus), compute_uv=False)
    assert (s > 1e-9).sum() == 6  # the sum holds all six directions; 14 stay zero
    base = rng.standard_normal((4, 4))
    assert np.array_equal(iso_cts(base, [np.zeros((4, 4))] * 2), base)


def test_vectors_get_the_mean():
    assert iso_cts(np.ones(2), [np.array([1.0, 2.0]), np.array([3.0, 0.0])], lambda_=0.5).tolist() == [2.0, 1.5]
