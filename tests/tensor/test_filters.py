"""Health of convolution filters."""

import math

import numpy as np
import pytest

from weightsmith.tensor.filters import filter_health, is_convolution, random_entropy


def test_by_hand():
    # Two channels of one filter: (1, 0, ...) and (0, 1, 0, ...): one direction of variance, orthogonal channels.
    weights = np.zeros((2, 1, 3, 3))
    weights[0, 0, 0, 0] = weights[1, 0, 0, 1] = 1.0
    found = filter_health(weights)
    assert found.sparsity == 0
    assert found.entropy == pytest.approx(0, abs=1e-12)
    assert found.orthogonality == 1


def test_two_equal_directions_have_the_entropy_of_two():
    weights = np.zeros((4, 1, 3, 3))
    for channel, (place, value) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1)]):
        weights[channel, 0, 0, place] = value
    assert filter_health(weights).entropy == pytest.approx(math.log10(2))
    # Of 12 ordered pairs, 4 are opposite: 1 - 4 / 12.
    assert filter_health(weights).orthogonality == pytest.approx(2 / 3)


def test_random_filters_have_the_entropy_of_random_ones():
    found = filter_health(np.random.default_rng(0).standard_normal((32, 32, 3, 3)))
    assert found.entropy_ratio == pytest.approx(1, abs=0.01)
    assert random_entropy(1024) < math.log10(9)


def test_identical_filters_have_none():
    assert filter_health(np.ones((4, 4, 3, 3))).entropy == 0
    assert filter_health(np.ones((4, 4, 3, 3))).orthogonality == pytest.approx(0)


def test_scale_and_order_do_not_matter():
    weights = np.random.default_rng(1).standard_normal((6, 5, 3, 3))
    weights[2, 3] *= 1e-4
    found, scaled, mixed = (filter_health(w) for w in (weights, weights * 16, weights[::-1]))
    assert found.sparsity == 1 / 30
    assert scaled == pytest.approx(found)
    assert mixed == pytest.approx(found)


def test_zeros_and_other_kernels():
    found = filter_health(np.zeros((3, 2, 5, 5)))
    assert (found.sparsity, found.entropy, found.entropy_ratio) == (1, 0, None)
    assert filter_health(np.ones((1, 2, 3, 3))).orthogonality is None


def test_which_tensors_are_convolutions():
    shapes = [(4, 3, 3, 3), (4, 3, 5), (4, 1, 3, 3), (4, 3, 1, 1), (4, 3)]
    assert [is_convolution(s) for s in shapes] == [True, True, False, False, False]
