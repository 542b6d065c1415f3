"""Carrying fine-tuning over to another base."""

import numpy as np
import pytest
import torch

from weightsmith.errors import ArgumentError
from weightsmith.merge.rebase import rebase
from weightsmith.merge.task_arithmetic import task_arithmetic


def test_by_hand():
    new, old = np.array([10.0, 20.0]), np.array([1.0, 2.0])
    one, two = np.array([1.5, 1.0]), np.array([1.0, 4.0])
    assert rebase(new, [old, one]).tolist() == [10.5, 19.0]
    assert rebase(new, [old, one, two], lambda_=2.0).tolist() == [11.0, 22.0]


def test_against_the_sum_in_float64(levels):
    new, taus = levels(1, tasks=4)
    old, *tuned = taus
    expected = new + 0.25 * sum(t - old for t in tuned)
    assert np.array_equal(rebase(new, [old, *tuned], lambda_=0.25), expected)


def test_on_its_own_base_it_is_task_arithmetic(levels):
    base, taus = levels(2)
    found = rebase(base, [base, *(base + taus)], lambda_=0.3)
    assert np.array_equal(found, task_arithmetic(base, list(taus), lambda_=0.3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_its_own_base_a_stored_model_comes_back(dtype):
    rng = np.random.default_rng(3)
    base = torch.from_numpy(rng.standard_normal(10_000)).to(dtype)
    tuned = (base + torch.from_numpy(rng.standard_normal(10_000)) / 16).to(dtype)
    assert torch.equal(rebase(base, [base, tuned]), tuned)


def test_in_float32_it_comes_back_up_to_one_rounding():
    rng = np.random.default_rng(4)
    base = rng.standard_normal(10_000).astype(np.float32)
    tuned = base + rng.standard_normal(10_000).astype(np.float32) / 16
    error = np.abs(rebase(base, [base, tuned]).astype(np.float64) - tuned)
    assert np.all(error <= np.spacing(np.maximum(np.abs(tuned), np.abs(tuned - base))))


def test_there_and_back(levels):
    new, taus = levels(5, tasks=2)
    old, tuned = taus
    assert np.array_equal(rebase(rebase(new, [old, tuned]), [old, tuned], lambda_=-1.0), new)


def test_needs_an_old_base_and_a_fine_tune():
    with pytest.raises(ArgumentError, match="number of models"):
        rebase(np.zeros(2), [np.zeros(2)])
