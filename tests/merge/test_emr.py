"""EMR-Merging."""

import numpy as np
import pytest
import torch

from weightsmith.errors import ArgumentError
from weightsmith.merge.emr import emr
from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.unified import masked, masked_sums


def slow_unified(taus):
    """One number at a time: the largest of those who agree with the sign of the sum, -1 where it is 0."""
    unified = []
    for column in taus.T.tolist():
        sign = 1 if sum(column) > 0 else -1
        unified.append(sign * max((abs(v) for v in column if v * sign > 0), default=0.0))
    return np.array(unified)


def slow_task(taus, task):
    unified = slow_unified(taus)
    masked = np.where(taus[task - 1] * unified > 0, unified, 0.0)
    total = np.abs(masked).sum()
    return masked * (np.abs(taus[task - 1]).sum() / total if total else 0.0)


def test_by_hand():
    # Sums 4, 1, -2: signs + + -. Largest agreeing 3, 2, -4.
    taus = [np.array([3.0, -1.0, 2.0]), np.array([1.0, 2.0, -4.0])]
    base = np.zeros(3)
    assert emr(base, taus).tolist() == [3.0, 2.0, -4.0]
    # Task 1 agrees in the first entry only: 6 / 3 = 2. Task 2 agrees everywhere: 7 / 9.
    assert emr(base, taus, task=1).tolist() == [6.0, 0.0, 0.0]
    np.testing.assert_allclose(emr(base, taus, task=2), np.array([3.0, 2.0, -4.0]) * 7 / 9, rtol=1e-15)


def test_a_level_vote_is_negative_as_in_the_authors_code():
    assert emr(np.zeros(2), [np.array([1.0, 0.0]), np.array([-1.0, 0.0])]).tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_against_one_number_at_a_time(seed, tasks, levels):
    base, taus = levels(seed, tasks=tasks, most=3)
    assert np.array_equal(emr(base, list(taus)), base + slow_unified(taus))
    for task in range(1, tasks + 1):
        np.testing.assert_allclose(emr(base, list(taus), task=task), base + slow_task(taus, task), rtol=0, atol=1e-13)


def test_the_factor_keeps_the_sum_of_magnitudes(levels):
    _, taus = levels(6)
    for task in (1, 2, 3):
        found = emr(np.zeros(60), list(taus), task=task)
        np.testing.assert_allclose(np.abs(found).sum(), np.abs(taus[task - 1]).sum(), rtol=1e-13)
        assert np.all(found * taus[task - 1] >= 0)


def test_exact_for_one_task_and_for_equal_magnitudes_that_agree(levels):
    base, taus = levels(7)
    assert np.array_equal(emr(base, [taus[0]], task=1), base + taus[0])
    same = [taus[0].copy() for _ in range(3)]
    for task in (1, 2, 3):
        assert np.array_equal(emr(base, same, task=task), base + taus[0])


def test_an_empty_mask_gives_the_base():
    taus = [np.array([-1.0, 1.0]), np.array([5.0, -5.0]), np.zeros(2)]
    base = np.array([1.0, 2.0])
    for task in (1, 3):
        assert emr(base, taus, task=task).tolist() == [1.0, 2.0]


def test_tiny_numbers_agree_by_sign_not_by_product():
    taus = [np.full(2, 1e-30, np.float32), np.full(2, 3e-30, np.float32)]
    assert np.array_equal(emr(np.zeros(2, np.float32), taus, task=1), taus[0])


def test_the_published_counterexample():
    # The factor may take the result further away: (10, 1) from (-11, 1) keeps the second entry only.
    taus = [np.array([10.0, 1.0]), np.array([-11.0, 0.5])]
    assert emr(np.zeros(2), taus, task=1).tolist() == [0.0, 11.0]


def test_no_such_task():
    with pytest.raises(ArgumentError, match="merge emr: task"):
        emr(np.zeros(2), [np.ones(2)], task=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 1023, 5000])
def test_the_loops_have_the_bits_of_the_eager_form(dtype, size):
    rng = np.random.default_rng(8)
    vectors = (rng.standard_normal((3, size)) * (rng.random((3, size)) < 0.7)).round(1).astype(dtype)
    for call in (masked, masked_sums):
        for task in range(3):
            found = call(vectors, task)
            assert np.array_equal(found, np.asarray(call(vectors.view(Plain), task)))
            assert np.array_equal(found, np.asarray(call(torch.from_numpy(vectors), task)))
