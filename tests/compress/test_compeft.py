"""ComPEFT: by hand, its two sizes, and where it is exact."""

import numpy as np
import pytest

from weightsmith.compress import compeft


def test_by_hand():
    own = np.array([3.0, -1.0, 0.2, 0.1])
    part = compeft(own, density=0.5)
    assert part.arrays["signs"].tolist() == [1, -1, 0, 0]
    assert part.settings == {"scale": 2.0}  # (3 + 1) / 2
    part = compeft(own, density=0.5, alpha=3.0)
    assert part.settings["scale"] == pytest.approx(3 * own.std())


def test_equal_magnitudes_come_back_whole():
    own = np.array([2.0, -2.0, 2.0, -2.0], np.float32)
    part = compeft(own, density=1.0)
    assert (part.settings["scale"] * part.arrays["signs"] == own).all()
    part = compeft(own, density=1.0, alpha=1.0)  # their mean is 0, so |tau| = sigma
    assert part.settings["scale"] == 2.0


def test_the_earlier_of_equals_is_kept():
    part = compeft(np.array([1.0, -1.0, 1.0, 1.0]), density=0.5)
    assert part.arrays["signs"].tolist() == [1, -1, 0, 0]


def test_the_mean_magnitude_is_the_nearest_size():
    own = np.random.default_rng(0).standard_normal(500)
    part = compeft(own, density=0.3)
    signs, size = part.arrays["signs"], part.settings["scale"]
    errors = [np.square(own - s * signs).sum() for s in (0.99 * size, size, 1.01 * size)]
    assert errors[1] == min(errors)


def test_zeros():
    part = compeft(np.zeros(5))
    assert not part.arrays["signs"].any()
    assert part.settings == {"scale": 0.0}
