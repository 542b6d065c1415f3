"""Rice codes of gaps: against strings of zeros and ones, and the sizes that the paper's formula promises."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import CheckpointError
from weightsmith.tensor.rice import (
    coded_count,
    decode_positions,
    encode_positions,
    entropy_bits,
    expected_bits,
    rice_bytes,
    rice_parameter,
)


def slow_encode(positions, size):
    """Write the codes as text, then cut the text into bytes."""
    b = rice_parameter(len(positions) / size)
    text, last = "", -1
    for position in positions:
        gap = position - last - 1
        last = position
        remainder = format(gap % 2**b, f"0{b}b")[::-1] if b else ""
        text += "0" * (gap // 2**b) + "1" + remainder
    text += "0" * (-len(text) % 8)
    codes = bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))
    return struct.pack("<BI", b, len(positions)) + codes


def decode(data, size):
    return decode_positions(np.frombuffer(data, np.uint8), size, "file 'f', tensor 't', frame 0")


def check(positions, size):
    found = encode_positions(np.array(positions, np.int32), size)
    assert found == slow_encode(positions, size)
    assert len(found) == rice_bytes(np.array(positions, np.int32), size)
    back = decode(found, size)
    assert back.dtype == np.int32
    assert back.tolist() == positions


def test_worked_example():
    # three of ten: b = 1 + floor(log2(0.4812 / 0.3567)) = 1; gaps 2, 0, 5 are 0 1 0, 1 0, 0 0 1 1
    assert encode_positions(np.array([2, 3, 9], np.int32), 10) == bytes([1, 3, 0, 0, 0, 0b10001010, 0b1])


@settings(deadline=None)
@given(st.sets(st.integers(0, 299), min_size=1), st.sampled_from([300, 1000, 65_536]))
def test_round_trip(chosen, size):
    check(sorted(chosen), size)


@pytest.mark.parametrize("size", [1, 7, 8, 63, 64, 65, 65_536])
@pytest.mark.parametrize("density", [0.0001, 0.01, 0.2, 0.5, 0.9, 1])
def test_round_trip_of_random_positions(size, density):
    chosen = np.flatnonzero(np.random.default_rng(size).random(size) < density).tolist() or [size - 1]
    check(chosen, size)


@pytest.mark.parametrize("runs", [[(0, 500), (65_000, 65_500)], [(65_535, 65_536)], [(0, 30_000), (65_530, 65_536)]])
def test_long_gaps_with_short_remainders(runs):
    check([i for start, stop in runs for i in range(start, stop)], 65_536)


@pytest.mark.parametrize(
    ("density", "rice", "entropy"),
    [(0.05, 0.339, 0.336), (0.1, 0.576, 0.569), (0.2, 0.939, 0.922), (0.3, 1.188, 1.181), (0.5, 1.5, 1.5)],
)
def test_expected_bits_are_the_published_ones(density, rice, entropy):
    assert round(expected_bits(density), 3) == rice
    assert round(entropy_bits(density), 3) == entropy


def test_bits_of_nothing_and_of_everything():
    assert (expected_bits(0), entropy_bits(0)) == (0, 0)
    assert (expected_bits(1), entropy_bits(1)) == (2, 1)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_random_positions_take_the_expected_bits(density):
    size = 65_536
    rng = np.random.default_rng(7)
    coded = selected = 0
    for _ in range(16):
        positions = np.sort(rng.choice(size, round(density * size), replace=False)).astype(np.int32)
        coded += 8 * len(encode_positions(positions, size)) + positions.size  # and a sign each
        selected += size
    assert coded / selected == pytest.approx(expected_bits(density), rel=0.01)


def test_parameter_grows_as_fewer_are_selected():
    found = [rice_parameter(k / 65_536) for k in range(1, 65_537)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (15, 0)


GOOD = slow_encode([2, 3, 9], 10)


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (b"", 10, "expected 5 bytes before the codes; got 0"),
        (GOOD[:4], 10, "expected 5 bytes before the codes; got 4"),
        (GOOD[:-1], 10, "got an end within a code"),
        (GOOD[:5], 10, "got an end within a code"),
        (GOOD + b"\0", 10, "got more bits than they take"),
        (GOOD[:-1] + b"\x81", 10, "got more bits than they take"),
        (GOOD, 9, "got one beyond the end"),
        (GOOD, 2, "expected at most 2 selected elements; got 3"),
        (bytes([32]) + GOOD[1:], 10, "expected remainders of at most 31 bits; got 32"),
        (bytes([31]) + GOOD[1:], 10, "got one beyond the end"),
        (struct.pack("<BI", 1, 2) + GOOD[5:], 10, "got more bits than they take"),
        (struct.pack("<BI", 1, 4) + GOOD[5:], 10, "got an end within a code"),
        (struct.pack("<BI", 31, 1) + b"\0" * 1000 + b"\1" + b"\0" * 8, 10, "got one beyond the end"),
        (struct.pack("<BI", 0, 1) + b"\0" * 1000, 10_000, "got an end within a code"),
        (struct.pack("<BI", 31, 1) + b"\xff" * 8, 10, "got one beyond the end"),
    ],
)
def test_damage_is_refused(data, size, message):
    with pytest.raises(CheckpointError) as caught:
        decode(data, size)
    assert str(caught.value).startswith("file 'f', tensor 't', frame 0 is damaged; expected ")
    assert message in str(caught.value)


def test_a_count_is_read_from_the_beginning():
    assert coded_count(np.frombuffer(GOOD[:5], np.uint8), 10, "frame") == 3
