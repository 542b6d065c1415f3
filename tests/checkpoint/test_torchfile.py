from __future__ import annotations

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch.serialization import set_crc32_options

from weightsmith.checkpoint.folder import open_folder
from weightsmith.checkpoint.read import open_checkpoint, read_array
from weightsmith.checkpoint.torchfile import read_pickle, read_torch_file
from weightsmith.errors import CheckpointError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.bin"


def refused(path, *parts, reader=read_torch_file) -> str:
    with pytest.raises(CheckpointError) as caught:
        reader(path)
    text = str(caught.value)
    for part in (path.name, *parts):
        assert part in text, text
    assert any(way in text for way in ("safetensors", "Fetch", "Save it again"))
    return text


def archive(path, raw: bytes, storages: dict[str, bytes] | None = None, more: dict[str, bytes] | None = None):
    """Write a torch archive around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("w/data.pkl", raw)
        for key, data in (storages or {"0": bytes(16)}).items():
            file.writestr(f"w/data/{key}", data)
        for name, data in (more or {}).items():
            file.writestr(name, data)
    return path


class Recorded:
    """Pickles as a call of a torch function, without torch checking its arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Storage:
    def __init__(self, kind=torch.FloatStorage, key="0", numel=4):
        self.id = ("storage", kind, key, "cpu", numel)


def pickled(value, protocol=2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return item.id if isinstance(item, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def view(offset=0, shape=(4,), stride=(1,), storage=None):
    return Recorded(torch._utils._rebuild_tensor_v2, storage or Storage(), offset, shape, stride, False, OrderedDict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_saves(path, protocol):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = model.state_dict()
    state["half"] = torch.arange(5).to(torch.float16)
    state["brain"] = torch.arange(5).to(torch.bfloat16)
    state["eight"] = torch.arange(4).to(torch.float32).to(torch.float8_e4m3fn)
    state["unsigned"] = torch.arange(3).to(torch.uint16)
    state["flags"] = torch.tensor([True, False])
    state["part"] = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3))[1:3]
    state["empty"] = torch.zeros(0, 3)
    torch.save(state, path, pickle_protocol=protocol)
    entries, aliases = read_torch_file(path)
    assert aliases == {}
    assert set(entries) == set(state)
    assert [e.offset for e in entries.values()] == sorted(e.offset for e in entries.values())
    names = {
        "half": "F16",
        "brain": "BF16",
        "eight": "F8_E4M3",
        "unsigned": "U16",
        "flags": "BOOL",
        "part": "F32",
    }
    for name, tensor in state.items():
        entry = entries[name]
        assert entry.shape == tuple(tensor.shape)
        assert entry.dtype == names.get(name, entry.dtype)
        expected = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert read_array(entry) == expected


def test_aliases_keep_the_first_name_and_views_stay(path):
    shared = torch.arange(6.0)
    tensors = {"b": shared, "a": shared, "part": shared[:3], "square": shared.view(2, 3), "zero": shared[:0]}
    torch.save(tensors, path)
    entries, aliases = read_torch_file(path)
    assert aliases == {"a": "b"}
    assert set(entries) == {"b", "part", "square", "zero"}
    assert entries["part"].offset == entries["b"].offset
    assert entries["square"].shape == (2, 3)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_one_wrapper_is_unwrapped(path, key):
    torch.save({key: {"a": torch.zeros(2)}, "epoch": 3, "args": {"lr": 0.1}}, path)
    assert list(read_torch_file(path)[0]) == ["a"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": torch.zeros(2), "epoch": 3}, "its key 'epoch' does not hold a tensor"),
        ({"a": torch.zeros(2), "b": {"c": torch.zeros(2)}}, "its key 'b' does not hold a tensor"),
        ({"state_dict": {"a": torch.zeros(2), "n": None}}, "its key 'n' does not hold a tensor"),
        (
            {"state_dict": {"a": torch.zeros(2)}, "optimizer": {"s": [{"m": torch.zeros(2)}]}},
            "more than one state",
        ),
        ({"state_dict": {"a": torch.zeros(2)}, "model": {"a": torch.zeros(2)}}, "'state_dict', 'model'"),
        ({"weights": {"a": torch.zeros(2)}}, "'weights'"),
        ({1: torch.zeros(2)}, "its key '1' does not hold"),
        ([torch.zeros(2)], "does not hold a mapping"),
        (torch.zeros(2), "does not hold a mapping"),
        ({"a": torch.zeros(3, 2).t()}, "not contiguous"),
        ({"a": torch.zeros(1).expand(4)}, "not contiguous"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "torch.ComplexDoubleStorage"),
        ({"a": torch.zeros(3).to_sparse()}, "_rebuild_sparse"),
        ({"a": torch.nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear"),
        ({"a": {1, 2}}, "set"),
    ],
)
def test_what_is_no_plain_state_dict(path, value, problem):
    torch.save(value, path)
    refused(path, problem)


def test_checksums_left_out_by_torch(path):
    set_crc32_options(False)
    try:
        torch.save({"a": torch.zeros(2)}, path)
    finally:
        set_crc32_options(True)
    assert list(read_torch_file(path)[0]) == ["a"]


def test_sharded_and_single_bin_folders(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    listed = '{{"weight_map": {{"a": "{0}1-of-00002.bin", "b": "{0}2-of-00002.bin"}}}}'.format("pytorch_model-0000")
    (tmp_path / "pytorch_model.bin.index.json").write_text(listed)
    assert list(open_folder(tmp_path, "r").tensors) == ["a", "b"]
    other = tmp_path / "other"
    other.mkdir()
    torch.save({"a": torch.zeros(2)}, other / "pytorch_model.bin")
    assert list(open_folder(other, "r").tensors) == ["a"]


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "suffix", [".bin", ".pt", ".ckpt", ".pth", ".pkl", ".npy", ".npz", ".safetensors", ".json", ""]
)
@pytest.mark.parametrize("kind", ["torch", "legacy", "raw0", "raw2", "raw5", "numpy"])
def test_payloads_never_run_and_are_named(tmp_path, suffix, kind):
    marker = tmp_path / "marker"
    path = tmp_path / f"w{suffix}"
    payload = Payload(marker)
    if kind == "numpy":
        stream = io.BytesIO()
        np.save(stream, np.array([payload], dtype=object), allow_pickle=True)
        path.write_bytes(stream.getvalue())
    elif kind in ("torch", "legacy"):
        with path.open("wb") as file:
            torch.save({"a": payload}, file, _use_new_zipfile_serialization=kind == "torch")
    else:
        path.write_bytes(pickle.dumps({"a": payload}, int(kind[-1])))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert path.name in str(caught.value)
    assert not marker.exists()
    is_torch_name = suffix in (".bin", ".pt", ".pth", ".ckpt")
    if kind != "numpy" and (is_torch_name or kind in ("raw2", "raw5", "legacy")):
        assert "posix.system" in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_forbidden_globals_are_all_listed(path, protocol):
    raw = pickle.dumps([os.system, eval, {"x": OrderedDict()}], protocol)
    path.write_bytes(raw)
    text = refused(path, "posix.system", ".eval")
    assert "OrderedDict" not in text
    if protocol > 1:
        refused(archive(path, raw), "posix.system", ".eval")


def test_instances_and_extensions_are_refused(path):
    for raw in (
        b"\x80\x02(iposix\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    ):
        refused(archive(path, raw))


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (view(offset=1), "beyond its storage"),
        (view(shape=(5,)), "beyond its storage"),
        (view(offset=2**62), "beyond its storage"),
        (view(shape=(2**40,)), "beyond its storage"),
        (view(shape=(2**62, 2**62), stride=(2**62, 1)), "beyond its storage"),
        (view(offset=-1), "integers from 0"),
        (view(shape=(-4,)), "integers from 0"),
        (view(stride=(-1,)), "integers from 0"),
        (view(stride=(2**70,)), "integers from 0"),
        (view(stride=(2**60,)), "not contiguous"),
        (view(stride=(0,)), "not contiguous"),
        (view(shape=(True,), stride=(1,)), "integers from 0"),
        (view(shape=(2, 2), stride=(1,)), "do not fit"),
        (view(shape=[4]), "do not fit"),
        (view(shape=(1,) * 65, stride=(1,) * 65), "more than 64 dimensions"),
        (view(storage=Storage(numel=5)), "storage '0', which is 16 bytes long"),
        (view(storage=Storage(numel=-1)), "unknown way"),
        (view(storage=Storage(numel=2**80)), "unknown way"),
        (view(storage=Storage(key="../0")), "missing"),
        (view(storage=Storage(key=0)), "unknown way"),
        (view(storage=Storage(kind=torch.float32)), "unknown way"),
        (Recorded(torch._utils._rebuild_tensor_v2, 1, 2), "never writes"),
        (Recorded(torch._utils._rebuild_parameter, 1, True, OrderedDict()), "never writes"),
        (Recorded(torch._utils._rebuild_tensor_v2, *[()] * 6), "never writes"),
    ],
)
def test_hostile_arguments(path, tensor, problem):
    refused(archive(path, pickled({"a": tensor})), problem)


def test_sound_arguments_written_by_hand(path):
    entries, _ = read_torch_file(archive(path, pickled({"a": view(1, (3, 1, 1), (1, 99, 7))}), {"0": bytes(range(16))}))
    assert read_array(entries["a"]) == bytes(range(4, 16))


HEAD = b"\x80\x02"


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"r\xff\xff\xff\x7f.",
        HEAD + b"]r\xff\xff\xff\xff.",
        HEAD + b"j\xff\xff\xff\xff.",
        HEAD + b"X\xff\xff\xff\xffa.",
        HEAD + b"\x8d" + b"\xff" * 8 + b".",
        HEAD + b"\x96" + b"\xff" * 8 + b".",
        HEAD + b"\x8a\xff.",
        HEAD + b"(" * 100_000 + b".",
        HEAD + b")" + b"\x85" * 100_000 + b"}\x8c\x01as.",
        HEAD + b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
        HEAD + b"}(" + b"K\x01" * 3 + b"u.",
        HEAD + b"}X\x01\0\0\0aNX\x01\0\0\0aNss.",
        HEAD + b"}(X\x01\0\0\0aNX\x01\0\0\0aNu.",
        HEAD + b"tttt.",
        HEAD + b"R.",
        HEAD + b"K\x01)R.",
        HEAD + b"}}.",
        HEAD + b"}.}.",
        HEAD + b"}b.",
        HEAD + b"NNb.",
        HEAD + b"ccollections\nOrderedDict",
        HEAD + b"cx" * 3000 + b"\n.",
        HEAD + b"NQ.",
        HEAD + b"G\0",
        HEAD + b"\xfe.",
        HEAD + b"X\x01\0\0\0\xff.",
        HEAD,
        b"\x80\x09}.",
        b"",
        b"}.",
    ],
)
def test_pickles_out_of_order(path, raw):
    archive(path, raw)
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_shared_tuples_are_not_unfolded(path):
    raw = HEAD + b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"q\x50}h\x50h\x50s."
    started = time.perf_counter()
    refused(archive(path, raw))
    refused(archive(path, HEAD + b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"."))
    raw = HEAD + b"}X\x01\0\0\0a)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"s."
    refused(archive(path, raw), "'a'")
    nested: object = ()
    for _ in range(60):
        nested = (nested, nested)
    for shape in (nested, (nested,)):
        refused(archive(path, pickled({"a": view(shape=shape)})))
    assert time.perf_counter() - started < 5


def test_many_operations_are_bounded(path, monkeypatch):
    monkeypatch.setattr("weightsmith.checkpoint.unpickle.OPERATIONS", 1000)
    refused(archive(path, HEAD + b"N" * 2000 + b"."), "more than 1000 operations")
    monkeypatch.setattr("weightsmith.checkpoint.torchfile.PICKLE_BYTES", 100)
    refused(archive(path, HEAD + b"N" * 2000 + b"."), "at most 100 bytes")


GOOD = pickled({"a": view()})


def test_archives_that_are_not_as_torch_writes_them(path, tmp_path):
    assert list(read_torch_file(archive(path, GOOD))[0]) == ["a"]
    refused(archive(path, GOOD, more={"w/byteorder": b"big"}), "not little-endian")
    assert read_torch_file(archive(path, GOOD, more={"w/byteorder": b"little"}))
    refused(archive(path, GOOD, more={"x/data.pkl": GOOD}), "2 members named data.pkl")
    refused(archive(path, GOOD, more={"w/constants.pkl": b""}), "TorchScript")
    for name in ("../evil", "w/../../evil", "/etc/evil", "C:/evil"):
        refused(archive(path, GOOD, more={name: b"x"}), "leads elsewhere")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w/data.pkl", GOOD)
    refused(path, "compressed")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("w/data.pkl", GOOD)
        file.writestr("w/data/0", bytes(1 << 20), zipfile.ZIP_DEFLATED)
    refused(path, "'w/data/0' is compressed")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("inner.zip", b"PK\x03\x04")
    refused(path, "0 members named data.pkl")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w/data.pkl", GOOD)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("w/data.pkl", GOOD)
    refused(path, "occurs twice")


def edited(raw: bytes, signature: bytes, at: int, form: str, value: int, which: int = 0) -> bytes:
    """Return an archive with one field of its `which`-th record of a kind set."""
    place = -1
    for _ in range(which + 1):
        place = raw.index(signature, place + 1)
    changed = bytearray(raw)
    struct.pack_into(form, changed, place + at, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("signature", "at", "form", "value", "problem"),
    [
        (b"PK\x01\x02", 8, "<H", 1, "encrypted"),
        (b"PK\x03\x04", 6, "<H", 1, "differs"),
        (b"PK\x03\x04", 8, "<H", 8, "differs"),
        (b"PK\x01\x02", 16, "<L", 12345, "checksum"),
        (b"PK\x01\x02", 24, "<L", 0xFFFFFFF0, "compressed"),
        (b"PK\x01\x02", 42, "<L", 0x7FFFFFFF, "overlaps another or lies beyond"),
        (b"PK\x01\x02", 30, "<H", 0xFFFF, "damaged"),
        (b"PK\x01\x02", 28, "<H", 0xFFFF, "damaged"),
        (b"PK\x05\x06", 10, "<H", 0xFFFE, "ends early"),
        (b"PK\x05\x06", 10, "<H", 1, "more than its members"),
        (b"PK\x05\x06", 12, "<L", 0xFFFFFFF0, "does not lie where"),
        (b"PK\x05\x06", 16, "<L", 0, "does not lie where"),
        (b"PK\x05\x06", 20, "<H", 7, "does not end with"),
    ],
)
def test_damaged_archives(path, signature, at, form, value, problem):
    raw = archive(path, GOOD).read_bytes()
    path.write_bytes(edited(raw, signature, at, form, value))
    refused(path, problem)


def test_claimed_sizes_are_not_believed(path):
    raw = archive(path, GOOD).read_bytes()
    for at in (20, 24):
        raw = edited(raw, b"PK\x01\x02", at, "<L", 0x7FFFFFFF, which=1)
    path.write_bytes(raw)
    refused(path, "bytes missing")


def test_overlapping_members(path):
    raw = archive(path, GOOD).read_bytes()
    path.write_bytes(edited(raw, b"PK\x01\x02", 42, "<L", 0, which=1))
    refused(path, "overlaps")


def test_truncated_and_extended(path):
    raw = archive(path, GOOD).read_bytes()
    for size in range(0, len(raw), 7):
        path.write_bytes(raw[:size])
        refused(path)
    path.write_bytes(raw + b"\0")
    refused(path, "does not end with")
    path.write_bytes(b"\0" + raw)
    refused(path)


def test_large_archives_use_wide_fields(path):
    """A directory of 64 bits, as torch writes beyond 4 GB, around small members."""
    name = b"w/data.pkl"
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name + GOOD
    other = b"w/data/0"
    place = len(local)
    local += struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0, 0, len(other), 0) + other + bytes(16)
    full = 0xFFFFFFFF
    central = b""
    for member, size, at, crc in ((name, len(GOOD), 0, zlib.crc32(GOOD)), (other, 16, place, 0)):
        extra = struct.pack("<2H3Q", 1, 24, size, size, at)
        fields = (45, 45, 0, 0, 0, 0, crc, full, full, len(member), len(extra), 0, 0, 0, 0, full)
        central += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fields) + member + extra
    start = len(local)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(central), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(central), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, full, full, 0)
    path.write_bytes(local + central + end64 + locator + end)
    entries, _ = read_torch_file(path)
    assert entries["a"].offset == place + 30 + len(other)


def test_pickle_bytes_are_those_of_the_member(path):
    assert read_pickle(archive(path, GOOD)) == GOOD


def test_fifo_does_not_hang(path):
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_torch_file(path)
