"""DELLA without sign election."""

import numpy as np

from weightsmith.merge.della import della
from weightsmith.merge.della_linear import della_linear


def test_by_hand():
    # As for della: .55 and .75 are the chances of the two that stay.
    found = della_linear(np.zeros(4), [np.array([1.0, 2.0, 3.0, 4.0])], seed=3)
    np.testing.assert_allclose(found, [0, 2 / 0.55, 0, 4 / 0.75], rtol=1e-12)


def test_one_model_needs_no_election(levels):
    base, taus = levels(1, tasks=1)
    for rescale in ("inverse", "l1", "none"):
        one = della_linear(base, list(taus), rescale=rescale, seed=2)
        assert np.array_equal(one, della(base, list(taus), rescale=rescale, lambda_=1.0, seed=2))


def test_models_add_up(levels):
    base, taus = levels(2)
    given = {"densities": (0.5, 0.4, 0.7), "epsilons": (0.1, 0.2, 0.1)}
    weights = np.array([1.0, -0.5, 2.0])
    apart = [della_linear(np.zeros(60), list(taus), coefficients=np.eye(3)[t], **given) for t in range(3)]
    expected = base + 0.5 * sum(w * a for w, a in zip(weights, apart, strict=True))
    found = della_linear(base, list(taus), coefficients=weights, lambda_=0.5, **given)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    halved = della_linear(base, list(taus), coefficients=weights, lambda_=0.5, normalize=True, **given)
    np.testing.assert_allclose(halved - base, (expected - base) / 2.5, rtol=1e-9, atol=1e-12)
