"""Writing a checkpoint: shards laid out beforehand, filled in any order, digested in order, published by one rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.appending import Appended
from weightsmith.checkpoint.entry import DTYPE_BITS
from weightsmith.errors import ArgumentError, ResourceError, shown

FLUSH_BYTES = 128_000_000


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor of the output lies: nbytes bytes at offset of the shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, its header's bytes, and its tensors in order."""

    name: str
    header: bytes
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(s.nbytes for s in self.slots)


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], shard_bytes: int, metadata: dict[str, str]
) -> list[Shard]:
    """Lay tensors out in shards: a shard is closed when the next tensor would not fit; a larger one stands alone.

    Args:
        tensors: (name, dtype, shape, nbytes) each, in the order wanted.
        shard_bytes: Bound on the tensors' bytes in one file.
        metadata: String to string, into each header; `{"format": "pt"}` for transformers.

    Returns:
        The shards; `model.safetensors` where one is enough. Inside a shard wider dtypes come first, so that every
        tensor is aligned.
    """
    groups: list[list[tuple[str, str, tuple[int, ...], int]]] = [[]]
    held = 0
    for tensor in tensors:
        if groups[-1] and held + tensor[3] > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += tensor[3]
    shards = []
    for i, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        shards.append(_lay_out_one(name, sorted(group, key=lambda t: -DTYPE_BITS[t[1]]), metadata))
    return shards


def _lay_out_one(name: str, group: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]) -> Shard:
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for tensor, dtype, shape, nbytes in group:
        table[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    slots, place = [], len(header)
    for tensor, dtype, shape, nbytes in group:
        slots.append(Slot(tensor, dtype, shape, place, nbytes))
        place += nbytes
    return Shard(name, header, tuple(slots))


class Output:
    """A folder being written beside its final place. Use as a context manager; without `publish` nothing remains.

    One thread appends to the shards, in order: several would wait for each other inside the file system. Another digests
    what it writes.
    """

    def __init__(self, out: Path, shards: Sequence[Shard]) -> None:
        self.out = out
        self.shards = tuple(shards)
        self.partial = out.parent / f"{out.name}.partial-{secrets.token_hex(4)}"
        self._digests: list[str] = []  # of the shards that are complete
        self._file: Appended | None = None  # the one after those
        self._pending = 0
        self._flush = threading.Event()
        self._closing = False
        self._writer = ThreadPoolExecutor(1, "weightsmith-write")
        self._digester = ThreadPoolExecutor(1, "weightsmith-digest")
        self._flusher = threading.Thread(target=self._flush_often, daemon=True)

    def __enter__(self) -> Output:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir()
            if self.shards:
                self._current()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise failed(self.partial, error) from error
            raise
        self._flusher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_flusher()
        self._writer.shutdown()  # before the file is closed: an interrupt may have come while a write was handed over
        self._digester.shutdown()
        if self._file is not None:
            self._file.close()
        if self.partial.exists():
            shutil.rmtree(self.partial, ignore_errors=True)

    def append(self, shard: int, data: memoryview) -> None:
        """Append data to a shard and to its SHA-256. Shards are filled one after the other.

        Raises:
            ResourceError: This or an earlier write failed.
        """
        self._finish(shard)
        try:
            self._write(self._current(), data)
        except OSError as error:
            raise failed(self.partial / self.shards[shard].name, error) from error

    def records(self) -> list[dict[str, Any]]:
        """Finish all shards; return name, size and SHA-256 of each.

        Raises:
            ResourceError: A write failed.
        """
        self._finish(len(self.shards))
        return [{"file": s.name, "bytes": s.size, "sha256": d} for s, d in zip(self.shards, self._digests, strict=True)]

    def write_index(self) -> None:
        """Write model.safetensors.index.json where there are several shards."""
        if len(self.shards) > 1:
            total = sum(slot.nbytes for s in self.shards for slot in s.slots)
            names = {slot.name: s.name for s in self.shards for slot in s.slots}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
            self.write_text("model.safetensors.index.json", json.dumps(index, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a small file into the folder."""
        try:
            (self.partial / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise failed(self.partial / name, error) from error

    def publish(self) -> None:
        """Sync everything, then rename the folder to its place; an older one is moved aside first and then removed."""
        self._stop_flusher()
        self._finish(len(self.shards))
        try:
            for path in sorted(self.partial.rglob("*")):
                sync(path)
            sync(self.partial)
            aside = self._switch()
        except OSError as error:
            raise failed(self.out, error) from error
        if aside is not None:
            try:
                shutil.rmtree(aside)
            except OSError as error:
                raise ResourceError(
                    f"'{shown(self.out)}' is complete, but what it replaces cannot be removed: {error.strerror}",
                    do=f"Remove '{shown(aside)}'",
                ) from error

    def _switch(self) -> Path | None:
        """Rename the folder to its place; return where the older one went. Whatever fails, the older one comes back."""
        aside = self.out.parent / f"{self.out.name}.replaced-{secrets.token_hex(4)}"
        try:
            if os.path.lexists(self.out):
                os.rename(self.out, aside)
            os.rename(self.partial, self.out)
            sync(self.out.parent)
        except BaseException as error:
            try:
                if not self.partial.exists():
                    os.rename(self.out, self.partial)
                if aside.exists():
                    os.rename(aside, self.out)
            except OSError:
                raise ResourceError(
                    f"cannot replace '{shown(self.out)}', nor undo it: {error}",
                    do=f"The older output is '{shown(aside)}': rename it yourself",
                ) from error
            raise
        return aside if aside.exists() else None

    def _current(self) -> Appended:
        """Return the shard being written; begin it with its header."""
        if self._file is None:
            shard = self.shards[len(self._digests)]
            self._file = Appended(self.partial / shard.name, shard.size, self._writer, self._digester)
            self._write(self._file, memoryview(shard.header))
        return self._file

    def _finish(self, count: int) -> None:
        """Finish the first `count` shards; those of tensors without elements are only headers."""
        while len(self._digests) < count:
            try:
                self._digests.append(self._current().finish())
            except OSError as error:
                raise failed(self.partial / self.shards[len(self._digests)].name, error) from error
            self._file = None

    def _write(self, file: Appended, data: memoryview) -> None:
        file.write(data)
        self._pending += data.nbytes
        if self._pending >= FLUSH_BYTES and not file.is_direct:
            self._pending = 0
            self._flush.set()

    def _flush_often(self) -> None:
        """Send what is written to the disk while the rest is computed, so that the last sync is short."""
        while self._flush.wait() and not self._closing:
            self._flush.clear()
            file = self._file
            if file is not None:
                with contextlib.suppress(OSError):  # the last sync reports it
                    sync(file.path)

    def _stop_flusher(self) -> None:
        self._closing = True
        self._flush.set()
        if self._flusher.is_alive():
            self._flusher.join()


def check_output(out: Path, inputs: Sequence[Path], *, force: bool, mark: str = "edit.json") -> None:
    """Refuse an output path that exists, holds or lies in an input, or cannot be made; nothing is touched.

    `mark` is the file by which a folder that may be replaced is known.

    Raises:
        ArgumentError: The path is an input, a root, or exists without `force`.
        ResourceError: Its folder is not writable.
    """
    real = Path(os.path.realpath(out))
    if real == Path(real.anchor):
        raise ArgumentError(f"--out '{shown(out)}'", expected="a new folder", got="the root of the file system")
    for given in inputs:
        theirs = Path(os.path.realpath(given))
        if real == theirs or theirs in real.parents or real in theirs.parents:
            raise ArgumentError(
                f"--out '{shown(out)}'",
                expected="a folder apart from the inputs",
                got=f"the input '{shown(given)}'",
                do="Choose another folder; inputs are never changed",
            )
    bundle = next((p for p in real.parents if os.path.lexists(p / "bundle.json")), None)
    if bundle is not None:
        raise ArgumentError(
            f"--out '{shown(out)}'",
            expected="a folder outside bundles",
            got=f"one inside the bundle '{shown(bundle)}'",
            do="Choose another folder; what lies in a bundle is its own",
        )
    if os.path.lexists(out):
        if not out.is_dir() or out.is_symlink():
            kind = "a link" if out.is_symlink() else "a file"
            raise ArgumentError(f"--out '{shown(out)}'", expected="a new folder", got=kind, do="Choose another name")
        held = {p.name for p in out.iterdir()}
        if held and force and mark not in held:
            raise ArgumentError(
                f"--out '{shown(out)}'",
                expected="a folder that weightsmith wrote",
                got=f"one without {mark}",
                do="--force replaces nothing else; move it away yourself",
            )
        if held and not force:
            raise ArgumentError(
                f"--out '{shown(out)}' exists",
                expected="a new folder",
                got="a folder",
                do="Choose another name, or pass --force to replace it once the new one is complete",
            )
    parent = real.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(
            f"--out '{shown(out)}'", expected="a folder that can be written", got=f"'{parent}' is not one"
        )


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def failed(path: Path, error: OSError) -> ResourceError:
    """Return the error that tells why a file of an output could not be written."""
    way = {
        errno.ENOSPC: "Free space, or choose another disk",
        errno.EDQUOT: "Free space, or ask for a larger quota",
        errno.EFBIG: "Raise the file-size limit, or choose a smaller --shard-size",
        errno.EACCES: "Choose a folder that you may write",
        errno.EROFS: "Choose a disk that is not read-only",
        errno.EMFILE: "Choose a larger --shard-size, or raise the limit of open files (ulimit -n)",
    }.get(error.errno or 0, "Check the disk")
    return ResourceError(f"cannot write '{shown(path)}': {error.strerror}; nothing was published", do=way)
