"""Appending past the page cache: the same bytes for all sizes and cuts, also where the file system refuses."""

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from weightsmith.checkpoint import appending
from weightsmith.checkpoint.appending import BLOCK, Appended
from weightsmith.checkpoint.write import Output, lay_out


@pytest.fixture
def small_room(monkeypatch):
    monkeypatch.setattr(appending, "DIRECT_BYTES", 0)
    monkeypatch.setattr(appending, "ROOM_BYTES", 2 * BLOCK)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as digester:
        yield writer, digester


def write(path, pieces, threads):
    file = Appended(path, sum(map(len, pieces)), *threads)
    for piece in pieces:
        file.write(memoryview(piece))
    assert file.finish() == hashlib.sha256(b"".join(pieces)).hexdigest()
    return file


SIZES = [(), (1,), (BLOCK,), (BLOCK - 1, 1), (3, 5 * BLOCK, 7), (2 * BLOCK, 2 * BLOCK), (100_003, 1, 4095)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_is_appended_is_in_the_file(sizes, tmp_path, small_room, threads):
    rng = np.random.default_rng(0)
    pieces = [rng.bytes(n) for n in sizes]
    write(tmp_path / "f", pieces, threads)
    assert (tmp_path / "f").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("refused", ["flag", "write", "half a block"])
def test_a_file_system_that_refuses_gets_plain_writes(refused, tmp_path, small_room, threads, monkeypatch):
    pieces = [bytes(range(256)) * 64, b"end"]
    pwrite, asked = os.pwrite, []

    def picky(handle, data, offset):
        asked.append(len(data))
        if refused == "write" and len(asked) == 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        if refused == "half a block" and len(asked) == 1:
            return pwrite(handle, bytes(data[:100]), offset)
        return pwrite(handle, bytes(data), offset)

    given = []

    def flag(handle, command, value):
        given.append(value)
        if refused == "flag":
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(appending.fcntl, "fcntl", flag)
    monkeypatch.setattr(os, "pwrite", picky)
    file = write(tmp_path / "f", pieces, threads)
    assert (tmp_path / "f").read_bytes() == b"".join(pieces)
    assert not file.is_direct
    assert given == [os.O_DIRECT] if refused == "flag" else given == [os.O_DIRECT, 0]


def test_other_errors_are_raised(tmp_path, small_room, threads, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = Appended(tmp_path / "f", 10**6, *threads)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        file.write(memoryview(bytes(10**6)))
    file.close()
    file.close()


@pytest.mark.parametrize("size", [100, 10**6])
def test_an_error_of_the_last_bytes_is_raised_at_the_end(size, tmp_path, threads, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = Appended(tmp_path / "f", size, *threads)
    monkeypatch.setattr(os, "pwrite", full)
    file.write(memoryview(bytes(size)))
    with pytest.raises(OSError, match="No space"):
        file.finish()
    file.close()


def test_the_buffer_may_be_used_again_before_it_is_written(tmp_path, small_room, threads, monkeypatch):
    pwrite, may_write = os.pwrite, threading.Event()

    def late(handle, data, offset):
        assert may_write.wait(10)
        return pwrite(handle, bytes(data), offset)

    monkeypatch.setattr(os, "pwrite", late)
    file = Appended(tmp_path / "f", 6 * BLOCK, *threads)
    buffer = bytearray(2 * BLOCK)
    for i in range(3):  # fewer than there are rooms
        buffer[:] = bytes([i]) * len(buffer)
        file.write(memoryview(buffer))
    may_write.set()
    file.finish()
    assert (tmp_path / "f").read_bytes() == b"".join(bytes([i]) * 2 * BLOCK for i in range(3))


def test_small_files_go_through_the_page_cache(tmp_path, threads):
    assert not Appended(tmp_path / "f", appending.DIRECT_BYTES - 1, *threads).is_direct
    assert Appended(tmp_path / "g", appending.DIRECT_BYTES, *threads).is_direct


def test_shards_are_the_same_either_way(tmp_path, monkeypatch):
    data = np.random.default_rng(1).bytes(50_000)
    shards = lay_out([("a", "U8", (20_001,), 20_001), ("b", "U8", (29_999,), 29_999)], 25_000, {"format": "pt"})
    found = []
    for threshold in (0, 10**9):
        monkeypatch.setattr(appending, "DIRECT_BYTES", threshold)
        with Output(tmp_path / str(threshold), shards) as output:
            output.append(0, memoryview(data[:20_001]))
            output.append(1, memoryview(data[20_001:]))
            found.append(output.records())
            output.publish()
    assert found[0] == found[1]
    for shard in shards:
        assert len({(tmp_path / str(t) / shard.name).read_bytes() for t in (0, 10**9)}) == 1
