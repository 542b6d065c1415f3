from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from weightsmith.checkpoint.entry import DTYPE_BITS
from weightsmith.checkpoint.header import HEADER_BYTES, read_header, sniff, strict_json
from weightsmith.errors import CheckpointError


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def refusal(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    text = str(caught.value)
    assert path.name in text
    assert "Fetch the file again" in text or "Did you mean" in text or "Valid names" in text
    assert text.isprintable()
    return text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def test_reads_what_safetensors_wrote(path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float16),
    }
    save_file(arrays, path, metadata={"format": "pt"})
    entries, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    assert [e.offset for e in entries.values()] == sorted(e.offset for e in entries.values())
    raw = path.read_bytes()
    for name, array in arrays.items():
        entry = entries[name]
        assert (entry.name, entry.shape, entry.file) == (name, array.shape, path)
        assert raw[entry.offset : entry.offset + entry.nbytes] == array.tobytes()
    assert entries["a"].dtype == "I64"
    assert entries["a"].size == 1


def test_zero_size_and_scalars_work_anywhere(path, packed):
    header = {
        "z0": tensor(shape=(0,), offsets=(0, 0)),
        "s": tensor(shape=(), offsets=(0, 4)),
        "z1": tensor(shape=(3, 0, 5), offsets=(4, 4)),
    }
    path.write_bytes(packed(header, b"\0" * 4))
    entries, _ = read_header(path)
    assert {n: e.nbytes for n, e in entries.items()} == {"z0": 0, "s": 4, "z1": 0}


def test_every_known_dtype_is_read(path, packed):
    for dtype, bits in DTYPE_BITS.items():
        path.write_bytes(packed({"w": tensor(dtype, (4,), (0, bits // 2))}, bytes(bits // 2)))
        assert read_header(path)[0]["w"].nbytes == bits // 2


@pytest.mark.parametrize("length", [0, 1, 7, 2**63, 2**64 - 1, HEADER_BYTES + 1, 5000])
def test_length_field(path, packed, length):
    good = packed({"w": tensor()}, b"\0" * 4)
    tracemalloc.start()
    text = refusal(path, struct.pack("<Q", length) + good[8:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "header" in text
    assert peak < 1_000_000


@pytest.mark.parametrize("size", range(9))
def test_shorter_than_a_header(path, size):
    text = refusal(path, (b"\x02" + bytes(8))[:size])
    assert "bytes missing" in text


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b'{"a\xff":1}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "begin with"),
        (b"{}\0\0", "Extra data"),
        (b"{} x", "Extra data"),
        (b"[]", "begin with"),
        (b" {}", "begin with"),
        (b'{"a\0": 1}', "control character"),
        (b'{"w": NaN}', "NaN"),
        (b'{"w": -Infinity}', "Infinity"),
        (b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeply"),
        (b'{"w":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "deeply"),
        (b'{"w":' + b"9" * 5000 + b"}", "digits"),
        (b'{"w": ', "JSON"),
        (b'{"w": 1, "w": 2}', "'w' occurs twice"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "'__metadata__' occurs twice"),
        (b'{"__metadata__": {"a": "1", "a": "2"}}', "'a' occurs twice"),
        (b'{"w": {"dtype": "F32", "dtype": "F32"}}', "'dtype' occurs twice"),
        (b'{"\\ud800": 1}', "surrogate"),
    ],
)
def test_header_that_is_no_strict_json(path, packed, header, problem):
    assert problem in refusal(path, packed(header))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (tensor(offsets=(4, 0)), "reversed"),
        (tensor(offsets=(-4, 0)), "negative"),
        (tensor(offsets=(0, 8)), "4 bytes for F32"),
        (tensor(offsets=(0.0, 4.0)), "not two integers"),
        (tensor(offsets=(True, 4)), "not two integers"),
        (tensor(offsets=(0,)), "not two integers"),
        (tensor(offsets=(0, 2**60)), "4 bytes for F32"),
        (tensor(shape=(2**53,), offsets=(0, 2**55)), "bytes missing"),
        (tensor(shape=(-1,)), "bad shape"),
        (tensor(shape=(1.0,)), "bad shape"),
        (tensor(shape=(True,)), "bad shape"),
        (tensor(shape=("1",)), "bad shape"),
        (tensor(shape=(2**40, 2**40)), "too large"),
        (tensor(shape=(2**63, 2**63, 0), offsets=(0, 0)), "too large"),
        (tensor(shape=[1] * 65), "bad shape"),
        (tensor(shape=[1] * 1_000_000), "bad shape"),
        (tensor("F33"), "unknown dtype"),
        (tensor("f32"), "unknown dtype"),
        (tensor(None), "unknown dtype"),
        (tensor("F4", (3,), (0, 2)), "whole bytes"),
        (tensor("F6_E2M3", (1,), (0, 1)), "whole bytes"),
        (tensor(extra=1), "not described"),
        ({"dtype": "F32", "shape": [1]}, "not described"),
        ([], "not described"),
        (None, "not described"),
    ],
)
def test_tensor_that_is_not_sound(path, packed, entry, problem):
    text = refusal(path, packed({"bad.weight": entry}, b"\0" * 4))
    assert problem in text
    assert "bad.weight" in text
    assert len(text) < 1500


def test_empty_lists_do_not_fill_the_memory(path, packed):
    raw = packed(b'{"a":[' + b"[]," * 12_000_000 + b"0]}")
    tracemalloc.start()
    assert "more lists and objects" in refusal(path, raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(raw)


def test_unknown_dtype_names_the_nearest(path, packed):
    assert "'BF16'" in refusal(path, packed({"w": tensor("BF61")}, b"\0" * 4))


def test_minus_zero_is_no_count(path, packed):
    head = '{"w":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}'
    assert "-0" in refusal(path, packed(head, b"\0" * 4))
    path.write_bytes(packed({"__metadata__": {"note": "[-0]"}}))
    assert read_header(path)[1] == {"note": "[-0]"}


@pytest.mark.parametrize(
    ("second", "size", "problem"),
    [
        ((2, 6), 6, "overlaps tensor 'a' by 2 bytes"),
        ((0, 4), 4, "overlaps"),
        ((6, 10), 10, "hole of 2 bytes"),
        ((4, 8), 7, "1 bytes missing"),
        ((4, 8), 4, "4 bytes missing"),
        ((4, 8), 0, "8 bytes missing"),
        ((4, 8), 9, "1 trailing bytes"),
    ],
)
def test_ranges_must_cover_the_buffer(path, packed, second, size, problem):
    header = {"b": tensor(offsets=second), "a": tensor(offsets=(0, 4))}
    assert problem in refusal(path, packed(header, bytes(size)))


def test_first_tensor_must_begin_at_zero(path, packed):
    assert "hole of 4 bytes" in refusal(path, packed({"a": tensor(offsets=(4, 8))}, bytes(8)))


def test_truncated_anywhere(path, packed):
    good = packed({"w": tensor(shape=(4096,), offsets=(0, 16384))}, bytes(16384))
    for size in {len(good) - 1, *range(0, len(good), 4096)}:
        assert f"{len(good) - size} bytes missing" in refusal(path, good[:size]) or size < 100


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, {"a": ["b"]}, [], "text", None])
def test_metadata_must_be_text(path, packed, metadata):
    assert "__metadata__" in refusal(path, packed({"__metadata__": metadata}))


def test_metadata_has_a_cap(path, packed):
    assert "at most" in refusal(path, packed({"__metadata__": {"a": "x" * 10_000_001}}))


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31mred", "\u202eevil", "x" * 1_000_000, "<script>", ""])
def test_odd_names_are_readable_and_escaped_in_messages(path, packed, name):
    path.write_bytes(packed({name: tensor()}, bytes(4)))
    assert list(read_header(path)[0]) == [name]
    text = refusal(path, packed({name: tensor("F99")}, bytes(4)))
    assert len(text) < 1500


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x80\x02}q\x00.", "pickle"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "zip"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ],
)
def test_other_formats_are_named(path, head, kind):
    assert kind in (sniff(head) or "")
    assert kind in refusal(path, head)


def test_fifo_does_not_hang_and_folder_is_refused(path, tmp_path):
    os.mkfifo(path)
    for place in (path, tmp_path):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_header(place)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_header(tmp_path / "missing.safetensors")


def test_strict_json_lets_config_hold_infinity():
    assert strict_json(b'{"a": [Infinity, -Infinity]}', "x", nonfinite=True)["a"] == [np.inf, -np.inf]
    with pytest.raises(CheckpointError, match="Infinity"):
        strict_json(b'{"a": Infinity}', "x")


def accepted_by_safetensors(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            file.keys()
    except safetensors.SafetensorError:
        return False
    return True


NUMBERS = st.sampled_from(
    [
        "0",
        "1",
        "2",
        "4",
        "8",
        "12",
        "-1",
        "-0",
        "1.0",
        "1e1",
        "01",
        "+1",
        "9" * 30,
        "18446744073709551616",
        "null",
    ]
)
RAW_TENSOR = st.builds(
    '{{"dtype":{},"shape":[{}],"data_offsets":[{}]{}}}'.format,
    st.sampled_from(['"F32"', '"U8"', '"F4"', '"F99"', "1", '"f32"']),
    st.lists(NUMBERS, max_size=3).map(",".join),
    st.lists(NUMBERS, min_size=1, max_size=3).map(",".join),
    st.sampled_from(["", ',"dtype":"F32"', ',"x":1']),
)
RAW_HEADER = st.builds(
    lambda items, end: "{" + ",".join(items) + "}" + end,
    st.lists(
        st.one_of(
            st.builds('"{}":{}'.format, st.sampled_from(["a", "b", "\\ud800", "\\u0041"]), RAW_TENSOR),
            st.sampled_from(['"__metadata__":{}', '"__metadata__":{"k":"v"}', '"__metadata__":{"k":1}', '"a":NaN']),
        ),
        max_size=3,
    ),
    st.sampled_from(["", "   ", "\n", "\0", "x"]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=RAW_HEADER, size=st.sampled_from([0, 1, 4, 8, 12]))
def test_never_accepts_what_safetensors_refuses(path, packed, header, size):
    path.write_bytes(packed(header, bytes(size)))
    try:
        read_header(path)
    except CheckpointError:
        return
    assert accepted_by_safetensors(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_judged_as_safetensors_judges(path, packed, data):
    header = {"__metadata__": {"format": "pt"}, "a": tensor(), "b": tensor("F16", (2, 3), (4, 16))}
    raw = bytearray(packed(header, bytes(16)))
    for _ in range(data.draw(st.integers(1, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        read_header(path)
    except CheckpointError:
        return
    assert accepted_by_safetensors(path)


def test_what_both_accept_is_read_alike(path, packed):
    header = {"a": tensor(shape=(2, 1), offsets=(0, 8)), "b": tensor("U8", (0,), (8, 8))}
    path.write_bytes(packed(json.dumps(header) + "   ", bytes(8)))
    entries, _ = read_header(path)
    with safetensors.safe_open(path, "numpy") as file:
        assert {n: e.shape for n, e in entries.items()} == {n: file.get_tensor(n).shape for n in file.keys()}  # noqa: SIM118
