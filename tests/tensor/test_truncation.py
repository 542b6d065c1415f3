"""Singular values, ranks by rule, and errors of truncation, against numpy's decomposition."""

import itertools

import numpy as np
import pytest
import torch

from weightsmith.tensor.truncation import (
    budget_ranks,
    distance_to_product,
    energy_rank,
    norm_of_product,
    singular_values,
    singular_values_of_product,
)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_singular_values_are_numpys(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    wanted = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular_values(matrix), wanted, rtol=1e-12)
    np.testing.assert_allclose(singular_values(torch.from_numpy(matrix)).numpy(), wanted, rtol=1e-12)


def test_what_is_rounding_noise_counts_as_zero():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 3)) @ rng.standard_normal((3, 30))
    assert (singular_values(matrix) > 0).sum() == 3
    assert not singular_values(np.zeros((3, 4))).any()


@pytest.mark.parametrize("shape", [(8, 3, 6), (3, 8, 6), (8, 8, 2)])
def test_products_are_measured_through_their_factors(shape):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal(shape[:2]), rng.standard_normal(shape[1:])
    wanted = np.linalg.svd(left @ right, compute_uv=False)
    found = singular_values_of_product(left, right)
    np.testing.assert_allclose(found, wanted[: len(found)], atol=1e-12)
    np.testing.assert_allclose(wanted[len(found) :], 0, atol=1e-12)
    assert norm_of_product(left, right) == pytest.approx(np.linalg.norm(left @ right))


def test_a_small_difference_of_products_is_not_lost_to_cancellation():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((40, 4)), rng.standard_normal((4, 30))
    other = left + 1e-10 * rng.standard_normal(left.shape)
    found = norm_of_product(np.hstack([left, -other]), np.vstack([right, right]))
    assert found == pytest.approx(np.linalg.norm((left - other) @ right), rel=1e-3)


def test_distance_is_formed_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    matrix, left, right = rng.standard_normal((7, 5)), rng.standard_normal((7, 2)), rng.standard_normal((2, 5))
    monkeypatch.setattr("weightsmith.tensor.truncation._PART", 11)
    assert distance_to_product(matrix, left, right) == pytest.approx(np.linalg.norm(matrix - left @ right))


def test_energy_keeps_the_share_with_the_smallest_rank():
    values = np.array([3.0, 2.0, 1.0, 0.0])  # squares 9, 4, 1 of 14
    assert [energy_rank(values, e) for e in (1e-9, 9 / 14, 9.1 / 14, 13 / 14, 1.0)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("seed", range(50))
def test_all_energy_never_asks_for_more_than_there_is(seed):
    values = np.sort(np.random.default_rng(seed).exponential(size=17))[::-1]  # sums that depend on their order
    assert energy_rank(values, 1.0) <= 17


def best(spectra, costs, budget):
    """The most that is kept by any choice of ranks."""
    choices = itertools.product(*(range(len(s) + 1) for s in spectra))
    within = [c for c in choices if sum(k * x for k, x in zip(c, costs, strict=True)) <= budget]
    return max(sum(float((s[:k] ** 2).sum()) for s, k in zip(spectra, c, strict=True)) for c in within)


@pytest.mark.parametrize("seed", range(20))
def test_greedy_ranks_are_within_one_triplet_of_the_best(seed):
    rng = np.random.default_rng(seed)
    spectra = [np.sort(rng.exponential(size=n))[::-1] for n in rng.integers(1, 5, size=4)]
    costs = [int(c) for c in rng.integers(3, 12, size=4)]
    budget = int(rng.integers(5, 60))
    ranks = budget_ranks(spectra, costs, budget)
    assert sum(k * c for k, c in zip(ranks, costs, strict=True)) <= budget
    kept = sum(float((s[:k] ** 2).sum()) for s, k in zip(spectra, ranks, strict=True))
    left = [float(s[k] ** 2) for s, k in zip(spectra, ranks, strict=True) if k < len(s)]
    assert best(spectra, costs, budget) <= kept + max(left, default=0.0) + 1e-12


def test_budget_never_buys_zeros_and_ties_go_to_the_first():
    assert budget_ranks([np.array([1.0, 0.0]), np.array([1.0])], [5, 5], 100) == [1, 1]
    assert budget_ranks([np.array([1.0]), np.array([1.0])], [5, 5], 7) == [1, 0]
    assert budget_ranks([np.array([1.0]), np.array([0.5])], [9, 2], 5) == [0, 1]
