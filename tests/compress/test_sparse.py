"""Sparse differences: by hand, exactly K entries, and what is sparse already stays."""

import numpy as np
import pytest

from weightsmith.compress import sparse
from weightsmith.compress.sparse import position_bits


def test_by_hand():
    part = sparse(np.array([3.0, -1.0, 0.2, 0.1]), density=0.5, values="float16")
    assert part.arrays["mask"].tolist() == [True, True, False, False]
    assert part.arrays["values"][part.arrays["mask"]].tolist() == [3.0, -1.0]
    assert part.settings == {"dtype": "F16"}


@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 1.0])
def test_exactly_so_many(density):
    own = np.random.default_rng(0).standard_normal(999)
    assert sparse(own, density=density).arrays["mask"].sum() == max(1, round(density * 999))
    level = np.ones(999)
    assert sparse(level, density=density).arrays["mask"].sum() == max(1, round(density * 999))


def test_what_is_sparse_already_stays():
    own = np.zeros(100)
    own[[3, 50]] = 1.0, -2.0
    part = sparse(own, density=0.1)
    assert (part.arrays["values"] == own).all()
    assert part.arrays["mask"].sum() == 2


def test_bits_of_positions():
    assert position_bits(1.0) == 0
    assert position_bits(0.25) == pytest.approx(2 * 0.25 + 0.75 * np.log2(4 / 3))
