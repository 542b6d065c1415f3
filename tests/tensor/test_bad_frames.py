"""Frames that are damaged or hostile are refused, with what was found; nothing is decoded beyond the frame's size."""

import contextlib
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import CheckpointError, ResourceError
from weightsmith.tensor import zstd
from weightsmith.tensor.frames import (
    FRAME,
    add_masked,
    add_signs,
    add_sparse,
    add_ternary,
    decode_frame,
    encode_frame,
)

WHERE = "file 'part.safetensors', tensor 'w', frame 3"
OUT = {"mask": np.bool_, "ternary": np.int8, "sign": np.int8, "sparse": np.float32, "difference": np.uint16}


def decode(form, data, size, dtype="F32"):
    """Decode in both ways, which must agree; raise the error that both give."""
    options = {"dtype": dtype} if form == "sparse" else {}
    base, sums = np.zeros(size, np.uint16), np.zeros(size, np.float32)
    errors = [failure(decode_frame, form, data, options, np.empty(size, OUT[form]), base, WHERE)]
    if form == "mask":
        errors.append(failure(add_masked, sums, data, np.ones(size, np.float32), 1.0, WHERE))
    elif form == "ternary":
        errors.append(failure(add_ternary, sums, data, 1.0, WHERE))
    elif form == "sparse":
        errors.append(failure(add_sparse, sums, data, options, 1.0, WHERE))
    elif form == "sign":
        errors.append(failure(add_signs, sums, data, np.ones(1, np.float32), FRAME, 0, WHERE))
    assert len({str(error) for error in errors}) == 1
    if errors[0]:
        assert str(errors[0]).startswith(f"{WHERE} is damaged; expected ")
        raise errors[0]


def failure(function, *arguments):
    try:
        function(*arguments)
    except CheckpointError as error:
        return error
    return None


def good_frames():
    """Yield a frame of each form and codec: form, bytes, elements, dtype of values."""
    rng = np.random.default_rng(0)
    masks = [rng.random(1000) < density for density in (0, 2, 0.5, 0.02)] + [np.arange(1000) % 100 < 50]
    for mask in masks:
        yield "mask", encode_frame("mask", {"mask": mask}, {}), 1000, ""
        signs = np.where(mask, rng.choice([-1, 1], 1000), 0)
        yield "ternary", encode_frame("ternary", {"signs": signs}, {}), 1000, ""
        for dtype in ("F32", "BF16", "F16", "I8"):
            values = rng.standard_normal(1000).astype(np.float32)
            yield "sparse", encode_frame("sparse", {"mask": mask, "values": values}, {"dtype": dtype}), 1000, dtype
    yield "sign", encode_frame("sign", {"signs": rng.choice([-1, 1], 999)}, {}), 999, ""
    for top in (1, 5, 65_536):
        words = {"base": np.zeros(1000, np.uint16), "finetuned": rng.integers(0, top, 1000).astype(np.uint16)}
        yield "difference", encode_frame("difference", words, {}), 1000, ""


GOOD = list(good_frames())


def test_there_is_a_good_frame_of_every_codec():
    kinds = {(form, data[0]) for form, data, _, _ in GOOD}
    for form in ("mask", "ternary", "sparse"):
        assert {codec for f, codec in kinds if f == form} == {0, 1, 2, 3, 4}
    assert {codec for f, codec in kinds if f == "difference"} == {0, 2, 4}
    for form, data, size, dtype in GOOD:
        decode(form, data, size, dtype)


@pytest.mark.parametrize(("form", "data", "size", "dtype"), GOOD)
def test_cut_short_or_too_long(form, data, size, dtype):
    for length in {0, 1, 2, 5, 6, len(data) // 2, len(data) - 2, len(data) - 1}:
        if 0 <= length < len(data):
            with pytest.raises(
                CheckpointError, match=r"^file 'part.safetensors', tensor 'w', frame 3 is damaged; expected "
            ):
                decode(form, data[:length], size, dtype)
    for more in (b"\0", b"\1", b"\xff" * 9):
        with pytest.raises(CheckpointError, match="is damaged"):
            decode(form, data + more, size, dtype)


@pytest.mark.parametrize("form", list(OUT))
@pytest.mark.parametrize("codec", [3, 5, 255])
def test_unknown_codec(form, codec):
    if codec == 3 and form not in ("sign", "difference"):
        return
    with pytest.raises(CheckpointError, match=f"{codec}") as caught:
        decode(form, bytes([codec]) + b"\0" * 20, 160)
    assert "expected" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_changed_byte_is_decoded_or_refused(good, changes):
    form, data, size, dtype = good
    changed = bytearray(data)
    for at, byte in changes:
        changed[at % len(data)] = byte
    with contextlib.suppress(CheckpointError):
        decode(form, bytes(changed), size, dtype)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(OUT)), st.integers(0, 4), st.binary(max_size=40), st.sampled_from([0, 1, 7, 64, 65]))
def test_any_bytes_are_decoded_or_refused(form, codec, body, size):
    with contextlib.suppress(CheckpointError):
        decode(form, bytes([codec]) + body, size, "I8")


def pack(*bits):
    return np.packbits(np.array(bits, bool), bitorder="little").tobytes()


@pytest.mark.parametrize(
    ("form", "data", "size", "message"),
    [
        ("mask", b"", 9, "expected a frame of 9 elements; got no bytes"),
        ("difference", b"", 9, "expected a frame of 9 elements; got no bytes"),
        ("sign", b"", 9, "expected 3 bytes, the first 2; got 0"),
        ("mask", b"\2\0\2", 9, "expected 9 elements; got bits set after the last one"),
        ("sign", b"\2\0\2", 9, "expected 9 signs; got bits set after the last one"),
        ("sign", b"\0\0\0", 9, "expected 3 bytes, the first 2; got 3, the first 0"),
        ("mask", b"\2\0", 9, "expected 2 bytes for the bits of 9 elements; got 1"),
        ("mask", b"\2\7\0\0", 9, "expected 0 bytes after the choice of 3 elements; got 1"),
        ("ternary", b"\2\7\0", 9, "expected 1 bytes after the choice of 3 elements; got 0"),
        ("ternary", b"\2\7\0\x08", 9, "expected 3 signs; got bits set after the last one"),
        ("ternary", b"\1\0", 9, "expected 2 bytes after the choice of 9 elements; got 1"),
        ("sparse", b"\2\7\0" + b"\0" * 8, 9, "expected 12 bytes after the choice of 3 elements; got 8"),
        ("sparse", b"\2\1\0\x00\x00\xc0\x7f", 9, "expected finite values; got NaN or infinity"),
        ("sparse", b"\2\1\0\xff\xff\x7f\x7f\2", 9, "expected 4 bytes after the choice of 1 elements; got 5"),
        ("mask", b"\3\0\1\0\0\0\1\0", 9, "got more bits than they take"),
        ("ternary", b"\3\0\1\0\0\0", 9, "expected codes of 1 selected elements out of 9; got an end within a code"),
        ("mask", b"\3\0\xff\xff\xff\xff\1", 9, "expected at most 9 selected elements; got 4294967295"),
        ("mask", b"\4junk", 9, "expected a zstd frame of 2 bytes; got bytes that do not decode: "),
        ("ternary", b"\4", 9, "expected a zstd frame of 2 to 4 bytes; got bytes that do not decode: "),
        ("mask", b"\4" + zstandard.compress(b"\1"), 9, "expected a zstd frame of 2 bytes; got one of 1"),
        ("ternary", b"\4" + zstandard.compress(b"\1\0"), 9, "expected 1 bytes after the choice of 1 elements; got 0"),
        ("difference", b"\0\0", 9, "expected no bytes after the codec; got 1"),
        ("difference", b"\2" + b"\0" * 17, 9, "expected 18 bytes after the codec; got 17"),
        ("difference", b"\4" + b"\0" * 7, 9, "expected 8 bytes for the lengths of 2 planes; got 7"),
        ("difference", b"\4" + struct.pack("<2I", 9, 1) + b"\0" * 9, 9, "expected planes of 10 bytes; got 9"),
        ("difference", b"\4" + struct.pack("<2I", 0, 10) + b"\0" * 10, 9, "expected planes of at most 9 bytes; got 10"),
    ],
)
def test_what_is_said(form, data, size, message):
    with pytest.raises(CheckpointError) as caught:
        decode(form, data, size)
    assert message in str(caught.value)
    assert str(caught.value).endswith("Fetch the bundle's file again, or pack the task again.")


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38])
def test_a_scale_that_makes_infinities(scale):
    with pytest.raises(CheckpointError, match="expected finite values; got NaN or infinity"):
        decode("sparse", b"\2\1\0" + np.float32(scale).tobytes() + b"\2", 9, "I8")


def bombs():
    """Yield zstd frames that hold 64 MiB, or say so, or do not say what they hold."""
    zeros = bytes(64 << 20)
    honest = zstandard.ZstdCompressor().compress(zeros)
    yield "honest", honest, "got one of 67108864"
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    yield "silent", silent, "got one that does not tell its size"
    # A header of magic number, descriptor, window or size: here a size of two bytes (stored minus 256) in one segment.
    blocks = honest[9:]
    yield "liar", bytes.fromhex("28b52ffd60") + struct.pack("<H", 8192 - 256) + blocks, "bytes that do not decode"
    yield "promise", zstandard.ZstdCompressor().compress(bytes(8191))[:-1], "got one of 8191"
    skipped = struct.pack("<II", 0x184D2A50, 8192) + bytes(8192)
    yield "skipped", skipped, "bytes that do not decode"
    yield "skipped in part", skipped[:100], "bytes that do not decode"
    yield "twice", zstandard.compress(bytes(8192)) * 2, "bytes that do not decode"


@pytest.mark.parametrize(("kind", "body", "message"), list(bombs()), ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.parametrize("form", ["mask", "difference"])
def test_decompression_bombs(kind, body, message, form):
    size = FRAME if form == "mask" else 8192  # both expect 8,192 bytes
    head = b"" if form == "mask" else struct.pack("<2I", 0, len(body))
    if len(body) >= size and form == "difference":
        message = "expected planes of" if len(body) > size else message
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            decode_frame(form, b"\4" + head + body, {}, np.empty(size, OUT[form]), np.zeros(size, np.uint16), WHERE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert peak < 1 << 20


@pytest.mark.parametrize(("form", "data", "size", "dtype"), [g for g in GOOD if g[1][0] == 4])
def test_a_missing_package_is_named(form, data, size, dtype, monkeypatch):
    monkeypatch.setattr(zstd, "has_zstandard", lambda: False)
    base = np.zeros(size, np.uint16)
    with pytest.raises(ResourceError, match=r'expected the package zstandard.*pip install "weightsmith\[bundle\]"'):
        decode_frame(form, data, {"dtype": dtype}, np.empty(size, OUT[form]), base, WHERE)
