"""Task vectors in whole steps."""

import numpy as np
import pytest

from weightsmith.compress.rounded import rounded
from weightsmith.errors import ArgumentError, CheckpointError
from weightsmith.tensor.frames import add_rounded, decode_frame, encode_frame


def draw(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_by_hand():
    # D = sqrt(45 / 8) = 2.37: 5 is 2.1 steps, -3 is -1.3, 2 is 0.8, 1 is 0.4.
    part = rounded(np.array([2.5, -1.5, 0.5, 0.0, 1.0, -1.0, 0.5, 0.5]) * 2, step=1.0)
    size = np.sqrt((5**2 + 3**2 + 1 + 4 + 4 + 1 + 1) / 8)
    assert part.arrays["codes"].tolist() == [2, -1, 0, 0, 1, -1, 0, 0]
    assert part.settings["scale"] == pytest.approx(size)


@pytest.mark.parametrize("step", [0.01, 0.25, 1.0, 3.0])
def test_each_entry_is_off_by_at_most_half_a_step(step):
    tau = draw(5000)
    part = rounded(tau, step=step)
    size = step * np.sqrt(np.square(tau.astype(np.float64)).mean())
    assert part.settings["scale"] == pytest.approx(size)
    data, found = encode_frame("rounded", part.arrays, part.settings), np.empty(5000, np.int16)
    decode_frame("rounded", data, {}, found)
    np.testing.assert_array_equal(found, part.arrays["codes"])
    out = np.zeros(5000, np.float32)
    add_rounded(out, data, part.settings["scale"])
    assert np.abs(out - tau).max() <= 0.5001 * size
    np.testing.assert_allclose(out, size * np.rint(tau / size), rtol=1e-6)


def test_room_follows_the_step():
    pytest.importorskip("zstandard")
    bits = []
    for step in (0.25, 0.5, 1.0):
        part = rounded(draw(65_536), step=step)
        counts = np.unique(part.arrays["codes"], return_counts=True)[1] / 65_536
        bits.append(8 * len(encode_frame("rounded", part.arrays, {})) / 65_536)
        assert bits[-1] < 1.15 * -(counts * np.log2(counts)).sum() + 0.3
    assert bits == sorted(bits, reverse=True)


def test_zeros_leave_the_base():
    part = rounded(np.zeros(9, np.float32))
    assert not part.arrays["codes"].any()
    out = np.array([-0.0] * 9, np.float32)
    add_rounded(out, encode_frame("rounded", part.arrays, {}), 1.0)
    assert np.signbit(out).all()


def test_far_entries_are_cut_off():
    tau = np.zeros(1_000_000, np.float32)
    tau[0], tau[1] = 1000.0, 1e-3
    part = rounded(tau, step=0.01)
    assert part.arrays["codes"][:2].tolist() == [32_767, 0]


def test_wrong_input():
    for step in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="step"):
            rounded.check({"step": step}, 1)
    data = encode_frame("rounded", rounded(draw(100)).arrays, {})
    for wrong in (b"", data[:-1], data + b"\0"):
        with pytest.raises(CheckpointError, match="damaged"):
            add_rounded(np.zeros(100, np.float32), wrong, 1.0)
