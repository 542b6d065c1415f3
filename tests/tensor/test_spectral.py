"""Singular vectors and polar factors through Gram matrices, against numpy's decompositions."""

import numpy as np
import pytest
import torch

from weightsmith.method import Matrices
from weightsmith.tensor import spectral

SHAPES = [(1, 1), (1, 9), (9, 1), (12, 12), (7, 20), (20, 7), (40, 64)]


def drawn(shape, seed=0, rank=None):
    rng = np.random.default_rng(seed)
    k = rank or min(shape)
    return rng.standard_normal((shape[0], k)) @ rng.standard_normal((k, shape[1]))


def ill(rows, columns, condition):
    """Return a matrix with singular values from 1 down to 1 / condition, and its polar factor."""
    rng = np.random.default_rng(1)
    r = min(rows, columns)
    u = np.linalg.qr(rng.standard_normal((rows, r)))[0]
    v = np.linalg.qr(rng.standard_normal((columns, r)))[0]
    return (u * np.geomspace(1, 1 / condition, r)) @ v.T, u @ v.T


@pytest.mark.parametrize("shape", SHAPES)
def test_leading_triplets_are_those_of_a_decomposition(shape):
    matrix = drawn(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    for rank in {1, (min(shape) + 1) // 2, min(shape)}:
        left, values, right = spectral.leading(matrix, rank)
        assert left.shape == (shape[0], rank)
        assert right.shape == (rank, shape[1])
        np.testing.assert_allclose(values, s[:rank], rtol=1e-9)
        np.testing.assert_allclose((left * values) @ right, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-9 * s[0])
        np.testing.assert_allclose(left.T @ left, np.eye(rank), atol=1e-9)
        np.testing.assert_allclose(right @ right.T, np.eye(rank), atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
def test_null_directions_are_zero(shape):
    matrix = drawn(shape, rank=3)
    left, values, right = spectral.leading(matrix, 8)
    assert np.count_nonzero(values) == 3
    assert not left[:, 3:].any()
    assert not right[3:].any()
    np.testing.assert_allclose((left * values) @ right, matrix, atol=1e-9)
    zero = spectral.leading(np.zeros(shape), 5)
    assert not any(part.any() for part in zero)
    assert not spectral.polar(np.zeros(shape))[0].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_and_nuclear_norm(shape):
    matrix = drawn(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    factor, values = spectral.polar(matrix)
    np.testing.assert_allclose(factor, u @ v, atol=1e-8)
    assert values.sum() == pytest.approx(s.sum(), rel=1e-9)


@pytest.mark.parametrize("shape", [(60, 60), (60, 90), (90, 60)])
@pytest.mark.parametrize("condition", [1e2, 1e4, 9e5])
def test_polar_factor_keeps_its_stated_accuracy(shape, condition):
    matrix, expected = ill(*shape, condition)
    found, _ = spectral.polar(matrix)
    assert np.abs(found - expected).max() < max(1e-12, 1e-17 * condition**2)
    small = found if shape[0] <= shape[1] else found.T
    np.testing.assert_allclose(small @ small.T, np.eye(60), atol=1e-5)


def test_polar_factor_of_a_deficient_matrix_is_a_partial_isometry():
    matrix = drawn((12, 20), rank=4)
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    found, _ = spectral.polar(matrix)
    np.testing.assert_allclose(found, u[:, :4] @ v[:4], atol=1e-9)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (80, 80)])
def test_split_completes_the_space(shape):
    matrix = drawn(shape)
    found, rest = spectral.split(matrix, 25)
    assert found.values.shape == (25,)
    if shape[0] <= shape[1]:
        both = np.concatenate([found.left, rest], 1)
        np.testing.assert_allclose(both.T @ both, np.eye(shape[0]), atol=1e-10)
    else:
        assert rest.shape == (shape[0], 0)
    few, rest = spectral.split(drawn(shape, rank=4), 25)
    assert few.left.shape == (shape[0], 4)
    assert few.right.shape == (4, shape[1])


def test_sketch_is_within_its_stated_error_on_a_flat_and_a_falling_spectrum():
    rows, columns, k = 200, 260, 20
    flat = drawn((rows, columns), 3)
    falling = ill(rows, columns, 1e5)[0]
    p, power = spectral.OVERSAMPLING, 1 / (2 * spectral.POWER + 1)
    factor = (1 + np.sqrt(k / (p - 1)) + np.e * np.sqrt(k + p) / p * np.sqrt(rows - k)) ** power
    for matrix, near in ((flat, 1.15), (falling, 1.02)):
        s = np.linalg.svd(matrix, compute_uv=False)
        errors, exact = [], np.sqrt((s[k:] ** 2).sum())
        for key in range(10):
            left, values, right = spectral.sketched(matrix, k, key)
            rest = matrix - (left * values) @ right
            errors.append(np.linalg.norm(rest, 2))
            assert np.linalg.norm(rest) < near * exact
            np.testing.assert_allclose(left.T @ left, np.eye(k), atol=1e-8)
        # Truncating the sketch from k + p to k columns adds at most s_(k+1).
        assert np.mean(errors) < (factor + 1) * s[k]
    assert np.linalg.norm(flat, 2) > 1.2 * np.mean(errors)


def test_sketch_is_seeded_and_exact_where_it_is_as_large_as_the_matrix():
    matrix = drawn((64, 50), 4)
    first, again, other = (spectral.sketched(matrix, 8, key).left for key in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(spectral.sketched(matrix, 45, 1).left, spectral.leading(matrix, 45).left)


@pytest.mark.parametrize("rank", [0, 1, 5, 9])
def test_products_are_decomposed_through_their_factors(rank):
    rng = np.random.default_rng(5)
    left, right = rng.standard_normal((7, rank)), rng.standard_normal((rank, 30))
    found = spectral.of_product(left, right, 4)
    u, s, v = np.linalg.svd(left @ right, full_matrices=False)
    k = min(4, rank)
    np.testing.assert_allclose((found.left * found.values) @ found.right, (u[:, :k] * s[:k]) @ v[:k], atol=1e-9)
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(k), atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (40, 5)])
def test_common_basis_gives_the_blocks_of_the_joint_decomposition(shape):
    taus = [drawn(shape, seed) for seed in range(3)]
    back, block = spectral.common_basis(Matrices(3, shape, lambda t: taus[t]), 1e-5)
    _, s, v = np.linalg.svd(np.concatenate(taus, 1), full_matrices=False)
    for t in range(3):
        part = (s[:, None] * v)[:, t * shape[1] : (t + 1) * shape[1]]
        np.testing.assert_allclose(np.abs(block(t)), np.abs(part), atol=1e-8)  # signs of vectors are free
        np.testing.assert_allclose(back(block(t)), taus[t], atol=1e-8)
    assert block(0).shape[0] == len(s)


def test_adam_takes_its_steps_by_the_book():
    rng = np.random.default_rng(6)
    start, gradients = rng.standard_normal((3, 4)), rng.standard_normal((5, 3, 4))
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    book = torch.optim.Adam([theirs], lr=0.01)
    ours = start.copy()
    adam = spectral.Adam(ours, 0.01, 1e-8)
    for gradient in gradients:
        theirs.grad = torch.from_numpy(gradient)
        book.step()
        adam.step(gradient)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-9)


def test_adam_gives_the_same_for_every_chunk(monkeypatch):
    gradient = np.random.default_rng(7).standard_normal((50, 20))
    found = []
    for chunk in (1, 100, 1 << 16):
        monkeypatch.setattr(spectral, "CHUNK", chunk)
        variable = np.zeros((50, 20))
        adam = spectral.Adam(variable, 0.1, 1e-8)
        adam.step(gradient)
        adam.step(gradient**2)
        found.append(variable)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
