"""MagMax."""

import numpy as np

from weightsmith.merge.magmax import magmax


def test_by_hand():
    # |3| > |1|; |-4| > |-1|; |2| = |-2|, where the later is taken.
    taus = [np.array([3.0, -1.0, 2.0]), np.array([1.0, -4.0, -2.0])]
    assert magmax(np.ones(3), taus).tolist() == [4.0, -3.0, -1.0]
    assert magmax(np.ones(3), taus[::-1]).tolist() == [4.0, -3.0, 3.0]
    assert magmax(np.ones(3), taus, lambda_=-0.5).tolist() == [-0.5, 3.0, 2.0]


def test_against_one_number_at_a_time(levels):
    base, taus = levels(1, tasks=5)
    expected = []
    for b, column in zip(base.tolist(), taus.T.tolist(), strict=True):
        picked = 0.0
        for v in column:
            if abs(v) >= abs(picked):
                picked = v
        expected.append(b + 0.5 * picked)
    assert magmax(base, list(taus), lambda_=0.5).tolist() == expected


def test_one_task_is_its_model_and_a_task_of_zeros_changes_nothing(levels):
    base, taus = levels(2)
    assert np.array_equal(magmax(base, [taus[0]]), base + taus[0])
    assert np.array_equal(magmax(base, [*taus, np.zeros(60)]), magmax(base, list(taus)))


def test_ties_in_torch_go_to_the_later_task_too(levels):
    import torch

    base, taus = levels(3, most=2)
    found = magmax(torch.from_numpy(base), [torch.from_numpy(t) for t in taus])
    assert np.array_equal(found.numpy(), magmax(base, list(taus)))
    assert not np.array_equal(found.numpy(), magmax(base, list(taus[::-1])))
