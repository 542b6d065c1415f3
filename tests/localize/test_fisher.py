"""FISH masks."""

import numpy as np
import pytest

from weightsmith.localize import fisher


def test_by_hand():
    assert fisher([np.array([0.1, 3.0, 2.0, 0.0])], density=0.25)[0].tolist() == [False, True, False, False]


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_against_a_sort(density):
    scores = np.random.default_rng(0).integers(0, 4, (3, 40)) / 4
    count = max(1, round(density * 40))
    for given, mask in zip(scores, fisher(list(scores), density=density), strict=True):
        best = sorted(range(40), key=lambda i: (-given[i], i))[:count]
        assert np.flatnonzero(mask).tolist() == sorted(best)


def test_the_scale_of_the_information_does_not_matter():
    scores = [np.random.default_rng(1).random((4, 5))]
    assert np.array_equal(fisher(scores, density=0.2)[0], fisher([scores[0] * 1e-20], density=0.2)[0])
