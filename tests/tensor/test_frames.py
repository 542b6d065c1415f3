"""Frames: round trips, against a decoder that works on text; the shortest codec; what is added where."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import ArgumentError, NonFiniteError
from weightsmith.tensor import frames, zstd
from weightsmith.tensor.frames import (
    FRAME,
    add_masked,
    add_signs,
    add_sparse,
    add_ternary,
    decode_frame,
    encode_frame,
    has_zstandard,
)

SIZES = (0, 1, 7, 8, 63, 64, 65, FRAME)
DENSITIES = (0, 0.001, 0.05, 0.2, 0.5, 0.95, 1)
DTYPES = ("F32", "BF16", "F16", "I8")

every_size = pytest.mark.parametrize("size", SIZES)
every_density = pytest.mark.parametrize("density", DENSITIES)
small = st.builds(
    lambda size, density, seed: (size, density, seed),
    st.integers(0, 200),
    st.sampled_from(DENSITIES) | st.floats(0, 1),
    st.integers(0, 999),
)


def draw(size, density, seed=0):
    """Return a mask, signs on it and numbers."""
    rng = np.random.default_rng([size, seed])
    mask = rng.random(size) < density
    return mask, np.where(mask, rng.choice([-1, 1], size), 0).astype(np.int8), rng.standard_normal(size).astype("f4")


def text_of(data):
    return "".join(format(byte, "08b")[::-1] for byte in data)


def slow_support(data, size, tail_bytes):
    """Decode the choice of elements as text; return it and the tail."""
    codec, body = data[0], data[1:]
    if codec in (0, 1):
        return [bool(codec)] * size, body
    if codec == 4:
        body = zstandard.decompress(body)
    if codec in (2, 4):
        length = (size + 7) // 8
        return [bit == "1" for bit in text_of(body[:length])[:size]], body[length:]
    assert codec == 3
    b, count = struct.unpack("<BI", body[:5])
    end = len(body) - tail_bytes(count)
    text, mask, at = text_of(body[5:end]), [False] * size, -1
    for _ in range(count):
        zeros = text.index("1")
        at += zeros * 2**b + int(text[zeros + 1 : zeros + 1 + b][::-1] or "0", 2) + 1
        mask[at] = True
        text = text[zeros + 1 + b :]
    assert len(text) < 8
    assert "1" not in text
    return mask, body[end:]


def slow_mask(data, size):
    mask, tail = slow_support(data, size, lambda count: 0)
    assert tail == b""
    return mask


def slow_ternary(data, size):
    mask, tail = slow_support(data, size, lambda count: (count + 7) // 8)
    signs = iter(text_of(tail))
    return [(-1 if next(signs) == "1" else 1) if m else 0 for m in mask]


def decoded(form, data, size, dtype, options=None, base=None):
    out = np.full(size, 77).astype(dtype)
    decode_frame(form, data, options or {}, out, base)
    return out


def check_mask(mask):
    data = encode_frame("mask", {"mask": mask}, {})
    assert decoded("mask", data, mask.size, np.bool_).tolist() == mask.tolist()
    return data


def check_ternary(signs):
    data = encode_frame("ternary", {"signs": signs}, {})
    assert decoded("ternary", data, signs.size, np.int8).tolist() == signs.tolist()
    return data


def stored(values, dtype):
    """Round to the dtype, by torch."""
    import torch

    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    return torch.from_numpy(values).to(kind).to(torch.float32).numpy()


def check_sparse(mask, values, dtype):
    data = encode_frame("sparse", {"mask": mask, "values": values}, {"dtype": dtype})
    found = decoded("sparse", data, mask.size, np.float32, {"dtype": dtype})
    assert (found[~mask].view(np.uint32) == 0).all()
    if dtype == "I8":
        scale = np.float32(np.abs(values[mask]).max(initial=0)) / np.float32(127)
        np.testing.assert_allclose(found[mask], values[mask], atol=float(scale) * 0.5001)
        assert (found[mask] == np.rint(values[mask] / (scale or 1)) * scale).all()
    else:
        assert found[mask].tobytes() == stored(values[mask], dtype).tobytes()
    return data


@every_size
@every_density
def test_round_trips(size, density):
    mask, signs, values = draw(size, density)
    check_mask(mask)
    check_ternary(signs)
    for dtype in DTYPES:
        check_sparse(mask, values, dtype)


@settings(deadline=None)
@given(small)
def test_masks_against_text(drawn):
    mask, _, _ = draw(*drawn)
    assert slow_mask(check_mask(mask), mask.size) == mask.tolist()


@settings(deadline=None)
@given(small)
def test_ternary_against_text(drawn):
    _, signs, _ = draw(*drawn)
    assert slow_ternary(check_ternary(signs), signs.size) == signs.tolist()


@settings(deadline=None)
@given(small, st.sampled_from(DTYPES))
def test_sparse_values(drawn, dtype):
    mask, _, values = draw(*drawn)
    check_sparse(mask, values, dtype)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 1])
def test_whole_frames_against_text(density):
    mask, signs, _ = draw(FRAME, density, 1)
    for start in range(0, FRAME, FRAME // 8):  # text is slow: an eighth at a time
        part = slice(start, start + FRAME // 8)
        assert slow_mask(check_mask(mask[part]), FRAME // 8) == mask[part].tolist()
        assert slow_ternary(check_ternary(signs[part]), FRAME // 8) == signs[part].tolist()


def test_worked_examples():
    mask = np.array([True, False, True, False, False, False, False, False, True])
    values = np.arange(1, 10, dtype=np.float32)
    assert encode_frame("mask", {"mask": mask}, {}) == bytes([2, 0b101, 1])
    assert encode_frame("mask", {"mask": ~mask & mask}, {}) == bytes([0])
    assert encode_frame("mask", {"mask": mask | ~mask}, {}) == bytes([1])
    assert encode_frame("ternary", {"signs": np.where(mask, -1, 0)}, {}) == bytes([2, 0b101, 1, 0b111])
    assert encode_frame("sign", {"signs": values - 3}, {}) == bytes([2, 0b11, 0])
    sparse = encode_frame("sparse", {"mask": mask, "values": values}, {"dtype": "BF16"})
    assert sparse == bytes([2, 0b101, 1, 0x80, 0x3F, 0x40, 0x40, 0x10, 0x41])
    eighth = encode_frame("sparse", {"mask": mask, "values": values * 127 / 9}, {"dtype": "I8"})
    assert eighth == bytes([2, 0b101, 1]) + np.float32(1).tobytes() + bytes([14, 42, 127])


def candidates(mask, tail):
    """Return the sizes of all codecs, from their definitions."""
    count, raw = int(mask.sum()), np.packbits(mask, bitorder="little").tobytes() + tail
    sizes = {}
    if count == 0:
        return {0: 1}
    if count == mask.size:
        sizes[1] = 1 + len(tail)
    sizes[2] = 1 + len(raw)
    density = count / mask.size
    b = 0
    if density < 1:
        golden = (np.sqrt(5) + 1) / 2
        b = max(0, 1 + int(np.floor(np.log2(np.log(golden - 1) / np.log1p(-density)))))
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    sizes[3] = 1 + 5 + (int((gaps // 2**b + 1 + b).sum()) + 7) // 8 + len(tail)
    sizes[4] = 1 + len(zstandard.ZstdCompressor(level=1, write_checksum=False).compress(raw))
    return sizes


@every_size
@pytest.mark.parametrize("pattern", ["random", "half", "alternating"])
@pytest.mark.parametrize("density", DENSITIES)
def test_the_shortest_codec_is_chosen(size, pattern, density):
    mask, signs, _ = draw(size, density, 2)
    if pattern == "half":
        mask[: size // 2] = False
        signs[: size // 2] = 0
    if pattern == "alternating":
        mask &= np.arange(size) % 2 == 0
        signs *= mask
    tail = np.packbits(signs[mask] < 0, bitorder="little").tobytes()
    for data, sizes in ((check_mask(mask), candidates(mask, b"")), (check_ternary(signs), candidates(mask, tail))):
        assert len(data) == min(sizes.values())
        assert data[0] == min(sizes, key=sizes.get)  # the first of equals


def test_every_codec_is_used():
    drawn = [draw(FRAME, density)[0] for density in (0, 1, 0.5, 0.05)]
    drawn.append(np.arange(FRAME) % 3 == 0)
    assert [check_mask(mask)[0] for mask in drawn] == [0, 1, 2, 3, 4]


@every_size
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("kind", ["same", "near", "sparse", "random", "extremes"])
def test_differences_are_exact(size, dtype, kind):
    rng = np.random.default_rng(size)
    top = int(np.iinfo(dtype).max)
    base = rng.integers(0, top, size, dtype, endpoint=True)
    change = {
        "same": np.zeros(size, dtype),
        "near": rng.integers(-3, 4, size).astype(dtype),
        "sparse": np.where(rng.random(size) < 0.01, rng.integers(0, top, size, dtype), 0).astype(dtype),
        "random": rng.integers(0, top, size, dtype, endpoint=True),
        "extremes": np.array([0, 1, top, top // 2, top // 2 + 1], dtype)[rng.integers(0, 5, size)],
    }[kind]
    finetuned = base + change
    data = encode_frame("difference", {"base": base, "finetuned": finetuned}, {})
    assert decoded("difference", data, size, dtype, base=base).tobytes() == finetuned.tobytes()
    decode_frame("difference", data, {}, base, base)  # in place
    assert base.tobytes() == finetuned.tobytes()
    assert len(data) <= 1 + finetuned.nbytes
    assert (data[0] == 0) == (not change.any())


def test_differences_are_folded_and_split_into_planes():
    base = np.array([5, 5, 5, 0, 0x8000], np.uint16)
    finetuned = np.array([5, 6, 4, 0xFFFF, 0], np.uint16)  # 0, 1, -1, -1, -0x8000
    data = encode_frame("difference", {"base": base, "finetuned": finetuned}, {})
    assert data == bytes([2]) + bytes([0, 2, 1, 1, 0xFF]) + bytes([0, 0, 0, 0, 0xFF])


def test_planes_without_content_or_without_order_are_not_compressed():
    base = np.zeros(FRAME, np.uint32)
    noise = np.random.default_rng(0).integers(0, 256, FRAME, np.uint8)
    finetuned = (noise // 2).astype(np.uint32) | np.uint32(0x01000000)  # folded: random, 0, 0, 2
    data = encode_frame("difference", {"base": base, "finetuned": finetuned}, {})
    lengths = struct.unpack("<4I", data[1:17])
    assert data[0] == 4
    assert lengths[0] < FRAME  # even numbers only: seven bits
    assert lengths[1:3] == (0, 0)
    assert 0 < lengths[3] < 100
    finetuned = (noise.astype(np.uint32) << 8) & np.uint32(0x7FFF)  # folded: even bytes in one plane, 0 elsewhere
    finetuned |= np.uint32(noise[::-1]) & np.uint32(0x7F)
    data = encode_frame("difference", {"base": base, "finetuned": finetuned}, {})
    assert decoded("difference", data, FRAME, "u4", base=base).tobytes() == finetuned.tobytes()


def added(kind, size, density, scale, seed=3):
    """Return a start, what an `add_` function makes of it, and what numpy makes of it."""
    mask, signs, values = draw(size, density, seed)
    out = draw(size, 1, seed + 1)[2]
    out[::5] = -0.0
    values[::7] = 0
    start, scale = out.copy(), np.float32(scale)
    if kind == "mask":
        step = np.where(mask, values * scale, 0)
        add_masked(out, encode_frame("mask", {"mask": mask}, {}), values, float(scale))
    elif kind == "ternary":
        step = signs * scale
        add_ternary(out, encode_frame("ternary", {"signs": signs}, {}), float(scale))
    else:
        step = np.where(mask, values * scale, 0)
        data = encode_frame("sparse", {"mask": mask, "values": values}, {"dtype": "F32"})
        add_sparse(out, data, {"dtype": "F32"}, float(scale))
    return out, np.where(step == 0, start, start + step.astype(np.float32))


@every_size
@every_density
@pytest.mark.parametrize("kind", ["mask", "ternary", "sparse"])
def test_adding_to_the_base(size, density, kind):
    for scale in (0.3, 0.0, -2.0):
        found, expected = added(kind, size, density, scale)
        assert found.tobytes() == expected.tobytes()  # also signed zeros


@every_size
def test_signs(size):
    _, signs, values = draw(size, 1, 5)
    data = encode_frame("sign", {"signs": signs}, {})
    assert len(data) == 1 + (size + 7) // 8
    assert decoded("sign", data, size, np.int8).tolist() == signs.tolist()
    out = values.copy()
    add_signs(out, data, np.array([0.3], np.float32))
    assert out.tobytes() == (values + signs * np.float32(0.3)).tobytes()


@pytest.mark.parametrize(("columns", "start"), [(1, 0), (7, 0), (7, 65), (100, 99), (1000, 65)])
def test_signs_with_a_scale_per_row(columns, start):
    size = 200
    _, signs, values = draw(size, 1, 6)
    scales = np.linspace(-1, 1, (start + size) // columns + 1, dtype=np.float32)
    scales[1:2] = 0
    values[:50] = -0.0
    out = values.copy()
    add_signs(out, encode_frame("sign", {"signs": signs}, {}), scales, columns, start)
    for i in range(size):
        step = signs[i] * scales[(start + i) // columns]
        expected = values[i] + step if step else values[i]
        assert out[i].tobytes() == np.float32(expected).tobytes()


def test_signs_of_zeros_are_positive():
    data = encode_frame("sign", {"signs": np.array([-0.5, 0.0, -0.0, 2.0])}, {})
    assert decoded("sign", data, 4, np.int8).tolist() == [-1, 1, 1, 1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_kind_of_bytes(kind):
    _, signs, _ = draw(1000, 0.1)
    data = encode_frame("ternary", {"signs": signs}, {})
    assert decoded("ternary", kind(data), 1000, np.int8).tolist() == signs.tolist()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("F32", np.inf), ("BF16", np.nan), ("F16", 1e6), ("I8", -np.inf), ("I8", np.nan), ("I8", np.finfo("f4").max)],
)
def test_values_that_are_not_finite_in_their_dtype(dtype, value):
    values = np.array([1, value, value], np.float32)
    with pytest.raises(NonFiniteError, match=dtype):
        encode_frame("sparse", {"mask": np.array([True, True, False]), "values": values}, {"dtype": dtype})
    check_sparse(np.array([True, False, False]), values, dtype)  # not selected: not looked at


def test_an_unknown_form():
    with pytest.raises(ArgumentError, match="Did you mean 'ternary'"):
        encode_frame("ternery", {}, {})
    with pytest.raises(ArgumentError, match="Did you mean 'mask'"):
        decode_frame("maks", b"\0", {}, np.empty(1, np.bool_))


def test_threads_do_not_share_a_coder():
    drawn = [draw(FRAME, 0.95, seed)[0] for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(check_mask, drawn * 4))
    assert found == [check_mask(mask) for mask in drawn] * 4
    assert {data[0] for data in found} == {4}


@settings(max_examples=20, deadline=None)
@given(small)
def test_without_zstandard_the_other_codecs_serve(drawn):
    mask, signs, _ = draw(*drawn)
    base = draw(*drawn)[2].view(np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstd, "has_zstandard", lambda: False)
        assert check_mask(mask)[0] != 4
        assert check_ternary(signs)[0] != 4
        data = encode_frame("difference", {"base": base, "finetuned": base + np.uint32(1)}, {})
        assert data[0] == (2 if base.size else 0)
        assert decoded("difference", data, base.size, "u4", base=base).tolist() == (base + np.uint32(1)).tolist()


def test_zstandard_is_there_in_tests():
    assert has_zstandard()
    assert frames.FORMS == ("mask", "ternary", "sign", "sparse", "rounded", "difference")
