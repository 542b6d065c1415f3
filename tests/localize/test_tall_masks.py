"""TALL-masks of any merged vector."""

import itertools

import numpy as np
import pytest

from weightsmith.errors import ArgumentError
from weightsmith.localize import tall_masks


def levels(seed, tasks=3, size=60):
    """Multiples of 1/4, so that sums are exact and ties occur."""
    return np.random.default_rng(seed).integers(-4, 5, (tasks, size)) / 4


def test_by_hand():
    # Sum: 1, 2, .1. Task 1 holds 1, 0, .5: 1 > .4 * 0; 0 > .4 * 2 not; .5 > .4 * .4.
    # Task 2 holds 0, 2, -.4, lambda 2: 0 > 2 * 1 not; 2 > 2 * 0; .4 > 2 * .5 not.
    taus = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, -0.4])]
    found = tall_masks(taus, taus[0] + taus[1], lambdas=[0.4, 2.0])
    assert [m.tolist() for m in found] == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize("scale", [1.0, 0.25, -1.0])
def test_any_merged_vector_against_one_number_at_a_time(scale):
    taus, lambdas = levels(0), [0.0, 0.5, 2.0]
    merged = taus.sum(0) * scale
    for tau, bound, mask in zip(taus, lambdas, tall_masks(taus, merged, lambdas=lambdas), strict=True):
        assert mask.tolist() == [
            abs(t) > bound * abs(m - t) for t, m in zip(tau.tolist(), merged.tolist(), strict=True)
        ]


def test_one_task_that_moved_every_weight_needs_all_of_them():
    tau = np.array([1.0, -2.0, 1e-30])
    assert tall_masks([tau], tau, lambdas=[0.6])[0].all()


def test_masks_are_nested_in_lambda():
    taus = levels(1)
    found = [tall_masks(taus, taus.sum(0), lambdas=[v] * 3)[0] for v in (0.0, 0.2, 0.6, 1.0, 4.0)]
    for larger, smaller in itertools.pairwise(found):
        assert not (smaller & ~larger).any()
    assert found[0].sum() > found[-1].sum()


@pytest.mark.parametrize(
    ("tasks", "bound", "is_selected"), [(2, 0.9, True), (2, 1.0, False), (6, 0.19, True), (6, 0.2, False)]
)
def test_identical_experts_are_all_selected_below_one_over_tasks_less_one(tasks, bound, is_selected):
    taus = np.tile(np.array([1.0, -2.0, 4.0]), (tasks, 1))
    masks = tall_masks(taus, taus.sum(0), lambdas=[bound] * tasks)
    assert [m.tolist() for m in masks] == [[is_selected] * 3] * tasks


def test_lambda_one_rebuilds_nearest():
    taus, rng = levels(2), np.random.default_rng(0)
    merged = taus.sum(0)
    best = tall_masks(taus, merged, lambdas=[1.0] * 3)
    for tau, mask in zip(taus, best, strict=True):
        least = np.linalg.norm(mask * merged - tau)
        assert all(
            least <= np.linalg.norm((rng.random(60) < p) * merged - tau) for p in (0.1, 0.5, 0.9) for _ in range(50)
        )


def test_a_lambda_for_each_task():
    with pytest.raises(ArgumentError, match="expected 2, one per task; got 1"):
        tall_masks(levels(0, tasks=2), np.zeros(60), lambdas=[0.4])
