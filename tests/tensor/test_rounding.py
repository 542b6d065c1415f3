"""Rounding between steps: against torch's casts, the same bits in every form."""

import numpy as np
import pytest
import torch

from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.rounding import PRECISIONS, rounded, rounded_number


def hard_numbers():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    halves = (rng.integers(0, 2**16, 2_000).astype(np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    drawn = np.concatenate([bits, halves, np.array([0, 0x80000000, 1, 0x00008000, 0x7F7F8000], np.uint32)])
    values = drawn.view(np.float32)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_torch_casts(precision, dtype):
    values = hard_numbers()
    expected = torch.from_numpy(values.copy()).to(getattr(torch, precision)).float().numpy().astype(dtype)
    given = values.astype(dtype)
    for form in (given, given.view(Plain)):
        found = rounded(form, precision)
        assert found.dtype == np.dtype(dtype)
        assert found.tobytes() == expected.tobytes()
    assert rounded(torch.from_numpy(given), precision).numpy().tobytes() == expected.tobytes()


def test_by_hand():
    # bfloat16 has 8 significant bits: 1 + 2**-8 lies halfway, and goes to the even 1; 1 + 3 * 2**-8 to 1 + 2**-6.
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1.0, 0.1], np.float32)
    assert rounded(values, "bfloat16").tolist() == [1.0, 1.015625, -1.0, 0.10009765625]
    assert rounded(values, "float32") is values


def test_shapes_are_kept():
    values = np.full((3, 4, 5), 1.001, np.float32)
    for precision in PRECISIONS:
        assert rounded(values, precision).shape == (3, 4, 5)
        assert rounded(values[:, ::2], precision).shape == (3, 2, 5)


def test_one_number():
    assert rounded_number(1 + 2**-8, "bfloat16") == 1.0
    assert rounded_number(0.1, "float32") == float(np.float32(0.1))
