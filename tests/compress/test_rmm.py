"""Factors of all tasks in one affine basis."""

import sys

import numpy as np
import pytest

from weightsmith.compress.rmm import rmm
from weightsmith.matrices import Matrices
from weightsmith.tensor import affine


def draw(shape, rank, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))


def packed(taus, rank, basis):
    shared = rmm.shared_arrays(Matrices(len(taus), taus[0].shape, lambda t: taus[t]), {"rank": rank, "basis": basis})
    return shared, [rmm(tau, shared) for tau in taus]


def product(shared, part):
    left = affine.rebuilt(shared["mean_left"], shared["basis_left"], part.arrays["left"])
    right = affine.rebuilt(shared["mean_right"], shared["basis_right"], part.arrays["right"])
    return left @ right.T


def cut(tau, rank):
    u, s, v = np.linalg.svd(tau, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def error(taus, rank, basis):
    shared, parts = packed(taus, rank, basis)
    return sum(np.square(product(shared, p) - cut(t, rank)).sum() for p, t in zip(parts, taus, strict=True))


def test_by_hand():
    # Factors of diag(4, 0) and diag(16, 0) at rank 1: (2, 0) and (4, 0) on both sides, mean (3, 0), coefficients -1 and 1.
    taus = [np.diag([4.0, 0.0]), np.diag([16.0, 0.0])]
    shared, parts = packed(taus, 1, 1)
    np.testing.assert_allclose(np.abs(shared["mean_left"]), [[3.0], [0.0]], atol=1e-9)
    np.testing.assert_allclose(np.abs(parts[0].arrays["left"]), [[1.0], [0.0]], atol=1e-6)
    for part, tau in zip(parts, taus, strict=True):
        np.testing.assert_allclose(product(shared, part), tau, atol=1e-5)


@pytest.mark.parametrize(("tasks", "rank"), [(2, 3), (4, 3), (3, 5), (1, 2)])
def test_one_direction_less_than_tasks_rebuilds_all(tasks, rank):
    taus = [draw((8, 11), rank, seed) for seed in range(tasks)]
    shared, parts = packed(taus, rank, tasks - 1)
    for part, tau in zip(parts, taus, strict=True):
        np.testing.assert_allclose(product(shared, part), tau, atol=2e-3 * np.abs(tau).max())


def test_no_direction_gives_the_mean_factors_to_all():
    taus = [draw((6, 5), 2, seed) for seed in range(3)]
    shared, parts = packed(taus, 2, 0)
    found = [product(shared, part) for part in parts]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0], shared["mean_left"] @ shared["mean_right"].T)


def test_error_falls_with_directions():
    taus = [draw((20, 16), 4, seed) for seed in range(6)]
    errors = [error(taus, 4, p) for p in range(5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * errors[0]


def test_turning_helps(monkeypatch):
    rng = np.random.default_rng(0)
    common = draw((20, 16), 4, 0)
    taus = [common + 0.1 * rng.standard_normal((20, 16)) for _ in range(6)]
    with_turns = error(taus, 4, 1)
    monkeypatch.setattr(sys.modules[rmm.function.__module__], "turned", lambda left, right, *_: (left, right))
    assert with_turns < error(taus, 4, 1)


def test_numbers_stored_follow_the_formula():
    # (p (r + T) + r) / (r T) of all factors: 0.6875 for T = 8, r = 16, p = 3.
    taus = [draw((24, 20), 16, seed) for seed in range(8)]
    shared, parts = packed(taus, 16, 3)
    stored = sum(x.size for x in shared.values()) + sum(x.size for p in parts for x in p.arrays.values())
    assert stored / (8 * 16 * (24 + 20)) == 0.6875


def test_a_task_added_later_is_as_good_as_its_place_in_the_basis():
    taus = [draw((8, 9), 2, seed) for seed in range(3)]
    shared, parts = packed(taus, 2, 2)
    again = rmm(taus[1], shared)
    np.testing.assert_array_equal(again.arrays["left"], parts[1].arrays["left"])
    new = rmm(draw((8, 9), 2, 9), shared)
    assert new.arrays["left"].shape == (8, 2)
    np.testing.assert_allclose(
        product(shared, new), draw((8, 9), 2, 9), atol=1e-4
    )  # p = r: every point is in the basis


def test_adapters_give_what_their_products_give():
    rng = np.random.default_rng(4)
    pairs = [(rng.standard_normal((7, 2)), rng.standard_normal((2, 9))) for _ in range(3)]
    taus = [a @ b for a, b in pairs]
    lazy = Matrices(3, (7, 9), lambda t: pytest.fail("loaded"), lambda t: pairs[t])
    shared = rmm.shared_arrays(lazy, {"rank": 2, "basis": 2})
    for tau in taus:
        np.testing.assert_allclose(product(shared, rmm(tau, shared)), tau, atol=1e-4)


def test_zero_task_vectors():
    shared, parts = packed([np.zeros((4, 3))] * 2, 2, 1)
    assert not product(shared, parts[0]).any()
