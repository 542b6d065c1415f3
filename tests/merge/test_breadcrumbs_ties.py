"""Model Breadcrumbs with sign election."""

import numpy as np
import pytest

from weightsmith.merge.breadcrumbs import breadcrumbs
from weightsmith.merge.breadcrumbs_ties import breadcrumbs_ties
from weightsmith.merge.dare_ties import dare_ties


def test_by_hand():
    # Drop the 9 and the 8; keep (0, -3, 2, 0) and (0, 0, 4, 2): -3 alone, (2 + 4) / 2 = 3, 2 alone.
    taus = [np.array([9.0, -3.0, 2.0, 0.1]), np.array([0.1, 8.0, 4.0, 2.0])]
    found = breadcrumbs_ties(np.zeros(4), taus, density=0.5, drop_top=0.25)
    assert found.tolist() == [0.0, -3.0, 3.0, 2.0]
    summed = breadcrumbs_ties(np.ones(4), taus, density=0.5, drop_top=0.25, merge="sum", lambda_=2.0)
    assert summed.tolist() == [1.0, -5.0, 13.0, 5.0]


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_against_one_number_at_a_time(merge, scope, levels, elect):
    base, taus = levels(1)
    shape = (6, 10)
    zero = np.zeros(shape)
    bands = [breadcrumbs(zero, [t.reshape(shape)], density=0.5, drop_top=0.1, lambda_=1.0, scope=scope) for t in taus]
    expected = base + 0.5 * np.array(elect([b.ravel().tolist() for b in bands], merge, 0))
    found = breadcrumbs_ties(
        base.reshape(shape),
        [t.reshape(shape) for t in taus],
        density=0.5,
        drop_top=0.1,
        merge=merge,
        lambda_=0.5,
        scope=scope,
    )
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
def test_keeping_all_is_election_alone(merge, levels):
    base, taus = levels(2)
    found = breadcrumbs_ties(base, list(taus), density=1.0, drop_top=0.0, merge=merge)
    assert np.array_equal(found, dare_ties(base, list(taus), density=1.0, merge=merge))


def test_order_of_tasks_does_not_matter(levels):
    base, taus = levels(3)
    found = breadcrumbs_ties(base, list(taus[::-1]), density=0.5)
    np.testing.assert_allclose(found, breadcrumbs_ties(base, list(taus), density=0.5), rtol=1e-15)
