"""Adding frames to stored bfloat16 numbers in place: against decoding, adding and encoding them, one after the other."""

from itertools import takewhile

import numpy as np
import pytest

from weightsmith.errors import ArgumentError, CheckpointError
from weightsmith.tensor import bits, rice
from weightsmith.tensor.coding import decode, encode
from weightsmith.tensor.frames import (
    FRAME,
    PATCHED,
    add_masked,
    add_signs,
    add_sparse,
    add_ternary,
    encode_frame,
    patch,
    patch_frames,
)
from weightsmith.tensor.support import RICE

RNG = np.random.default_rng(11)


def stored(size):
    """Return bfloat16 bits of every kind: normal, subnormal, zeros of both signs, infinities."""
    words = RNG.integers(0, 1 << 16, size).astype("<u2")
    words[(words & 0x7F80) == 0x7F80] = 0x7F80  # no NaN: encoding marks it, patching leaves it where nothing is added
    words[::7], words[3::50], words[5::50] = 0, 0x8000, 0x0001
    return words


def values_of(form, size, density):
    mask = RNG.random(size) < density
    if form == "mask":
        return {"mask": mask}
    if form == "sparse":
        return {"mask": mask, "values": RNG.standard_normal(size).astype(np.float32)}
    signs = RNG.choice([-1, 1], size).astype(np.int8)
    return {"signs": signs if form == "sign" else signs * mask}


def one_after_the_other(words, form, data, settings, scale, shared):
    values, out = np.empty(words.size, np.float32), np.empty(2 * words.size, np.uint8)
    decode(words.view(np.uint8).copy(), "BF16", values)
    if form == "mask":
        add_masked(values, data, shared, scale)
    elif form == "ternary":
        add_ternary(values, data, scale)
    elif form == "sign":
        add_signs(values, data, np.array([scale], np.float32))
    else:
        add_sparse(values, data, settings, scale)
    encode(values, "BF16", out)
    return out.view("<u2")


@pytest.mark.parametrize("form", PATCHED)
@pytest.mark.parametrize("size", [1, 3000, FRAME])
@pytest.mark.parametrize("density", [0, 0.001, 0.2, 0.6, 1])
@pytest.mark.parametrize("scale", [0.0, 0.7, -3.5e-6])
def test_same_bits(form, size, density, scale):
    words, shared = stored(size), RNG.standard_normal(size).astype(np.float32)
    shared[::5] = 0
    settings = {"dtype": "BF16"} if form == "sparse" else {}
    data = encode_frame(form, values_of(form, size, density), settings)
    wanted = one_after_the_other(words, form, data, settings, scale, shared)
    patch(words, form, data, settings, scale, shared)
    np.testing.assert_array_equal(words, wanted)


def test_worked_example():
    # 1.0 + 0.0078125 lies half way between neighbors and goes to the even one; 1.0078125 + 0.0078125 is 1.015625
    words = np.array([0x3F80, 0x3F81, 0x3F80, 0x3F80], "<u2")
    data = encode_frame("ternary", {"signs": np.array([1, 1, 0, -1])}, {})
    patch(words, "ternary", data, {}, 0.00390625)
    assert [hex(w) for w in words] == ["0x3f80", "0x3f82", "0x3f80", "0x3f7f"]


def test_nan_stays_nan_and_what_is_not_selected_keeps_its_bits():
    words = np.array([0x7F81, 0x7F81, 0x8000], "<u2")
    patch(words, "mask", encode_frame("mask", {"mask": np.array([True, False, False])}, {}), {}, 1.0, np.ones(3, "<f4"))
    assert (words[0] & 0x7FFF) > 0x7F80
    assert words[1:].tolist() == [0x7F81, 0x8000]


@pytest.mark.parametrize("form", PATCHED)
def test_damaged_frames_change_nothing(form):
    words = stored(100)
    before = words.copy()
    with pytest.raises(CheckpointError, match="frame"):
        patch(words, form, b"\x09", {"dtype": "F32"}, 1.0, np.ones(100, np.float32))
    np.testing.assert_array_equal(words, before)


def test_other_forms_are_refused():
    with pytest.raises(ArgumentError, match="'rounded' is unknown"):
        patch(stored(3), "rounded", b"\x00", {}, 1.0)


def run_of_frames(size, density):
    """Return a run of ternary frames, the last one short: their data, side by side, and where they begin and end."""
    values = values_of("ternary", size, density)["signs"]
    frames = [encode_frame("ternary", {"signs": values[at : at + FRAME]}, {}) for at in range(0, size, FRAME)]
    return frames, np.frombuffer(b"".join(frames), np.uint8), np.cumsum([0, *map(len, frames)])


@pytest.mark.parametrize("density", [0.0005, 0.01, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("scale", [0.0, 0.7, -3.5e-6])
def test_a_run_of_frames_has_the_bits_of_one_after_the_other(density, scale):
    size = 3 * FRAME + 4001
    frames, data, ends = run_of_frames(size, density)
    words = stored(size)
    wanted = words.copy()
    for number, frame in enumerate(frames):
        patch(wanted[number * FRAME : (number + 1) * FRAME], "ternary", frame, {}, scale)
    done = patch_frames(words, "ternary", data, ends, scale)
    assert done == sum(1 for _ in takewhile(lambda frame: frame[0] == RICE, frames)) >= 3
    wanted[done * FRAME :] = words[done * FRAME :]
    np.testing.assert_array_equal(words, wanted)


def test_a_run_ends_before_what_is_coded_otherwise_or_damaged():
    frames, _, _ = run_of_frames(2 * FRAME, 0.1)
    first, second = frames
    cut = [second[:n] for n in (0, 1, 5, 6, 7, len(second) // 2, len(second) - 1)]
    longer = [second + b"\0", second + b"\1", second[:-1] + bytes([second[-1] | 0x80]) + b"\x01"]
    heads = [second[:1] + bytes([b]) + second[2:] for b in (0, 3 ^ second[1], 32, 255)]
    counts = [
        second[:2] + n.to_bytes(4, "little") + second[6:] for n in (0, 1, FRAME, FRAME + 1, 1 << 31, (1 << 32) - 1)
    ]
    other = encode_frame("ternary", {"signs": np.ones(FRAME, np.int8)}, {})
    for bad in [*cut, *longer, *heads, *counts, other, b"\0", b"\x09"]:
        words = stored(2 * FRAME)
        wanted = words.copy()
        patch(wanted[:FRAME], "ternary", first, {}, 0.5)
        data, ends = np.frombuffer(first + bad, np.uint8), np.cumsum([0, len(first), len(bad)])
        assert patch_frames(words, "ternary", data, ends, 0.5) == 1
        np.testing.assert_array_equal(words, wanted)


def test_a_damaged_frame_before_a_good_one_changes_nothing():
    frames, _, _ = run_of_frames(2 * FRAME, 0.1)
    bad = frames[0][:2] + (FRAME + 1).to_bytes(4, "little") + frames[0][6:]
    words = stored(2 * FRAME)
    before = words.copy()
    data, ends = np.frombuffer(bad + frames[1], np.uint8), np.cumsum([0, len(bad), len(frames[1])])
    assert patch_frames(words, "ternary", data, ends, 0.5) == 0
    np.testing.assert_array_equal(words, before)


@pytest.mark.parametrize("dense", [0.03, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("other", [0.0002, 0.02, 0.2])
def test_two_frames_unlike_each_other_and_uneven_in_themselves(dense, other):
    signs = np.zeros(2 * FRAME, np.int8)
    for start, share in ((0, dense), (FRAME, other)):  # gaps of thousands among gaps of a few: the longest codes
        for run in range(start, start + 50_000, 20_000):
            signs[run : run + 9_000] = RNG.choice([-1, 1], 9_000) * (RNG.random(9_000) < share)
    frames = [encode_frame("ternary", {"signs": part}, {}) for part in (signs[:FRAME], signs[FRAME:])]
    coded = [
        b"\x03" + rice.encode_positions(at, FRAME) + tail
        for at, tail in map(selected_of, (signs[:FRAME], signs[FRAME:]))
    ]
    words = stored(2 * FRAME)
    wanted = words.copy()
    for number, frame in enumerate(frames):
        patch(wanted[number * FRAME : (number + 1) * FRAME], "ternary", frame, {}, 0.25)
    data, ends = np.frombuffer(b"".join(coded), np.uint8), np.cumsum([0, *map(len, coded)])
    assert patch_frames(words, "ternary", data, ends, 0.25) == 2
    np.testing.assert_array_equal(words, wanted)


def selected_of(signs):
    """Return the positions of what is not 0, and the tail of a ternary frame of it."""
    at = np.flatnonzero(signs).astype(np.int32)
    return at, bits.pack(signs[at] < 0).tobytes()


def test_other_forms_have_no_run():
    assert patch_frames(stored(3), "mask", np.zeros(1, np.uint8), np.array([0, 1]), 1.0) == 0
