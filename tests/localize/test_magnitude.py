"""Top magnitude of task vectors."""

import numpy as np
import pytest

from weightsmith.errors import ArgumentError, MismatchError
from weightsmith.localize import magnitude


def slow(tau, count):
    order = sorted(range(tau.size), key=lambda i: (-abs(tau.reshape(-1)[i]), i))
    return [i in order[:count] for i in range(tau.size)]


def test_by_hand():
    # Half of four: 3 and 2 are the largest.
    assert magnitude(np.zeros(4), [np.array([0.1, -3.0, 2.0, 0.0])], density=0.5)[0].tolist() == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_against_a_sort(density, scope):
    taus = np.random.default_rng(0).integers(-3, 4, (2, 5, 7)) / 2  # many equals: the earlier comes first
    for tau, mask in zip(taus, magnitude(np.ones((5, 7)), list(taus), density=density, scope=scope), strict=True):
        assert mask.shape == (5, 7)
        assert mask.reshape(-1).tolist() == slow(tau, max(1, round(density * 35)))


def test_masks_are_nested_and_do_not_depend_on_scale_or_base():
    taus = list(np.random.default_rng(1).standard_normal((2, 50)))
    small, large = (magnitude(np.zeros(50), taus, density=d) for d in (0.1, 0.4))
    assert all(not (s & ~g).any() for s, g in zip(small, large, strict=True))
    again = magnitude(np.full(50, 7.0), [t * -3 for t in taus], density=0.1)
    assert all(np.array_equal(s, a) for s, a in zip(small, again, strict=True))


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan"), "much"])
def test_a_density_out_of_bounds(density):
    with pytest.raises(ArgumentError, match=r"localize magnitude: density; expected a number in \(0, 1\]"):
        magnitude(np.zeros(2), [np.ones(2)], density=density)


def test_shapes_must_agree():
    with pytest.raises(MismatchError, match="expected shape"):
        magnitude(np.zeros(2), [np.ones(2), np.ones(3)])
