"""Writing: where tensors lie, what is refused as an output, and what is left when a call fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import struct
import threading
from pathlib import Path

import pytest

from weightsmith.checkpoint import write
from weightsmith.checkpoint.write import Output, check_output, lay_out, sha256_file
from weightsmith.errors import ArgumentError, ResourceError

TENSORS = [
    ("a", "F16", (3,), 6),
    ("b", "F32", (2, 2), 16),
    ("c", "I64", (), 8),
    ("d", "U8", (5,), 5),
    ("e", "F32", (0,), 0),
]


def fill(output: Output) -> None:
    for i, shard in enumerate(output.shards):
        for slot in shard.slots:
            data = memoryview(bytes([len(slot.name) + i]) * slot.nbytes)
            output.append(i, data)


def complete(output: Output) -> None:
    """Fill, and wait until all is written."""
    fill(output)
    output.records()


def make(out: Path, shard_bytes: int = 100) -> Path:
    shards = lay_out(TENSORS, shard_bytes, {"format": "pt"})
    with Output(out, shards) as output:
        fill(output)
        output.write_index()
        output.write_text("edit.json", "{}")
        output.publish()
    return out


def test_one_shard_is_one_file_with_aligned_tensors():
    (shard,) = lay_out(TENSORS, 100, {"format": "pt"})
    assert shard.name == "model.safetensors"
    assert [s.name for s in shard.slots] == ["c", "b", "e", "a", "d"]
    assert all(s.offset % 8 == 0 for s in shard.slots if s.dtype == "I64")
    assert all(s.offset % 4 == 0 for s in shard.slots if s.dtype == "F32")
    assert len(shard.header) % 8 == 0
    (length,) = struct.unpack("<Q", shard.header[:8])
    assert length == len(shard.header) - 8
    table = json.loads(shard.header[8:])
    assert table.pop("__metadata__") == {"format": "pt"}
    assert table["b"] == {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}
    assert shard.size == len(shard.header) + 35


@pytest.mark.parametrize(
    ("shard_bytes", "groups"),
    [
        (1, ["a", "b", "c", "d", "e"]),
        (16, ["a", "b", "cde"]),
        (22, ["ab", "cde"]),
        (35, ["abcde"]),
        (34, ["abc", "de"]),
    ],
)
def test_a_shard_closes_when_the_next_tensor_would_not_fit(shard_bytes, groups):
    shards = lay_out(TENSORS, shard_bytes, {})
    assert [sorted(s.name for s in shard.slots) for shard in shards] == [sorted(g) for g in groups]
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [s.name for s in shards] == (names if count > 1 else ["model.safetensors"])
    assert all("__metadata__" not in json.loads(s.header[8:]) for s in shards)


def test_an_output_is_readable_indexed_and_digested(tmp_path):
    from safetensors import safe_open

    shards = lay_out(TENSORS, 16, {"format": "pt"})
    with Output(tmp_path / "out", shards) as output:
        fill(output)
        output.write_index()
        records = output.records()
        output.publish()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    for record in records:
        raw = (tmp_path / "out" / record["file"]).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (record["bytes"], record["sha256"])
        assert sha256_file(tmp_path / "out" / record["file"]) == record["sha256"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 35}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "np") as opened:
            assert name in opened.keys()  # noqa: SIM118


def test_tensors_without_elements_alone_make_a_shard(tmp_path):
    shards = lay_out([("w", "F32", (0,), 0)], 100, {})
    with Output(tmp_path / "out", shards) as output:
        output.publish()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == shards[0].header


def test_one_descriptor_however_many_shards(tmp_path):
    shards = lay_out([(f"w{i}", "U8", (1,), 1) for i in range(50)], 1, {})
    before = len(os.listdir("/dev/fd"))
    with Output(tmp_path / "out", shards) as output:
        for i in range(len(shards)):
            output.append(i, memoryview(b"x"))
            assert len(os.listdir("/dev/fd")) <= before + 1
        output.publish()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 50


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:3], offset))
    make(tmp_path / "short")
    monkeypatch.undo()
    make(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "short" / path.name).read_bytes() == path.read_bytes()


def test_without_publish_nothing_remains(tmp_path):
    shards = lay_out(TENSORS, 16, {})
    with Output(tmp_path / "out", shards) as output:
        fill(output)
        assert output.partial.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_nothing_remains(tmp_path, error):
    def run():
        with Output(tmp_path / "out", lay_out(TENSORS, 16, {})) as output:
            fill(output)
            raise error

    with pytest.raises(error):
        run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_the_files_are_made_leaves_nothing(tmp_path, monkeypatch, error):
    def interrupted(*_):
        raise error

    monkeypatch.setattr(write, "Appended", interrupted)
    with pytest.raises(error), Output(tmp_path / "out", lay_out(TENSORS, 16, {})):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_older_output_is_replaced_as_a_whole(tmp_path):
    make(tmp_path / "out", 16)
    (tmp_path / "out" / "old.txt").write_text("old")
    make(tmp_path / "out", 100)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["edit.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_any_failing_call_of_publish_brings_the_older_output_back(tmp_path, monkeypatch, call, error):
    make(tmp_path / "out", 100)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    inode = (tmp_path / "out").stat().st_ino
    real, calls = getattr(os, call), 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        return real(*arguments)

    for failing in range(1, 20):
        calls, told = 0, ""
        monkeypatch.setattr(os, call, counted)
        try:
            make(tmp_path / "out", 22)
        except (ResourceError, KeyboardInterrupt, SystemExit) as raised:
            told = str(raised)
        else:
            break
        finally:
            monkeypatch.undo()
        if isinstance(error, OSError):
            assert "nothing was published. Check the disk" in told
        assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before, f"{call} {failing}"
        assert (tmp_path / "out").stat().st_ino == inode
        assert [p.name for p in tmp_path.iterdir()] == ["out"], f"{call} {failing} left something"
    assert failing >= 3, f"{call} was called {failing - 1} times only"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def test_an_output_that_cannot_be_put_back_is_said_where_it_lies(tmp_path, monkeypatch):
    make(tmp_path / "out")
    rename, calls = os.rename, 0

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.EROFS, "Read-only file system")
        rename(*arguments)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ResourceError) as caught:
        make(tmp_path / "out")
    (aside,) = tmp_path.iterdir()
    assert str(aside) in str(caught.value), str(caught.value)
    assert sorted(p.name for p in aside.iterdir()) == ["edit.json", "model.safetensors"]


def test_an_older_output_that_cannot_be_removed_is_said(tmp_path, monkeypatch):
    make(tmp_path / "out")

    def failing(path, *_, **__):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", failing)
    with pytest.raises(ResourceError) as caught:
        make(tmp_path / "out", 16)
    (aside,) = (p for p in tmp_path.iterdir() if p.name != "out")
    assert str(aside) in str(caught.value), str(caught.value)
    assert "is complete" in str(caught.value)
    assert (tmp_path / "out" / "model-00001-of-00003.safetensors").is_file()


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.ENOSPC, "Free space"), (errno.EDQUOT, "quota"), (errno.EFBIG, "--shard-size"),
        (errno.EROFS, "not read-only"), (errno.EIO, "Check the disk"),
    ],
)  # fmt: skip
def test_errors_of_the_disk_bring_the_way_out(tmp_path, monkeypatch, number, way):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    with Output(tmp_path / "out", lay_out(TENSORS, 100, {})) as output:
        monkeypatch.setattr(os, "pwrite", failing)
        with pytest.raises(ResourceError) as caught:
            complete(output)
        assert way in str(caught.value)
        assert os.strerror(number) in str(caught.value)
        assert "model.safetensors" in str(caught.value)


def test_a_limit_of_file_size_is_an_error_not_a_death(tmp_path):
    if not hasattr(resource, "RLIMIT_FSIZE"):
        pytest.skip("no such limit here")
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself does
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        shards = lay_out([("w", "U8", (5000,), 5000)], 10_000, {})
        with pytest.raises(ResourceError) as caught, Output(tmp_path / "out", shards) as output:
            complete(output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert "--shard-size" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_synced_along_the_way(tmp_path, monkeypatch):
    synced = threading.Event()
    monkeypatch.setattr(write, "FLUSH_BYTES", 8)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (real(handle), synced.set()))
    with Output(tmp_path / "out", lay_out(TENSORS, 100, {})) as output:
        fill(output)
        assert synced.wait(5), "nothing was sent to the disk before the end"


# check_output


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        "model",
        "model/",
        "model/new",
        "model/a/b",
        "./model",
        "model/../model",
        "link",
        "link/new",
        "model/model.safetensors",
        "",
    ],
)
def test_an_input_is_never_an_output(tmp_path, model, place, force, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError) as caught:
        check_output(Path(place), [model, model / "model.safetensors"], force=force)
    assert "--out" in str(caught.value)
    assert "inputs are never changed" in str(caught.value) or place == "link", str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_input_that_is_a_link_is_never_an_output(tmp_path, model):
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(ArgumentError, match="inputs are never changed"):
        check_output(model / "new", [tmp_path / "link"], force=True)


def test_the_root_is_refused(model):
    for place in ("/", "/..", "//"):
        with pytest.raises(ArgumentError, match="the root of the file system"):
            check_output(Path(place), [model], force=True)


def test_files_and_links_are_refused(tmp_path, model):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for force in (False, True):
        for name, kind in (("file", "a file"), ("dangling", "a link"), ("link", "a link")):
            with pytest.raises(ArgumentError, match=f"got {kind}"):
                check_output(tmp_path / name, [model], force=force)


def test_what_exists_needs_force_and_a_record(tmp_path, model):
    out = tmp_path / "out"
    check_output(out, [model], force=False)
    out.mkdir()
    check_output(out, [model], force=False)
    (out / "precious.txt").write_text("x")
    with pytest.raises(ArgumentError, match="pass --force"):
        check_output(out, [model], force=False)
    with pytest.raises(ArgumentError, match=r"without edit\.json.*move it away yourself"):
        check_output(out, [model], force=True)
    (out / "edit.json").write_text("{}")
    check_output(out, [model], force=True)
    with pytest.raises(ArgumentError, match="pass --force"):
        check_output(out, [model], force=False)
    assert sorted(p.name for p in out.iterdir()) == ["edit.json", "precious.txt"]


def test_folders_above_are_made(tmp_path, model):
    check_output(tmp_path / "a" / "b" / "c", [model], force=False)
    assert not (tmp_path / "a").exists()
    make(tmp_path / "a" / "b" / "c")


def test_a_parent_that_is_a_file_is_refused(tmp_path, model):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="is not one"):
        check_output(tmp_path / "file" / "out", [model], force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path, model):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(ResourceError, match="a folder that can be written"):
        check_output(closed / "out", [model], force=False)


def check_and_make(out, model):
    check_output(out, [model], force=False)
    make(out)


def test_a_read_only_disk_is_refused(model):
    read_only = next((p for p in ("/proc", "/sys") if Path(p).is_dir()), None)
    if read_only is None:
        pytest.skip("no file system that refuses folders")
    with pytest.raises(ResourceError):  # root is told by the first folder that cannot be made
        check_and_make(Path(read_only) / "weightsmith-out", model)
