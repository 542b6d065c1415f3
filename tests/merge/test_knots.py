"""KnOTS."""

import numpy as np
import pytest

from weightsmith.merge.knots import knots
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.method import Matrices, Tile


def slow_ties(blocks, density):
    """Trim, elect, mean: one number at a time."""
    trimmed = []
    for block in blocks:
        flat = block.ravel()
        kept = max(1, round(density * flat.size))
        order = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))[:kept]
        row = np.zeros(flat.size)
        row[order] = flat[order]
        trimmed.append(row)
    votes = [sum(column) for column in zip(*trimmed, strict=True)]
    majority = np.sign(sum(np.sign(v) for v in votes))
    merged = []
    for vote, column in zip(votes, zip(*trimmed, strict=True), strict=True):
        agreeing = [v for v in column if v * (np.sign(vote) or majority) > 0]
        merged.append(sum(agreeing) / max(1, len(agreeing)))
    return np.array(merged).reshape(blocks[0].shape)


def slow(taus, density):
    """Follow the card, line by line. Signs of singular vectors are free, and so is the result only in undecided entries."""
    u, s, v = np.linalg.svd(np.concatenate(taus, 1), full_matrices=False)
    kept = s > max(1e-5, 1e-6 * s[0])
    blocks = np.split(s[kept, None] * v[kept], len(taus), 1)
    return u[:, kept] @ slow_ties(blocks, density)


def draw(shape, tasks=3, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    k = rank or min(shape)
    pairs = [(rng.standard_normal((shape[0], k)), rng.standard_normal((k, shape[1]))) for _ in range(tasks)]
    return rng.standard_normal(shape), pairs


def through_factors(base, pairs, **parameters):
    asked = Matrices(len(pairs), base.shape, lambda t: pytest.fail("loaded"), lambda t: pairs[t])
    checked = knots.check(parameters, len(pairs))
    return knots.apply_matrix(base, asked, checked, Tile(shape=base.shape)).reshape(base.shape)


def test_by_hand():
    # Already aligned: U is the identity, up to order and sign. Each block keeps 1 of 4: the 3, and the 4.
    taus = [np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [4.0, -2.0]])]
    found = knots(np.ones((2, 2)), taus, density=0.25, lambda_=1.0)
    np.testing.assert_allclose(found, [[4.0, 1.0], [5.0, 1.0]], atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (40, 5), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_against_a_decomposition(shape, density):
    base, pairs = draw(shape)
    taus = [a @ b for a, b in pairs]
    found = knots(base, taus, density=density, lambda_=0.7)
    np.testing.assert_allclose(found, base + 0.7 * slow(taus, density), atol=1e-7)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (8, 40), (40, 8), (5, 5)])
@pytest.mark.parametrize("merge", ["ties", "sum"])
def test_adapters_give_what_their_products_give(shape, merge):
    base, pairs = draw(shape, rank=3)
    # With density 1 no threshold lies on a value that rounding moves.
    given = {"merge": merge, "density": 1.0}
    dense = knots(base, [a @ b for a, b in pairs], **given)
    np.testing.assert_allclose(through_factors(base, pairs, **given), dense, atol=1e-8)


def test_adapters_of_several_ranks_against_a_decomposition():
    rng = np.random.default_rng(4)
    pairs = [(rng.standard_normal((20, k)), rng.standard_normal((k, 30))) for k in (1, 4, 0)]
    expected = 0.6 * slow([a @ b for a, b in pairs], 0.3)
    np.testing.assert_allclose(through_factors(np.zeros((20, 30)), pairs, density=0.3), expected, atol=1e-8)


@pytest.mark.parametrize("shape", [(20, 30), (40, 8)])
def test_with_a_sum_inside_it_is_task_arithmetic(shape):
    base, pairs = draw(shape, rank=4)
    taus = [a @ b for a, b in pairs]
    expected = task_arithmetic(base, taus, lambda_=0.6)
    np.testing.assert_allclose(knots(base, taus, merge="sum"), expected, atol=1e-9)
    np.testing.assert_allclose(through_factors(base, pairs, merge="sum"), expected, atol=1e-9)


def test_one_task_is_itself_and_identical_ones_their_mean():
    base, pairs = draw((10, 14), tasks=1)
    tau = pairs[0][0] @ pairs[0][1]
    for taus in ([tau], [tau, tau]):
        np.testing.assert_allclose(knots(base, taus, density=1.0, lambda_=1.0), base + tau, atol=1e-9)


def test_small_singular_values_are_dropped():
    tau = np.diag([1.0, 1e-2, 1e-6])
    found = knots(np.zeros((3, 3)), [tau], density=1.0, lambda_=1.0)
    np.testing.assert_allclose(found.diagonal(), [1.0, 1e-2, 0.0], atol=1e-12)
    found = knots(np.zeros((3, 3)), [tau], density=1.0, lambda_=1.0, cutoff=0.1)
    np.testing.assert_allclose(found.diagonal(), [1.0, 0.0, 0.0], atol=1e-12)
    assert not knots(np.zeros((3, 3)), [tau], cutoff=2.0).any()


def test_adapters_that_change_nothing_give_the_base():
    base = np.random.default_rng(5).standard_normal((6, 9))
    nothing = [(np.zeros((6, 0)), np.zeros((0, 9))), (np.zeros((6, 2)), np.zeros((2, 9)))]
    for pairs in (nothing, nothing[:1]):
        assert np.array_equal(through_factors(base, pairs), base)
        assert np.array_equal(through_factors(base, pairs, merge="sum"), base)


def test_vectors_get_the_mean():
    assert knots(np.ones(2), [np.array([1.0, 2.0]), np.array([3.0, 0.0])], lambda_=0.5).tolist() == [2.0, 1.5]
