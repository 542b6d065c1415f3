"""Leading singular vectors as a part."""

import numpy as np
import pytest

from weightsmith.compress.low_rank import low_rank
from weightsmith.errors import ArgumentError
from weightsmith.merge.delta_svd import delta_svd


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rebuilt(part):
    return part.settings["scale"] * part.arrays["left"].astype(np.float64) @ part.arrays["right"]


def test_by_hand():
    part = low_rank(np.diag([0.0, -4.0, 1.0]), rank=1)
    assert part.settings == {"scale": pytest.approx(4.0), "dtype": "F16"}
    np.testing.assert_allclose(rebuilt(part), np.diag([0.0, -4.0, 0.0]), atol=1e-6)
    np.testing.assert_allclose(np.abs(part.arrays["left"]), [[0], [1], [0]], atol=1e-7)


@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (1, 7), (7, 1)])
@pytest.mark.parametrize("given", [{"rank": 1}, {"rank": 4}, {"rank": 99}, {"energy": 0.6}, {"energy": 1.0}])
def test_is_the_merge_of_one_task(shape, given):
    tau = draw(shape)
    wanted = delta_svd(np.zeros(shape), [tau.astype(np.float64)], **given)
    np.testing.assert_allclose(rebuilt(low_rank(tau, **given)), wanted, atol=1e-6)


def test_error_is_the_sum_of_the_squares_left_out():
    tau = draw((20, 30), 1)
    s = np.linalg.svd(tau.astype(np.float64), compute_uv=False)
    for rank in (1, 7, 19):
        part = low_rank(tau, rank=rank)
        assert part.arrays["left"].shape == (20, rank)
        assert np.square(rebuilt(part) - tau).sum() == pytest.approx((s[rank:] ** 2).sum(), rel=1e-5)


def test_factors_fit_narrow_dtypes_at_any_size():
    for size in (1e-20, 1.0, 1e20):
        part = low_rank(draw((8, 9)) * np.float32(size), rank=5)
        for factor in part.arrays.values():
            assert factor.dtype == np.float32
            assert np.abs(factor).max() <= 1
        near = {k: v.astype(np.float16) for k, v in part.arrays.items()}
        error = part.settings["scale"] * near["left"].astype(np.float64) @ near["right"].astype(np.float64) - rebuilt(
            part
        )
        assert np.abs(error).max() < 2e-3 * size


def test_no_more_than_the_matrix_has():
    tau = draw((6, 2)) @ draw((2, 9), 1)
    assert low_rank(tau, rank=5).arrays["left"].shape == (6, 2)
    part = low_rank(np.zeros((3, 4), np.float32))
    assert not rebuilt(part).any()
    assert part.arrays["right"].shape == (1, 4)


def test_what_it_takes():
    assert low_rank.is_taken("w", (3, 4, 5), "BF16")
    assert not low_rank.is_taken("b", (3,), "F32")
    assert not low_rank.is_taken("w", (3, 4), "I32")
    with pytest.raises(ArgumentError, match="energy"):
        low_rank.check({"energy": 0.0}, 1)
