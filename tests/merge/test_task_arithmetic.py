"""Task arithmetic."""

import numpy as np
import pytest

from weightsmith.merge.task_arithmetic import task_arithmetic


def test_by_hand():
    # 1 + .5 * (2 - 1) = 1.5; 1 + .5 * (1 - 3) = 0
    base, taus = np.array([1.0, 1.0]), [np.array([2.0, 1.0]), np.array([1.0, 3.0])]
    assert task_arithmetic(base, taus, coefficients=(1, -1), lambda_=0.5).tolist() == [1.5, 0.0]
    assert task_arithmetic(base, taus).tolist() == [4.0, 5.0]


@pytest.mark.parametrize("coefficients", [None, (1.0, -1.0, 0.25)])
@pytest.mark.parametrize("lambda_", [1.0, 0.3, -2.0])
def test_against_one_number_at_a_time(coefficients, lambda_):
    rng = np.random.default_rng(1)
    base, taus = rng.standard_normal(50), rng.standard_normal((3, 50))
    factors = coefficients or (1.0, 1.0, 1.0)
    expected = [
        b + lambda_ * sum(c * t for c, t in zip(factors, column, strict=True))
        for b, column in zip(base.tolist(), taus.T.tolist(), strict=True)
    ]
    found = task_arithmetic(base, list(taus), coefficients=coefficients, lambda_=lambda_)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


def test_nothing_added_is_the_base(levels):
    base, taus = levels(0)
    assert np.array_equal(task_arithmetic(base, list(taus), lambda_=0.0), base)
    assert np.array_equal(task_arithmetic(base, list(taus), coefficients=(0, 0, 0)), base)


def test_one_task_is_that_model(levels):
    base, taus = levels(0, tasks=1)
    assert np.array_equal(task_arithmetic(base, list(taus)), base + taus[0])


def test_a_task_and_its_negation_cancel(levels):
    base, taus = levels(0, tasks=1)
    assert np.array_equal(task_arithmetic(base, [taus[0], -taus[0]]), base)
    assert np.array_equal(task_arithmetic(base, list(taus), coefficients=(-1,)), base - taus[0])


def test_order_does_not_matter(levels):
    base, taus = levels(0)
    assert np.array_equal(task_arithmetic(base, list(taus[::-1])), task_arithmetic(base, list(taus)))


def test_lambda_over_tasks_averages(levels):
    base, taus = levels(0, tasks=4)
    found = task_arithmetic(base, list(taus), lambda_=0.25)
    assert np.array_equal(found, (base + taus).mean(0))
