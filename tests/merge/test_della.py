"""DELLA."""

import numpy as np
import pytest

from weightsmith.errors import ArgumentError
from weightsmith.merge.della import della
from weightsmith.merge.sparse_task_arithmetic import sparse_task_arithmetic


def slow_chances(tau, density, epsilon):
    """The chance of each entry of each row, by a full sort."""
    chances = np.empty_like(tau)
    for place in np.ndindex(tau.shape[:-1]):
        row = tau[place].tolist()
        order = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
        for rank, i in enumerate(order):
            spread = 2 * epsilon * rank / (len(row) - 1) if len(row) > 1 else epsilon
            chances[place][i] = density - epsilon + spread
    return chances


def test_by_hand():
    # Chances .45, .55, .65, .75; the seed keeps the second and the fourth: 2 / .55 and 4 / .75.
    found = della(np.zeros(4), [np.array([1.0, 2.0, 3.0, 4.0])], seed=3, lambda_=1.0)
    np.testing.assert_allclose(found, [0, 2 / 0.55, 0, 4 / 0.75], rtol=1e-12)


@pytest.mark.parametrize("shape", [(40, 50), (1, 2000), (2000, 1), (20, 5, 20)])
def test_survivors_are_divided_by_their_chance(shape):
    tau = np.random.default_rng(1).standard_normal(shape)
    found = della(np.zeros(shape), [tau], densities=(0.6,), epsilons=(0.2,), lambda_=1.0)
    expected = tau / slow_chances(tau, 0.6, 0.2)
    kept = found != 0
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-12)
    assert abs(kept.mean() - 0.6) < 0.06


def test_the_mean_over_seeds_is_the_task_vector_and_the_chances_are_met():
    tau = np.random.default_rng(2).standard_normal((5, 8))
    drawn = np.stack([della(np.zeros((5, 8)), [tau], lambda_=1.0, seed=s) for s in range(2000)])
    share = (drawn != 0).mean(0)
    np.testing.assert_allclose(share, slow_chances(tau, 0.6, 0.15), atol=0.06)  # 5 standard deviations
    np.testing.assert_allclose(drawn.mean(0), tau, atol=0.2)


def test_without_spread_it_is_random_dropping_with_election(levels):
    base, taus = levels(3)
    given = {
        "densities": (0.5, 0.25, 1.0),
        "coefficients": (1.0, -0.5, 2.0),
        "normalize": True,
        "lambda_": 0.5,
        "seed": 4,
    }
    found = della(base, list(taus), epsilons=(0, 0, 0), rescale="none", **given)
    expected = sparse_task_arithmetic(base, list(taus), sparsify="random", consensus=True, **given)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_l1_gives_each_tensor_its_norm_back():
    tau = np.random.default_rng(5).standard_normal((30, 40))
    found = della(np.zeros((30, 40)), [tau], rescale="l1", lambda_=1.0)
    assert 0 < (found == 0).sum() < tau.size
    np.testing.assert_allclose(np.abs(found).sum(), np.abs(tau).sum(), rtol=1e-6)


def test_density_at_its_ends_keeps_all_or_nothing(levels):
    base, taus = levels(6, tasks=2)
    for rescale in ("inverse", "l1", "none"):
        found = della(base, list(taus), densities=(1.0, 0.0), rescale=rescale, lambda_=1.0)
        assert np.array_equal(found, base + taus[0])


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.9, 0.15), (0.5, 0.5), (0.5, -0.1)])
def test_chances_outside_0_and_1_are_refused(density, epsilon):
    with pytest.raises(ArgumentError, match="merge della: epsilons"):
        della(np.zeros(4), [np.ones(4)], densities=(density,), epsilons=(epsilon,))
