"""LIFT: principal weights."""

import numpy as np
import pytest

from weightsmith.localize import principal


def slow(weights, rank, budget):
    u, s, v = np.linalg.svd(weights.reshape(weights.shape[0], -1), full_matrices=False)
    reduced = np.abs((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(-1)
    count = min(budget * sum(weights.reshape(weights.shape[0], -1).shape), reduced.size)
    return sorted(np.argsort(-reduced, kind="stable")[:count].tolist())


def test_by_hand():
    # Rows 0 and 1 are one direction of length sqrt(8); row 3, of larger entries, another of length 2.4, which rank 1 leaves out.
    weights = np.array([[1.0] * 4, [1.0] * 4, [0.0] * 4, [1.2, -1.2, 1.2, -1.2]])
    assert principal([weights], filter_rank=1, budget_rank=1)[0].sum(1).tolist() == [4, 4, 0, 0]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 3, 2, 2)])
@pytest.mark.parametrize(("rank", "budget"), [(1, 1), (3, 2), (2, 100)])
def test_against_a_singular_value_decomposition(shape, rank, budget):
    weights = np.random.default_rng(0).standard_normal((2, *shape))
    for given, mask in zip(weights, principal(list(weights), filter_rank=rank, budget_rank=budget), strict=True):
        assert mask.shape == shape
        assert np.flatnonzero(mask).tolist() == slow(given, rank, budget)


def test_full_rank_is_plain_magnitude():
    weights = np.random.default_rng(1).standard_normal((5, 8))
    found = principal([weights], filter_rank=5, budget_rank=1)[0]
    assert sorted(np.argsort(-np.abs(weights).reshape(-1))[:13]) == np.flatnonzero(found).tolist()


def test_scale_does_not_matter():
    weights = np.random.default_rng(2).standard_normal((6, 6))
    assert np.array_equal(principal([weights], filter_rank=2)[0], principal([weights * 8], filter_rank=2)[0])


def test_vectors_are_left_alone():
    assert not principal([np.ones(7)])[0].any()
