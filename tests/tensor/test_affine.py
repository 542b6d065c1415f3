"""Affine bases of sets of factors."""

import numpy as np
import pytest

from weightsmith.tensor.affine import affine_basis, balanced, coefficients, rebuilt, turned
from weightsmith.tensor.spectral import leading


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_by_hand():
    # Points (0, 0) and (2, 0) of one position: mean (1, 0), direction +-(1, 0).
    points = [np.array([[0.0, 0.0]]), np.array([[2.0, 0.0]])]
    mean, basis = affine_basis(points, 1)
    assert mean.tolist() == [[1.0, 0.0]]
    np.testing.assert_allclose(np.abs(basis), [[[1.0, 0.0]]], atol=1e-15)
    for p, distance in zip(points, (-1.0, 1.0), strict=True):
        along = coefficients(p, mean, basis)
        np.testing.assert_allclose(along * basis[0, 0, 0], [[distance]])
        np.testing.assert_allclose(rebuilt(mean, basis, along), p, atol=1e-15)


@pytest.mark.parametrize(("count", "r"), [(2, 5), (5, 3), (4, 4), (1, 3), (3, 1)])
def test_enough_directions_rebuild_exactly_and_none_give_the_mean(count, r):
    points = [draw((7, r), seed) for seed in range(count)]
    mean, basis = affine_basis(points, min(r, count - 1))
    for p in points:
        np.testing.assert_allclose(rebuilt(mean, basis, coefficients(p, mean, basis)), p, atol=1e-12)
    mean, basis = affine_basis(points, 0)
    assert basis.shape == (7, 0, r)
    np.testing.assert_allclose(rebuilt(mean, basis, coefficients(points[0], mean, basis)), sum(points) / count)


def test_error_is_what_the_discarded_singular_values_say():
    points = [draw((6, 5), seed) for seed in range(8)]
    stack = np.stack(points)
    spectra = [np.linalg.svd(stack[:, i] - stack[:, i].mean(0), compute_uv=False) for i in range(6)]
    errors = []
    for p in range(6):
        mean, basis = affine_basis(points, p)
        errors.append(sum(((rebuilt(mean, basis, coefficients(x, mean, basis)) - x) ** 2).sum() for x in points))
        assert errors[-1] == pytest.approx(sum((s[p:] ** 2).sum() for s in spectra), abs=1e-9)
    assert errors == sorted(errors, reverse=True)


def test_positions_are_cut_without_a_trace(monkeypatch):
    points = [draw((50, 4), seed) for seed in range(5)]
    whole = affine_basis(points, 2)
    monkeypatch.setattr("weightsmith.tensor.affine.POINTS", 60)
    for a, b in zip(whole, affine_basis(points, 2), strict=True):
        assert a.tobytes() == b.tobytes()


def test_points_that_are_equal_need_no_direction():
    mean, basis = affine_basis([np.full((3, 2), 0.1)] * 3, 2)
    np.testing.assert_allclose(mean, 0.1)
    assert not basis.any()
    assert not affine_basis([np.zeros((3, 2))] * 2, 1)[1].any()


def test_turning_keeps_the_product_and_undoes_a_rotation():
    left, right = draw((9, 4)), draw((4, 11), 1)
    rotation = np.linalg.qr(draw((4, 4), 2))[0]
    found = turned(left @ rotation, rotation.T @ right, left, right)
    np.testing.assert_allclose(found[0], left, atol=1e-12)
    np.testing.assert_allclose(found[1], right, atol=1e-12)
    to = draw((9, 4), 3), draw((4, 11), 4)
    found = turned(left, right, *to)
    np.testing.assert_allclose(found[0] @ found[1], left @ right, atol=1e-12)

    def distance(a, b):
        return ((a - to[0]) ** 2).sum() + ((b - to[1]) ** 2).sum()

    for seed in range(20):
        q = np.linalg.qr(draw((4, 4), seed))[0]
        assert distance(*found) <= distance(left @ q, q.T @ right) + 1e-9


def test_a_pair_without_rank_can_be_turned():
    found = turned(np.zeros((3, 2)), np.zeros((2, 4)), draw((3, 2)), draw((2, 4)))
    assert not found[0].any()
    assert not found[1].any()


def test_balanced_factors():
    matrix = draw((6, 9))
    left, right = balanced(leading(matrix, 6), 6)
    np.testing.assert_allclose(left @ right, matrix, atol=1e-12)
    np.testing.assert_allclose(left.T @ left, right @ right.T, atol=1e-9)
    left, right = balanced(leading(matrix, 2), 4)
    assert left.shape == (6, 4)
    assert not left[:, 2:].any()
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(left @ right, (u[:, :2] * s[:2]) @ v[:2], atol=1e-12)
