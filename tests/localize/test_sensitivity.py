"""SPT: sensitive entries, and how each tensor is trained."""

import numpy as np
import pytest

from weightsmith.localize import sensitivity
from weightsmith.localize.sensitivity import allocate


def test_by_hand():
    found = sensitivity([np.array([[0.1, 3.0], [2.0, 0.0]])], density=0.5)
    assert found[0].tolist() == [[False, True], [True, False]]


def test_doubling_the_loss_leaves_the_selection_unchanged():
    squares = np.random.default_rng(0).random(100) ** 2
    assert np.array_equal(sensitivity([squares], density=0.1)[0], sensitivity([4 * squares], density=0.1)[0])


# A matrix 8 x 12 and rank 2: a module has 2 * 20 = 40 parameters, of which 1 / 10 is 4. A vector of 10: 1 / 5 is 2.
@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("w", 0, "frozen"),
        ("w", 3, "masked"),
        ("w", 4, "structured"),
        ("v", 1, "masked"),
        ("v", 2, "whole"),
        ("v", 0, "frozen"),
    ],
)
def test_how_a_tensor_is_trained(name, count, expected):
    shapes = {"w": (8, 3, 2, 2), "v": (10,)}
    assert allocate({name: count}, shapes, rank=2) == {name: expected}


def test_alpha_near_zero_takes_no_module():
    counts, shapes = {"a": 60, "b": 1}, {"a": (8, 8), "b": (4, 4)}
    assert set(allocate(counts, shapes, alpha=1e-9).values()) == {"masked"}
