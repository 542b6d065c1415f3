"""Vectors in few bits."""

import numpy as np
import pytest

from weightsmith.tensor.mixed import code_bytes, effective_bits, from_codes, scale_count, to_codes, widths_of


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def through(vectors, bits, widths, group=128):
    codes, scales = to_codes(vectors, bits, widths, group)
    assert codes.dtype == np.uint8
    assert scales.dtype == np.float16
    assert len(codes) == code_bytes(vectors.shape[1], bits, widths)
    assert len(scales) == scale_count(vectors.shape[1], widths, group)
    return from_codes(codes, scales, vectors.shape[1], bits, widths, group)


def test_by_hand():
    # Two bits, levels -1.5 -0.5 0.5 1.5 times the step 1 = max / 2 of this run: all entries are levels of it.
    vectors = np.array([[1.5, -1.5, 0.5, -0.5, 0.5]], np.float32)
    codes, scales = to_codes(vectors, [2], [1], 8)
    assert scales.tolist() == [1.0]
    assert codes.tolist() == [3 + (0 << 2) + (2 << 4) + (1 << 6), 2]
    np.testing.assert_array_equal(from_codes(codes, scales, 5, [2], [1], 8), vectors)


@pytest.mark.parametrize("length", [1, 3, 127, 128, 129, 300])
def test_mixed_widths_and_odd_lengths(length):
    vectors = draw((9, length))
    found = through(vectors, [8, 4, 2], [2, 3, 4])
    assert found.shape == vectors.shape
    for part, width in ((slice(0, 2), 8), (slice(2, 5), 4), (slice(5, 9), 2)):
        np.testing.assert_array_equal(
            found[part], through(np.ascontiguousarray(vectors[part]), [width], [len(vectors[part])])
        )


def test_every_entry_takes_the_nearest_level():
    vectors = draw((3, 200), 1)
    for width in (2, 4, 8):
        codes, scales = to_codes(vectors, [width], [3], 100)
        steps = np.repeat(scales.astype(np.float64).reshape(3, 2), 100, 1)
        levels = np.arange(2**width) + 0.5 - 2 ** (width - 1)
        best = np.abs(vectors[..., None] - steps[..., None] * levels).min(-1)
        found = from_codes(codes, scales, 200, [width], [3], 100)
        np.testing.assert_allclose(np.abs(found - vectors), best, atol=1e-6)


@pytest.mark.parametrize(("width", "least", "most"), [(8, 0.0, 1e-4), (4, 0.005, 0.016), (2, 0.08, 0.14)])
def test_error_of_normal_numbers(width, least, most):
    # Uniform levels at the best step have relative error 0.119 in 2 bits, 0.0115 in 4 (Max, 1960); runs of 128 fit a bit better.
    vectors = draw((20, 1280), 2)
    found = through(vectors, [width], [20])
    assert least < float(np.square(found - vectors).mean()) < most


def test_scales_follow_each_run_and_zeros_stay():
    vectors = np.concatenate([np.full((1, 64), 1e-3), np.zeros((1, 64)), np.full((1, 64), -50.0)], 1).astype(np.float32)
    found = through(vectors, [4], [1], 64)
    assert not found[0, 64:128].any()
    np.testing.assert_allclose(found[0, :64], 1e-3, rtol=0.07)
    np.testing.assert_allclose(found[0, 128:], -50, rtol=0.07)


def test_tiny_and_negative_runs_keep_their_sign_and_symmetry():
    vectors = draw((4, 256), 3)
    np.testing.assert_allclose(through(-vectors, [2], [4]), -through(vectors, [2], [4]), atol=1e-7)
    assert not through(np.full((1, 4), 1e-12, np.float32), [2], [1]).any()  # below what a scale can hold


def test_no_vectors():
    assert through(np.empty((0, 5), np.float32), [8, 4], [0, 0]).shape == (0, 5)


def test_effective_bits_of_the_published_setting():
    # Rank 1000 of 4096 x 4096 at 20 * 8 + 180 * 4 + 800 * 2 bits: about 1.2 bits per weight, and 1000 * 64 scales of 16.
    widths = widths_of(1000, [20, 180])
    assert widths == [20, 180, 800]
    codes = (20 * 8 + 180 * 4 + 800 * 2) * 2 / 4096
    assert codes == pytest.approx(1.21, abs=0.01)
    assert effective_bits((4096, 4096), [8, 4, 2], widths, 128) == pytest.approx(codes + 1000 * 16 / 128 * 2 / 4096)
