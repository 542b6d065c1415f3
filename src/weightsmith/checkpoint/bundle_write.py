"""Writing the files of a bundle: pieces appended one after the other, whose sizes are known only when they are there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint.write import failed, sha256_file, sync
from weightsmith.errors import ResourceError, shown
from weightsmith.tensor.arrays import Array

_DTYPES = {"uint8": "U8", "int8": "I8", "uint32": "U32", "float32": "F32", "float16": "F16"}
LEFT_OVER = ".partial-"  # what folders inside a bundle begin with while they are written or removed
_DIGITS = 16  # of an offset; no file is longer


class PieceWriter:
    """A .safetensors file that grows at its end; its header, whose room is kept free, is written last.

    Use as a context manager; without `finish` the file is no .safetensors file.
    """

    def __init__(self, path: Path, longest: Iterable[tuple[str, int]]) -> None:
        """Keep room for pieces of these names and numbers of axes; fewer may be written."""
        self.path = path
        room = sum(len(json.dumps(name)) + 80 + _DIGITS * (2 + axes) for name, axes in longest) + 64
        self._begin = 8 + room + -room % 8
        self._end = self._begin
        self._table: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> PieceWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise failed(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    @property
    def nbytes(self) -> int:
        """Bytes of the pieces so far."""
        return self._end - self._begin

    def append(self, data: Array | bytes) -> None:
        """Append bytes of the piece that is being written."""
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < view.nbytes:
                done += os.pwrite(self._handle, view[done:], self._end + done)
        except OSError as error:
            raise failed(self.path, error) from error
        self._end += done

    def close_piece(self, name: str, dtype: str, shape: tuple[int, ...], begin: int) -> str:
        """Name what was appended since `nbytes` was `begin`; return the name."""
        self._table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, self.nbytes]}
        return name

    def add(self, name: str, array: Array, dtype: str | None = None) -> str:
        """Append a whole array as a piece, as stored bytes of a dtype where one is given; return the name."""
        begin = self.nbytes
        self.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return self.close_piece(name, dtype or _DTYPES[array.dtype.name], array.shape, begin)

    def rewind(self, begin: int) -> None:
        """Forget what was appended since `nbytes` was `begin`, as a piece or not."""
        self._table = {
            n: t for n, t in self._table.items() if t["data_offsets"][1] <= begin and t["data_offsets"][0] < begin
        }
        self._end = self._begin + begin
        try:
            os.ftruncate(self._handle, self._end)
        except OSError as error:
            raise failed(self.path, error) from error

    def finish(self, root: Path) -> dict[str, Any]:
        """Write the header; return the file's record: its name seen from `root`, bytes and SHA-256."""
        text = json.dumps({"__metadata__": {"format": "pt"}, **self._table}, separators=(",", ":")).encode()
        if len(text) > self._begin - 8:
            raise ValueError(f"{self.path}: the header needs {len(text)} bytes, {self._begin - 8} were kept free")
        header = (self._begin - 8).to_bytes(8, "little") + text.ljust(self._begin - 8)
        try:
            os.pwrite(self._handle, header, 0)
            if self._end == self._begin:
                os.ftruncate(self._handle, self._end)
        except OSError as error:
            raise failed(self.path, error) from error
        return file_record(self.path, root)


def file_record(path: Path, root: Path) -> dict[str, Any]:
    """Return a file's name seen from `root`, its bytes and its SHA-256."""
    return {"file": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_json(path: Path, content: Any) -> None:
    """Write a manifest and sync it; one that is there is replaced at once, by a rename."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise failed(path, error) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 that bundle.json states of itself, formed without that entry."""
    rest = {key: value for key, value in content.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write bundle.json with its own SHA-256; see `write_json`."""
    write_json(path, {**content, "manifest_sha256": manifest_digest(content)})


@contextmanager
def changing(folder: Path) -> Iterator[Path]:
    """Keep other processes from changing a bundle; yield a new folder inside it that is removed in the end.

    What changes that were killed have left is removed first.

    Raises:
        ResourceError: Another process is changing it, or it cannot be written.
    """
    work = folder / f"{LEFT_OVER}{secrets.token_hex(4)}"
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise failed(folder, error) from error
    try:
        _lock(handle, folder)
        for old in folder.glob(f"{LEFT_OVER}*"):
            shutil.rmtree(old, ignore_errors=True)
        try:
            work.mkdir()
        except OSError as error:
            raise failed(work, error) from error
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(handle)  # frees the lock


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            what = f"bundle '{shown(folder)}' is being changed by another process"
            raise ResourceError(what, do="Run again when that is done") from error
        # a file system without locks: bundle.json is compared before it is replaced all the same


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that lies in it are on the disk."""
    try:
        for path in (*sorted(folder.rglob("*")), folder, folder.parent):
            sync(path)
    except OSError as error:
        raise failed(folder, error) from error
