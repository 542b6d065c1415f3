"""Flag aggregator."""

import numpy as np
import pytest

from weightsmith.merge.flag import flag


def slow_flag(taus, rank, iterations):
    """On the vectors themselves, by singular value decompositions."""
    lengths = np.linalg.norm(taus, axis=1)
    taus, lengths = taus[lengths > 0], lengths[lengths > 0]
    units = (taus / lengths[:, None]).T
    weights = np.ones(len(taus))
    for _ in range(iterations):
        left, size, _ = np.linalg.svd(units * weights, full_matrices=False)
        basis = left[:, : min(rank, int((size > 1e-6 * size[0]).sum()))]
        weights = (np.maximum(1 - np.square(basis.T @ units).sum(0), 0) + 1e-7) ** -0.25
    return np.median(lengths) * (basis @ basis.T @ units).mean(1)


def test_by_hand():
    # Two agree and span Y = (1, 0); the outlier at right angles adds nothing. Median length 1, mean 2 / 3.
    taus = [np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0.0, 9.0])]
    np.testing.assert_allclose(flag(np.ones(2), taus, lambda_=3.0), [3.0, 1.0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("rank", "iterations"), [(1, 1), (1, 2), (1, 10), (2, 1), (3, 5), (99, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_against_decompositions_of_the_vectors(rank, iterations, seed):
    rng = np.random.default_rng(seed)
    taus = rng.standard_normal((6, 40)) * rng.uniform(0.5, 3, (6, 1)) + rng.standard_normal(40)
    found = flag(np.zeros(40), list(taus), rank=rank, iterations=iterations)
    np.testing.assert_allclose(found, slow_flag(taus, rank, iterations), rtol=0, atol=1e-9)


def test_copies_come_back(levels):
    base, taus = levels(1)
    for rank in (1, 3):
        found = flag(base, [taus[0].copy() for _ in range(5)], rank=rank)
        np.testing.assert_allclose(found, base + taus[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(flag(base, [taus[0]]), base + taus[0], rtol=0, atol=1e-13)


def test_the_result_lies_in_the_span_and_full_rank_is_the_mean_direction(levels):
    _, taus = levels(2)
    for rank in (1, 2, 3):
        found = flag(np.zeros(60), list(taus), rank=rank)
        rest = np.linalg.lstsq(taus.T, found)[1]
        assert rest < 1e-24
    lengths = np.linalg.norm(taus, axis=1)
    np.testing.assert_allclose(found, np.median(lengths) * (taus.T / lengths).mean(1), rtol=0, atol=1e-12)


def test_a_huge_outlier_turns_the_result_little():
    rng = np.random.default_rng(3)
    shared = rng.standard_normal(1000)
    taus = [shared + 0.3 * rng.standard_normal(1000) for _ in range(6)]
    outlier = 1e6 * rng.standard_normal(1000)
    zero = np.zeros(1000)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    clean = flag(zero, taus)
    assert cosine(flag(zero, [*taus, outlier]), clean) > 0.999
    assert cosine(np.mean([*taus, outlier], 0), clean) < 0.2
    assert np.linalg.norm(flag(zero, [*taus, outlier])) < 2 * np.linalg.norm(clean)


def test_task_vectors_of_zeros_take_no_part(levels):
    base, taus = levels(4)
    found = flag(base, [np.zeros(60), *taus, np.zeros(60)])
    np.testing.assert_allclose(found, flag(base, list(taus)), rtol=0, atol=1e-13)


def test_reweighting_leans_towards_those_that_agree():
    rng = np.random.default_rng(5)
    shared, other = rng.standard_normal((2, 500))
    taus = [shared + 0.1 * rng.standard_normal(500) for _ in range(4)] + [shared + 2 * other for _ in range(2)]

    def towards(found):
        return abs(found @ shared) / np.linalg.norm(found) / np.linalg.norm(shared)

    once, often = (flag(np.zeros(500), taus, iterations=n) for n in (1, 10))
    assert towards(once) < 0.97
    assert towards(often) > 0.99
