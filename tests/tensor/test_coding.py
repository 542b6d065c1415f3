"""Stored bytes to numbers and back: exact where they must be, correctly rounded where not."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from weightsmith.tensor.coding import decode, decode_rows, encode, stored_bytes
from weightsmith.tensor.lowrank import add_low_rank

NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
PATTERNS = np.arange(65536, dtype=np.uint16)


def stored(values, dtype):
    out = np.empty(len(values) * stored_bytes(dtype), np.uint8)
    return out, encode(values, dtype, out)


def loaded(raw, dtype, working):
    out = np.empty(len(raw) // stored_bytes(dtype), working)
    return out, decode(raw, dtype, out)


@pytest.mark.parametrize("working", ["float32", "float64"])
def test_all_bfloat16_patterns_widen_as_in_torch(working):
    theirs = torch.from_numpy(PATTERNS.view(np.int16)).view(torch.bfloat16).to(getattr(torch, working)).numpy()
    with np.errstate(invalid="ignore"):  # signalling NaN
        found, finite = loaded(PATTERNS.view(np.uint8), "BF16", working)
    assert not finite
    assert np.array_equal(found, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(theirs))


@pytest.mark.parametrize("working", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_all_finite_patterns_come_back(dtype, working):
    raw = PATTERNS.view(np.uint8)
    with np.errstate(invalid="ignore"):  # signalling NaN
        numbers, _ = loaded(raw, dtype, working)
    keep = np.isfinite(numbers)
    assert keep.sum() == (65280 if dtype == "BF16" else 63488)
    again, finite = stored(np.ascontiguousarray(numbers[keep]), dtype)
    assert finite
    assert again.tobytes() == PATTERNS[keep].tobytes()
    assert loaded(PATTERNS[keep].view(np.uint8), dtype, working)[1]


def near_bfloat16():
    """Return float32 numbers: random bits, and all bfloat16 numbers with half a step and its neighbours added."""
    rng = np.random.default_rng(0)
    patterns = PATTERNS.astype(np.uint32) << np.uint32(16)
    tails = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    special = (patterns[:, None] | tails).ravel()
    found = np.concatenate([special, rng.integers(0, 2**32, 200_000, dtype=np.uint32)]).view(np.float32)
    return np.ascontiguousarray(found[np.isfinite(found)])


def test_float32_rounds_to_bfloat16_as_in_torch():
    values = near_bfloat16()
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    found, finite = stored(values, "BF16")
    assert not finite  # the largest numbers round to infinity
    assert found.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_float64_rounds_once(dtype):
    """Against exact fractions: the nearest stored number, the even one of two."""
    rng = np.random.default_rng(1)
    digits, lowest = {"BF16": (8, -133), "F16": (11, -24), "F32": (24, -149)}[dtype]
    highest = 14 if dtype == "F16" else 126
    values = rng.uniform(1, 2, 3000) * 2.0 ** rng.integers(lowest - 3, highest, 3000) * rng.choice([1, -1], 3000)
    # Halfway between neighbours, and so little beside it that float32 does not see the difference.
    middle = np.ldexp(rng.integers(2 ** (digits - 1), 2**digits, 2000) + 0.5, rng.integers(-8, 3, 2000))
    beside = middle * (1 + rng.choice([-1.0, 0.0, 1.0], 2000) * 2.0**-50)
    tiny = np.array([0.0, -0.0, 5e-324, -5e-324, 2.0 ** (lowest - 1), np.nextafter(2.0 ** (lowest - 1), 1)])
    values = np.concatenate([values, middle, beside, tiny])
    raw, finite = stored(values, dtype)
    assert finite
    found, _ = loaded(raw, dtype, "float64")
    for value, got in zip(values.tolist(), found.tolist(), strict=True):
        exact = Fraction(value)
        _, exponent = np.frexp(value)
        step = Fraction(2) ** max(int(exponent) - digits, lowest)
        assert Fraction(got) == round(exact / step) * step, value  # Fraction rounds half to even
        assert np.signbit(got) == np.signbit(value)


@pytest.mark.parametrize(
    ("dtype", "largest"), [("BF16", 255 * 2.0**120), ("F16", 65504.0), ("F32", float(np.finfo(np.float32).max))]
)
@pytest.mark.parametrize("working", ["float32", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_is_told(dtype, largest, working, sign):
    values = np.array([0.0, sign * largest], working)
    assert stored(values, dtype)[1]
    if working == "float32" and dtype == "F32":
        return  # no float32 number lies beyond
    found, finite = stored(np.array([0.0, sign * largest * 1.003], working), dtype)
    assert not finite
    assert loaded(found, dtype, "float64")[0].tolist() == [0.0, sign * np.inf]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("working", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_numbers_are_told(dtype, working, bad):
    values = np.ones(5000, working)
    assert stored(values, dtype)[1]
    values[4321] = bad
    raw, finite = stored(values, dtype)
    assert not finite
    again, finite = loaded(raw, dtype, working)
    assert not finite
    assert np.array_equal(again, values, equal_nan=True)


@pytest.mark.parametrize("dtype", ["F16", "F32", "F64"])
def test_numpy_dtypes(dtype):
    values = np.random.default_rng(2).standard_normal(1000).astype(NUMPY[dtype])
    raw, finite = stored(values.astype(np.float64), dtype)
    assert finite
    assert raw.tobytes() == values.tobytes()


def test_nothing_is_finite():
    for dtype in ("BF16", "F16", "F32", "F64"):
        assert stored(np.empty(0, np.float32), dtype)[1]
        assert loaded(np.empty(0, np.uint8), dtype, "float32")[1]


@pytest.mark.parametrize("working", ["float32", "float64"])
def test_slices_of_a_low_rank_update_have_the_bits_of_the_whole(working):
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((13, 3)).astype(np.float32), rng.standard_normal((3, 7)).astype(np.float32)
    start = rng.standard_normal(91).astype(working)
    whole = start.copy()
    add_low_rank(whole, left, right, 0.3, 0)
    for first in range(0, 91, 5):
        for length in (0, 1, 6, 7, 8, 20):
            part = start[first : first + length].copy()
            add_low_rank(part, left, right, 0.3, first)
            assert part.tobytes() == whole[first : first + length].tobytes()
    exact = start.astype(np.float64) + 0.3 * (left.astype(np.float64) @ right.astype(np.float64)).ravel()
    np.testing.assert_allclose(whole, exact, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", [0, 1, 3, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("subtract", [False, True])
def test_rows_at_once_equal_row_by_row(size, subtract):
    rng = np.random.default_rng(size)
    bits = rng.integers(0, 0x7F80, (4, size)).astype(np.uint16) | (rng.integers(0, 2, (4, size)) << 15).astype(
        np.uint16
    )
    expected = np.empty((4, size), np.float32)
    for row, stored in zip(expected, bits, strict=True):
        assert decode(stored.view(np.uint8), "BF16", row)
    if subtract:
        with np.errstate(over="ignore"):
            expected[1:] -= expected[0]
    out = np.full((4, size), np.nan, np.float32)
    assert decode_rows(bits, out, subtract)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
@pytest.mark.parametrize("row", [0, 2])
def test_rows_tell_of_one_nonfinite_entry(row, pattern):
    bits = np.zeros((3, 2000), np.uint16)
    bits[row, 1500] = pattern
    assert not decode_rows(bits, np.empty((3, 2000), np.float32), False)
