from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.checkpoint.read import Files, check_unchanged, fingerprint, open_checkpoint, read_array
from weightsmith.errors import ArgumentError, CheckpointError, ResourceError

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def model(tmp_path, write_safetensors):
    folder = tmp_path / "llama-7b"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {"a": X, "b": X + 1})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_folder_file_and_prefix(model, monkeypatch):
    for reference in (model, str(model), f"file:{model}", model / "model.safetensors"):
        checkpoint = open_checkpoint(reference)
        assert checkpoint.reference == str(reference)
        assert checkpoint.folder == model
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.revision is None
    monkeypatch.chdir(model.parent)
    checkpoint = open_checkpoint("llama-7b")
    assert checkpoint.files == (model / "model.safetensors",)


def test_read_array(model):
    entry = open_checkpoint(model).tensors["b"]
    assert np.array_equal(np.frombuffer(read_array(entry), np.float32).reshape(entry.shape), X + 1)


@pytest.mark.parametrize("reference", ["lama-7b", "./llama-7", "llama-7b/modle.safetensors", "file:llama-7"])
def test_typo_brings_the_nearest_name(model, monkeypatch, reference):
    monkeypatch.chdir(model.parent)
    with pytest.raises(ArgumentError, match=r"does not exist.*did you mean '(llama-7b|model\.safetensors)'") as caught:
        open_checkpoint(reference)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "a\0b",
        "hub:",
        "hub:name",
        "hub:/etc/passwd",
        "hub:../x/y",
        "file:",
        "/x/y/z",
        "a/b/c",
        "n" * 5000,
        "n" * 5000 + "/x",
        "\u00e9/x",
    ],
)
def test_references_that_name_nothing(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError):
        open_checkpoint(reference)


def test_plus_in_a_name_is_a_name_first(model, tmp_path):
    odd = model.rename(tmp_path / "a+b")
    assert list(open_checkpoint(odd).tensors) == ["a", "b"]
    with pytest.raises(ArgumentError, match=r"adapter 'lora' .* does not exist"):
        open_checkpoint(f"{odd}+lora")


def test_dangling_link_is_damage_and_not_a_typo(tmp_path):
    (tmp_path / "x").symlink_to("gone")
    with pytest.raises(CheckpointError, match="dangling"):
        open_checkpoint(tmp_path / "x")


def test_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "model.safetensors", "w", "w.bin", "w.st"])
def test_pickle_under_another_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(eval))
    with pytest.raises(CheckpointError, match=r"builtins\.eval"):
        open_checkpoint(path)
    with open(path, "wb") as file:
        torch.save({"a": torch.zeros(2)}, file)
    if name in ("w.bin", "w"):
        assert list(open_checkpoint(path).tensors) == ["a"]
    else:
        with pytest.raises(CheckpointError, match="does not fit its name"):
            open_checkpoint(path)


def test_pickle_as_shard_or_config(model, write_sharded, tmp_path):
    raw = pickle.dumps(eval)
    (model / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json' is not JSON.*pickle"):
        open_checkpoint(model)
    folder = tmp_path / "shards"
    write_sharded(folder, {"model-1.safetensors": {"a": X}})
    (folder / "model-1.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"builtins\.eval"):
        open_checkpoint(folder)


@pytest.mark.parametrize("raw", [b"", b"x" * 100, b"GGUF" + bytes(60), b"<!DOCTYPE html>" + bytes(60), bytes(64)])
def test_other_content(tmp_path, raw):
    for name in ("w.safetensors", "w.bin", "w.gguf"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(tmp_path / name)


# ---- Files


def test_pread_into(model):
    entry = open_checkpoint(model).tensors["a"]
    target = bytearray(entry.nbytes)
    with Files() as files:
        files.pread_into(entry.file, entry.offset, memoryview(target))
        files.pread_into(entry.file, entry.offset, memoryview(target)[:0])
        assert bytes(target) == X.tobytes()
        array = np.zeros((2, 3), np.float32)
        files.pread_into(entry.file, entry.offset, memoryview(array))
        assert np.array_equal(array, X)


def test_short_reads_are_completed(model, monkeypatch):
    real = os.preadv
    calls = []

    def short(handle, buffers, offset):
        calls.append(offset)
        return real(handle, [memoryview(buffers[0]).cast("B")[:5]], offset)

    monkeypatch.setattr(os, "preadv", short)
    entry = open_checkpoint(model).tensors["b"]
    array = np.zeros((2, 3), np.float32)
    with Files() as files:
        files.pread_into(entry.file, entry.offset, memoryview(array))
    assert np.array_equal(array, X + 1)
    assert len(calls) == 5


def test_end_of_file_is_named(model):
    path = model / "model.safetensors"
    with (
        Files() as files,
        pytest.raises(CheckpointError, match=r"model\.safetensors' ends at byte .*: 6 bytes missing"),
    ):
        files.pread_into(path, path.stat().st_size - 4, memoryview(bytearray(10)))


def test_failing_disk(model, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with Files() as files, pytest.raises(ResourceError, match="Input/output error"):
        files.pread_into(model / "model.safetensors", 0, memoryview(bytearray(1)))


def test_pool_keeps_to_its_limit(tmp_path):
    paths = []
    for i in range(20):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(bytes([i]) * 8)
    before = len(os.listdir("/proc/self/fd"))
    target = bytearray(1)
    with Files(3) as files:
        for i in [*range(20), 0, 19, 18, 0, 5]:
            files.pread_into(paths[i], 2, memoryview(target))
            assert target[0] == i
            assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ArgumentError):
        Files(0)


def test_pool_closes_the_least_recently_used(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x")
    opened = []
    from weightsmith.checkpoint import read

    real = read.open_regular
    monkeypatch.setattr(read, "open_regular", lambda path: (opened.append(path.name), real(path))[1])
    with Files(2) as files:
        for i in (0, 1, 0, 2, 0, 1):
            files.pread_into(paths[i], 0, memoryview(bytearray(1)))
    assert opened == ["a", "b", "c", "b"]


def test_pool_gives_way_when_the_process_runs_out(tmp_path, monkeypatch):
    import resource

    paths = [tmp_path / str(i) for i in range(40)]
    for path in paths:
        path.write_bytes(b"x")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, limits[1]))
    try:
        with Files(1000) as files:
            for path in paths:
                files.pread_into(path, 0, memoryview(bytearray(1)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_gone_file_and_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with Files() as files:
        for name in ("gone", "fifo"):
            with pytest.raises(CheckpointError, match=name):
                files.pread_into(tmp_path / name, 0, memoryview(bytearray(1)))


def test_pread_into_costs_little(model):
    path, target = model / "model.safetensors", memoryview(bytearray(8))
    handle = os.open(path, os.O_RDONLY)

    def best(call) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(2000):
                call()
            times.append((time.perf_counter() - started) / 2000)
        return min(times)

    try:
        with Files() as files:
            extra = best(lambda: files.pread_into(path, 0, target)) - best(lambda: os.preadv(handle, (target,), 0))
    finally:
        os.close(handle)
    assert extra < 2e-6


# ---- fingerprint


def test_fingerprint_and_check(model, tmp_path):
    checkpoint = open_checkpoint(model)
    before = fingerprint(checkpoint)
    path = model / "model.safetensors"
    assert json.loads(json.dumps(before)) == before
    assert list(before) == [str(path)]
    check_unchanged(before)
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match="was written to"):
        check_unchanged(before)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"had \d+ bytes and now has"):
        check_unchanged(before)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be found again"):
        check_unchanged(before)
    with pytest.raises(CheckpointError):
        fingerprint(checkpoint)


def test_fingerprint_covers_the_header_alone(model, write_safetensors):
    path = model / "model.safetensors"
    first = fingerprint(open_checkpoint(model))[str(path)]["header_sha256"]
    write_safetensors(path, {"a": X * 2, "b": X})
    assert fingerprint(open_checkpoint(model))[str(path)]["header_sha256"] == first
    write_safetensors(path, {"a": X, "c": X})
    assert fingerprint(open_checkpoint(model))[str(path)]["header_sha256"] != first


def test_fingerprint_of_a_torch_file(tmp_path):
    path = tmp_path / "w.pt"
    digests = []
    for name, value in (("a", 0.0), ("a", 1.0), ("b", 0.0)):
        torch.save({name: torch.full((3,), value)}, path)
        digests.append(fingerprint(open_checkpoint(path))[str(path)]["header_sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_many_shards_open_quickly(tmp_path, write_sharded):
    shards = {
        f"model-{s:05d}.safetensors": {f"layers.{s}.{t}.weight": X[0, :1] for t in range(100)} for s in range(100)
    }
    write_sharded(tmp_path, shards)
    started = time.perf_counter()
    checkpoint = open_checkpoint(tmp_path)
    assert time.perf_counter() - started < 2
    assert len(checkpoint.tensors) == 10_000
    assert isinstance(checkpoint.files[0], Path)


@pytest.mark.parametrize("length", [128, 384, 640, 1408])
def test_header_length_that_begins_like_a_pickle(tmp_path, length):
    """Header lengths whose first bytes are 0x80 and a small number are lengths, not pickle opcodes."""
    table = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + table.ljust(length) + bytes(4))
    found = open_checkpoint(path)
    assert list(found.tensors) == ["w"]
    (printed,) = fingerprint(found).values()
    assert printed["header_sha256"] == hashlib.sha256(path.read_bytes()[: 8 + length]).hexdigest()
