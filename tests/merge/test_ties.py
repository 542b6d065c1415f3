"""TIES merging."""

import numpy as np
import pytest

from weightsmith.merge.ties import ties


def slow(base, taus, density, lambda_, merge, top, elect):
    rank = max(1, round(density * len(base)))
    kept = [[v if k else 0.0 for v, k in zip(t, top(t, rank), strict=True)] for t in taus.tolist()]
    votes = [sum(column) for column in zip(*kept, strict=True)]
    balance = sum(v > 0 for v in votes) - sum(v < 0 for v in votes)
    merged = elect(kept, merge, (balance > 0) - (balance < 0))
    return [b + lambda_ * m for b, m in zip(base.tolist(), merged, strict=True)]


def test_by_hand():
    # density .5 of 4 keeps 2: (3, -1, 0, 0) and (1, 2, 0, 0), since .3 < 1. Sums 4 and 1: both plus.
    # First: (3 + 1) / 2 = 2. Second: -1 disagrees, so 2 alone.
    taus = [np.array([3.0, -1.0, 0.2, 0.1]), np.array([1.0, 2.0, -0.1, 0.3])]
    assert ties(np.zeros(4), taus, density=0.5).tolist() == [2.0, 2.0, 0.0, 0.0]
    assert ties(np.zeros(4), taus, density=0.5, merge="sum").tolist() == [4.0, 2.0, 0.0, 0.0]
    assert ties(np.zeros(4), taus, density=0.5, merge="max", lambda_=2).tolist() == [6.0, 4.0, 0.0, 0.0]


def test_a_level_vote_goes_with_the_majority():
    # Sums 0, 3, 0: one plus, no minus, so level entries count as plus.
    taus = [np.array([1.0, 2.0, -4.0]), np.array([-1.0, 1.0, 4.0])]
    assert ties(np.zeros(3), taus, density=1.0).tolist() == [1.0, 1.5, 4.0]
    # Negated: one minus, so they count as minus, and the result is the negative.
    assert ties(np.zeros(3), [-t for t in taus], density=1.0).tolist() == [-1.0, -1.5, -4.0]
    # Sums 0, 3, -3: level everywhere, so the undecided entry is 0.
    taus = [np.array([1.0, 2.0, -2.0]), np.array([-1.0, 1.0, -1.0])]
    assert ties(np.zeros(3), taus, density=1.0).tolist() == [0.0, 1.5, -1.5]


def test_equal_magnitudes_keep_the_earlier_entries():
    # round(.5 * 5) = 2 of five equal ones.
    tau = np.array([-1.0, 1.0, -1.0, 1.0, 1.0])
    assert ties(np.zeros(5), [tau], density=0.5).tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [1e-9, 0.1, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_against_one_number_at_a_time(merge, density, scope, levels, top, elect):
    for seed in range(5):
        base, taus = levels(seed, tasks=1 + seed)
        found = ties(base, list(taus), density=density, lambda_=0.5, merge=merge, scope=scope)
        np.testing.assert_allclose(found, slow(base, taus, density, 0.5, merge, top, elect), rtol=1e-14, atol=1e-14)


def test_one_task_at_full_density_is_that_model(levels):
    base, taus = levels(0, tasks=1)
    assert np.array_equal(ties(base, list(taus), density=1.0), base + taus[0])


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_a_task_that_changes_nothing_changes_nothing(density, levels):
    base, taus = levels(1)
    assert np.array_equal(
        ties(base, [*taus, np.zeros_like(base)], density=density), ties(base, list(taus), density=density)
    )


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
def test_scaling_all_task_vectors_scales_the_result(merge, levels):
    _, taus = levels(2)
    zero = np.zeros(60)
    found = ties(zero, list(4 * taus), density=0.4, merge=merge)
    assert np.array_equal(found, 4 * ties(zero, list(taus), density=0.4, merge=merge))


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
def test_flipping_all_signs_flips_the_result(merge, levels):
    # Level votes flip too, since the majority does.
    _, taus = levels(3)
    zero = np.zeros(60)
    assert np.array_equal(ties(zero, list(-taus), merge=merge), -ties(zero, list(taus), merge=merge))


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
def test_order_of_tasks_does_not_matter(merge, levels):
    base, taus = levels(4, tasks=5)
    expected = ties(base, list(taus), merge=merge, density=0.5)
    np.testing.assert_allclose(ties(base, list(taus[::-1]), merge=merge, density=0.5), expected, rtol=1e-15)


def test_no_entry_is_larger_than_the_largest_that_was_merged(levels):
    _, taus = levels(5)
    merged = ties(np.zeros(60), list(taus), density=0.6)
    assert np.all(np.abs(merged) <= np.abs(taus).max(0))
    assert np.all((merged == 0) | (np.sign(merged) == np.sign(taus)).any(0))


def test_lambda_zero_is_the_base(levels):
    base, taus = levels(6)
    assert np.array_equal(ties(base, list(taus), lambda_=0.0), base)
