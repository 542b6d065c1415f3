"""EMR as an encoding: by hand, and where it is exact."""

import numpy as np
import pytest

from weightsmith.compress import emr


def test_by_hand():
    # signs agree in the first and the last; |tau_t| sums to 7, |m * tau| to 3 + 4
    part = emr(np.array([1.0, -2.0, 4.0]), np.array([3.0, 2.0, 4.0]))
    assert part.arrays["mask"].tolist() == [True, False, True]
    assert part.settings == {"scale": 1.0}


def test_the_factor_keeps_the_sum_of_magnitudes():
    rng = np.random.default_rng(0)
    own, shared = rng.standard_normal((2, 9000)).astype(np.float32)
    part = emr(own, shared)
    rebuilt = part.settings["scale"] * part.arrays["mask"] * shared
    assert np.abs(rebuilt).sum() == pytest.approx(np.abs(own).sum(), rel=1e-6)


def test_the_factor_may_lead_away():
    """The published claim that it never does is no identity: 100 before, 200 after."""
    own, shared = np.array([10.0, 1.0]), np.array([-11.0, 1.0])
    part = emr(own, shared)
    mask = part.arrays["mask"]
    assert part.settings["scale"] == 11.0
    assert np.square(own - mask * shared).sum() == 100
    assert np.square(own - part.settings["scale"] * mask * shared).sum() == 200


def test_no_agreement():
    part = emr(np.array([1.0, 2.0]), np.array([-1.0, -1.0]))
    assert not part.arrays["mask"].any()
    assert part.settings == {"scale": 0.0}
