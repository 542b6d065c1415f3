"""One byte per number and a scale per row: a worked example, and a loop over single numbers."""

import numpy as np
import pytest

from weightsmith.tensor.int8 import from_int8, row_scales, to_int8


def test_worked_example():
    matrix = np.array([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0], [-0.5, 0.25, 0.125]], np.float32)
    scales = row_scales(matrix)
    assert scales.dtype == np.float32
    assert scales.tolist() == [1.0, 0.0, float(np.float32(0.5) / np.float32(127))]
    codes = to_int8(matrix.reshape(-1), scales, 3)
    assert codes.tolist() == [127, -64, 0, 0, 0, 0, -127, 64, 32]  # 63.5 and 31.75: ties to even, nearest
    out = np.empty(9, np.float32)
    from_int8(codes, scales, 3, out)
    assert out[:6].tolist() == [127, -64, 0, 0, 0, 0]
    np.testing.assert_allclose(out[6:], [-0.5, 0.25, 0.125], atol=0.5 / 127 / 2)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (64, 3), (2, 1000)])
@pytest.mark.parametrize("cut", [1, 5, 999])
def test_any_cut_gives_the_numbers_of_a_plain_loop(rows, columns, cut):
    matrix = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    matrix[0] = 0
    scales = row_scales(matrix)
    flat = matrix.reshape(-1)
    expected = []
    for i, x in enumerate(flat):
        scale = np.float32(max(abs(matrix[i // columns]))) / np.float32(127)
        expected.append(round(float(x / scale)) if scale else 0)
    codes = np.concatenate([to_int8(flat[i : i + cut], scales, columns, i) for i in range(0, flat.size, cut)])
    assert codes.dtype == np.int8
    assert codes.tolist() == expected
    out = np.empty(flat.size, np.float32)
    for i in range(0, flat.size, cut):
        from_int8(codes[i : i + cut], scales, columns, out[i : i + cut], i)
    assert out.tolist() == [float(np.float32(c) * scales[i // columns]) for i, c in enumerate(expected)]
    assert np.abs(out - flat).max() <= scales.max() * 0.5001


def test_a_scale_too_small_for_a_float_does_not_leave_the_range():
    tiny = np.array([[3e-45, 1e-43, -1.4e-45]], np.float32)  # a few of the smallest numbers there are
    scales = row_scales(tiny)
    assert np.abs(to_int8(tiny[0], scales, 3).astype(int)).max() <= 127


def test_sizes_of_zero():
    assert row_scales(np.empty((0, 4), np.float32)).tolist() == []
    assert row_scales(np.empty((2, 0), np.float32)).tolist() == [0, 0]
    assert to_int8(np.empty(0, np.float32), np.empty(0, np.float32), 4).tolist() == []
