"""TALL-masks."""

import itertools

import numpy as np
import pytest

from weightsmith.merge.tall_masks import tall_masks
from weightsmith.merge.ties import ties


def slow(base, taus, shared, task, mask_lambda):
    return [
        b + (s if abs(t) > mask_lambda * abs(s - t) else 0.0)
        for b, s, t in zip(base.tolist(), shared.tolist(), taus[task - 1].tolist(), strict=True)
    ]


def test_by_hand():
    # Sum: 1, 2, .1. Task 1 holds 1, 0, .5: 1 > .4 * 0; 0 > .4 * 2 not; .5 > .4 * .4. So 1, 0, .1.
    taus = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, -0.4])]
    np.testing.assert_allclose(tall_masks(np.zeros(3), taus, task=1), [1.0, 0.0, 0.1], rtol=1e-14)
    # Task 2: 0 > .4 * 1 not; 2 > 0; .4 > .4 * .5.
    np.testing.assert_allclose(tall_masks(np.zeros(3), taus, task=2), [0.0, 2.0, 0.1], rtol=1e-14)


@pytest.mark.parametrize("mask_lambda", [0.0, 0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_sum_against_one_number_at_a_time(mask_lambda, task, levels):
    base, taus = levels(1)
    found = tall_masks(base, list(taus), task=task, mask_lambda=mask_lambda)
    assert found.tolist() == slow(base, taus, taus.sum(0), task, mask_lambda)


@pytest.mark.parametrize("density", [0.2, 1.0])
@pytest.mark.parametrize("task", [1, 2, 3])
def test_ties_against_one_number_at_a_time(density, task, levels):
    base, taus = levels(2)
    shared = ties(np.zeros(60), list(taus), density=density, merge="sum")
    found = tall_masks(base, list(taus), task=task, merged="ties", density=density, mask_lambda=0.5)
    assert found.tolist() == slow(base, taus, shared, task, 0.5)


def test_one_task_is_rebuilt_exactly(levels):
    base, taus = levels(3, tasks=1)
    assert np.array_equal(tall_masks(base, list(taus)), base + taus[0])
    found = tall_masks(base, list(taus), merged="ties", density=1.0)
    assert np.array_equal(found, base + taus[0])


def test_masks_shrink_as_lambda_grows(levels):
    _, taus = levels(4)
    support = [tall_masks(np.zeros(60), list(taus), mask_lambda=v) != 0 for v in (0.0, 0.2, 0.4, 0.6, 1.0, 2.0, 8.0)]
    for larger, smaller in itertools.pairwise(support):
        assert np.all(larger | ~smaller)
    assert support[0].sum() > support[-1].sum()


def test_lambda_one_minimizes_the_error_among_masks(levels):
    base, taus = levels(5)
    shared, rng = taus.sum(0), np.random.default_rng(0)
    for task in (1, 2, 3):
        model = base + taus[task - 1]
        best = np.linalg.norm(tall_masks(base, list(taus), task=task, mask_lambda=1.0) - model)
        masks = [rng.random(60) < p for p in (0.1, 0.3, 0.5, 0.7, 0.9) for _ in range(40)]
        masks += [np.ones(60), np.zeros(60)]
        masks += [tall_masks(np.zeros(60), list(taus), task=task, mask_lambda=v) != 0 for v in (0.2, 0.4, 0.6, 2)]
        assert all(best <= np.linalg.norm(base + mask * shared - model) for mask in masks)


def test_tasks_that_do_not_overlap_are_rebuilt_exactly(levels):
    base, taus = levels(6)
    alone = taus * (np.arange(60) % 3 == np.arange(3)[:, None])
    for task in (1, 2, 3):
        assert np.array_equal(tall_masks(base, list(alone), task=task), base + alone[task - 1])


def test_an_entry_that_a_task_left_alone_stays_the_base():
    found = tall_masks(np.ones(3), [np.zeros(3), np.array([1.0, 0.0, -2.0])], task=1, mask_lambda=0.0)
    assert found.tolist() == [1.0, 1.0, 1.0]
