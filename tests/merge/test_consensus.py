"""Consensus merging."""

import itertools

import numpy as np
import pytest

from weightsmith.merge.consensus import consensus
from weightsmith.merge.tall_masks import tall_masks
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.merge.ties import ties


def slow(taus, shared, mask_lambda, min_tasks):
    kept = []
    for s, column in zip(shared.tolist(), taus.T.tolist(), strict=True):
        needed = sum(abs(t) > mask_lambda * abs(s - t) for t in column)
        kept.append(s if needed >= min_tasks else 0.0)
    return np.array(kept)


def test_by_hand():
    # Sum 1, 2, .9. The first two entries are needed by one task each: selfish. Third: .5 > .4 * .4 and .4 > .4 * .5.
    taus = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, 0.4])]
    np.testing.assert_allclose(consensus(np.zeros(3), taus, lambda_=1.0), [0.0, 0.0, 0.9], rtol=1e-14)
    np.testing.assert_allclose(consensus(np.zeros(3), taus, lambda_=1.0, min_tasks=1), [1.0, 2.0, 0.9], rtol=1e-14)


@pytest.mark.parametrize("mask_lambda", [0.0, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("min_tasks", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("merged", ["sum", "ties"])
def test_against_one_number_at_a_time(mask_lambda, min_tasks, merged, levels):
    base, taus = levels(1)
    shared = taus.sum(0) if merged == "sum" else ties(np.zeros(60), list(taus), density=0.5, merge="sum")
    found = consensus(
        base, list(taus), lambda_=0.5, min_tasks=min_tasks, mask_lambda=mask_lambda, merged=merged, density=0.5
    )
    assert np.array_equal(found, base + 0.5 * slow(taus, shared, mask_lambda, min_tasks))


def test_no_task_needed_is_task_arithmetic(levels):
    base, taus = levels(2)
    found = consensus(base, list(taus), lambda_=0.3, min_tasks=0)
    assert np.array_equal(found, task_arithmetic(base, list(taus), lambda_=0.3))
    found = consensus(base, list(taus), lambda_=0.3, min_tasks=0, merged="ties")
    assert np.array_equal(found, ties(base, list(taus), lambda_=0.3, merge="sum"))


def test_more_than_all_tasks_is_the_base(levels):
    base, taus = levels(3)
    assert np.array_equal(consensus(base, list(taus), min_tasks=4), base)


def test_support_shrinks_as_more_tasks_are_asked_for(levels):
    _, taus = levels(4, tasks=5)
    support = [consensus(np.zeros(60), list(taus), lambda_=1.0, min_tasks=k) != 0 for k in range(7)]
    for larger, smaller in itertools.pairwise(support):
        assert np.all(larger | ~smaller)
    assert support[0].any()
    assert not support[6].any()


def test_masks_are_those_of_tall_masks(levels):
    _, taus = levels(5)
    zero = np.zeros(60)
    counted = sum((tall_masks(zero, list(taus), task=t) != 0).astype(int) for t in (1, 2, 3))
    shared = taus.sum(0)
    for k in (1, 2, 3):
        expected = np.where(counted >= k, shared, 0.0)
        assert np.array_equal(consensus(zero, list(taus), lambda_=1.0, min_tasks=k), expected)


@pytest.mark.parametrize("tasks", [2, 3, 5, 6, 9])
def test_identical_tasks_are_all_or_nothing(tasks, levels):
    # |tau| > lambda (T - 1) |tau|: all is kept for lambda < 1 / (T - 1), all is "catastrophic" otherwise.
    base, taus = levels(6, tasks=1)
    same = [taus[0]] * tasks
    bound = 1 / (tasks - 1)
    assert np.array_equal(consensus(base, same, lambda_=1.0, mask_lambda=0.9 * bound), base + tasks * taus[0])
    assert np.array_equal(consensus(base, same, lambda_=1.0, mask_lambda=1.1 * bound), base)
    assert np.array_equal(consensus(base, same), base) == (tasks >= 4)  # at the default mask_lambda of 0.4
