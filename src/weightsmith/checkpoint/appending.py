"""Appending to a file that may be large: written and digested while the next bytes are computed, past the page cache.

What is appended is gathered in rooms of memory; one thread writes the full ones, another digests them. What is written
through the page cache is copied into fresh pages, which the system must find, and then to the disk; a model of the size
of memory pushes everything else out. Whole blocks from an aligned room go to the disk at once (O_DIRECT), and nothing is
left to wait for at the end. Where the file system does not take that, all is written as usual.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import Executor, Future, wait
from pathlib import Path

import numpy as np

from weightsmith.tensor.arrays import Array

DIRECT_BYTES = 64_000_000  # smaller files are likely to be read again soon
ROOM_BYTES = 1 << 21
ROOMS = 4
BLOCK = 4096


class Appended:
    """A new file that is written from its beginning to its end.

    Attributes:
        path: The file.
        size: How many bytes it will hold.
        is_direct: Whether the next write goes past the page cache.
    """

    def __init__(self, path: Path, size: int, writer: Executor, digester: Executor) -> None:
        """Create the file; each executor is one thread. OSError where it exists or cannot be made."""
        self.path, self.size = path, size
        self.is_direct = False
        self._writer, self._digester = writer, digester
        self._hash = hashlib.sha256()
        self._end = self._filled = 0  # bytes in the file, and in the room
        self._room: Array | None = None
        self._waiting: deque[tuple[Array, tuple[Future[None], Future[None]]]] = deque()  # rooms being written
        self._handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        flag = getattr(os, "O_DIRECT", 0)
        if flag and size >= DIRECT_BYTES:
            try:
                fcntl.fcntl(self._handle, fcntl.F_SETFL, flag)
                self.is_direct = True
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self.close()
                    raise

    def write(self, data: memoryview) -> None:
        """Append data; the caller may use the buffer again. OSError where this or an earlier write failed."""
        rest = np.frombuffer(data, np.uint8)
        while rest.size:
            if self._room is None:
                self._room = self._free_room()
            count = min(self._room.size - self._filled, rest.size)
            self._room[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == self._room.size:
                self._send(self._room)

    def finish(self) -> str:
        """Write what is left, and close; return the SHA-256. OSError where a write failed."""
        if self._room is not None:
            self._send(self._room)
        while self._waiting:
            self._oldest_room()
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close, finished or not."""
        wait([future for _, futures in self._waiting for future in futures])
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def _free_room(self) -> Array:
        if len(self._waiting) == ROOMS:
            return self._oldest_room()
        nbytes = min(ROOM_BYTES, -(-self.size // BLOCK) * BLOCK)
        return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)  # aligned to pages

    def _oldest_room(self) -> Array:
        room, futures = self._waiting.popleft()
        for future in futures:
            future.result()
        return room

    def _send(self, room: Array) -> None:
        count, self._filled, self._room = self._filled, 0, None
        written = self._writer.submit(self._put, room, count)
        self._waiting.append((room, (written, self._digester.submit(self._hash.update, room[:count]))))

    def _put(self, room: Array, count: int) -> None:
        done = 0
        while done < count:
            rest = room[done : -(-count // BLOCK) * BLOCK if self.is_direct else count]
            try:
                written = os.pwrite(self._handle, rest.data, self._end + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.is_direct:
                    raise
                written = 0
            done += written
            if self.is_direct and (done % BLOCK or not written):
                # The file system refuses direct writes after all: through the page cache from here on.
                fcntl.fcntl(self._handle, fcntl.F_SETFL, 0)
                self.is_direct = False
        if done > count:
            os.ftruncate(self._handle, self._end + count)
        self._end += count
