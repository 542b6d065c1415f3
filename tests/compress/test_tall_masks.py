"""TALL-masks as an encoding: by hand, and what the card promises of any masks."""

from itertools import pairwise

import numpy as np

from weightsmith.compress import tall_masks


def test_by_hand():
    # |tau_t| > 0.4 * |tau - tau_t|:  1 > 0.4;  0 > 0.8 no;  0.5 > 0.16;  -1 > 0.4 * 3 no
    part = tall_masks(np.array([1.0, 0.0, 0.5, -1.0]), np.array([2.0, 2.0, 0.1, 2.0]))
    assert part.arrays["mask"].tolist() == [True, False, True, False]
    assert part.settings == {}


def test_masks_shrink_as_lambda_grows():
    rng = np.random.default_rng(0)
    own = rng.standard_normal(1000).astype(np.float32)
    shared = own + rng.standard_normal(1000).astype(np.float32)
    masks = [tall_masks(own, shared, mask_lambda=[x]).arrays["mask"] for x in (0.2, 0.5, 1.0, 2.0)]
    assert all((a | b).sum() == a.sum() > b.sum() for a, b in pairwise(masks))


def test_lambda_one_is_the_nearest_of_all_masks():
    rng = np.random.default_rng(1)
    own, shared = rng.standard_normal((2, 10)).astype(np.float32)
    best = np.square(own - tall_masks(own, shared, mask_lambda=[1.0]).arrays["mask"] * shared).sum()
    for code in range(1 << 10):
        mask = (code >> np.arange(10)) & 1
        assert np.square(own - mask * shared).sum() >= best - 1e-6


def test_a_single_task_and_disjoint_ones_come_back():
    own = np.array([1.0, 0.0, -2.0])
    assert (tall_masks(own, own).arrays["mask"] * own == own).all()
    other = np.array([0.0, 3.0, 0.0])
    for task in (own, other):
        assert (tall_masks(task, own + other).arrays["mask"] * (own + other) == task).all()
