"""Appending to a file that may be large: straight to the disk, past the page cache.

What is written through the page cache is copied into fresh pages, which the system must find, and then to the disk; a model
of the size of memory pushes everything else out. Whole blocks from an aligned buffer go to the disk at once (O_DIRECT),
and nothing is left to wait for at the end. Where the file system does not take that, all is written as usual.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

DIRECT_BYTES = 64_000_000  # smaller files are likely to be read again soon
ROOM_BYTES = 1 << 22
BLOCK = 4096


class Appended:
    """A new file that is written from its beginning to its end.

    Attributes:
        path: The file.
        size: How many bytes it will hold.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Create the file; OSError where it exists or cannot be made."""
        self.path, self.size = path, size
        self._handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        self._end = self._filled = 0  # bytes in the file, and in the room
        self._room: memoryview | None = None
        self._is_raw = False  # whether the next write goes past the page cache
        flag = getattr(os, "O_DIRECT", 0)
        if flag and size >= DIRECT_BYTES:
            try:
                fcntl.fcntl(self._handle, fcntl.F_SETFL, flag)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self.close()
                    raise
            else:
                self._is_raw = True
                self._room = memoryview(mmap.mmap(-1, ROOM_BYTES))  # aligned to pages

    @property
    def is_direct(self) -> bool:
        """Whether it goes past the page cache."""
        return self._room is not None

    def write(self, data: memoryview) -> None:
        """Append data; the caller may use the buffer again."""
        if self._room is None:
            self._put(data)
            return
        done = 0
        while done < data.nbytes:
            count = min(ROOM_BYTES - self._filled, data.nbytes - done)
            self._room[self._filled : self._filled + count] = data[done : done + count]
            self._filled += count
            done += count
            if self._filled == ROOM_BYTES:
                self._put(self._room)
                self._filled = 0

    def finish(self) -> None:
        """Write what is left, and close."""
        if self._room is not None and self._filled:
            whole = -(-self._filled // BLOCK) * BLOCK
            self._room[self._filled : whole] = bytes(whole - self._filled)
            self._put(self._room[:whole])
            os.ftruncate(self._handle, self._end - (whole - self._filled))
            self._filled = 0
        self.close()

    def close(self) -> None:
        """Close, finished or not."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def _put(self, data: memoryview) -> None:
        done = 0
        while done < data.nbytes:
            try:
                count = os.pwrite(self._handle, data[done:], self._end + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_raw:
                    raise
                count = 0
            done += count
            if self._is_raw and (done % BLOCK or not count):  # refused after all: through the page cache from here on
                fcntl.fcntl(self._handle, fcntl.F_SETFL, 0)
                self._is_raw = False
        self._end += done
