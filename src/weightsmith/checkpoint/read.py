"""Opening whatever the user names, and reading bytes of it by position."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from weightsmith.checkpoint import adapter, hub, torchfile
from weightsmith.checkpoint.bundle import TASK_NAME, is_bundle, open_task
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.folder import open_file, open_folder
from weightsmith.checkpoint.header import open_regular, read_exactly, regular_file
from weightsmith.checkpoint.packed import Memo, rebuild
from weightsmith.checkpoint.rows import gather
from weightsmith.errors import ArgumentError, CheckpointError, ResourceError, nearest, raise_all, shown

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@\w[\w./-]*)?", re.ASCII)


def open_checkpoint(reference: str | Path, *, follow_symlinks: bool = False) -> Checkpoint:
    """Return the named tensors behind a reference; only headers are read, and no code is ever run.

    Args:
        reference: The first of these that fits: an existing file or folder; `BUNDLE#TASK`, a task of a bundle, or
            BUNDLE where it has one; `MODEL+ADAPTER`, where ADAPTER is a local folder; a hub id `org/name` or
            `org/name@revision`. The prefixes `file:` and `hub:` settle what is meant. An id whose `org` is a local
            folder counts as a mistyped path without `hub:`.
        follow_symlinks: Let links of a folder lead outside it.

    Raises:
        ArgumentError: Nothing has that name; the message brings the nearest names.
        CheckpointError: The files are damaged, hostile, ambiguous or of an unknown kind.
        ResourceError: A file may not be read, or the hub cannot be reached.
    """
    text = os.fspath(reference)
    if not text or "\0" in text:
        raise ArgumentError(f"model '{shown(text)}' is not a name", expected="a path or a hub id")
    prefix, rest = next(((p, text[len(p) :]) for p in ("file:", "hub:") if text.startswith(p)), ("", text))
    path = Path(os.path.expanduser(rest))
    if prefix != "hub:" and rest and os.path.lexists(path):
        if is_bundle(path):
            return _open_task(path, None, text, follow_symlinks)
        opener = open_folder if os.path.isdir(path) else open_file
        return opener(path, text, follow_symlinks=follow_symlinks)
    bundle, mark, task = rest.rpartition("#")
    if (
        prefix != "hub:"
        and mark
        and bundle
        and TASK_NAME.fullmatch(task)
        and is_bundle(Path(os.path.expanduser(bundle)))
    ):
        return _open_task(Path(os.path.expanduser(bundle)), task, text, follow_symlinks)
    base, plus, folder = rest.rpartition("+")
    if plus:
        return _with_adapter(prefix + base, Path(os.path.expanduser(folder)), text, follow_symlinks)
    is_id = _HUB_ID.fullmatch(rest) is not None and len(rest.partition("@")[0]) <= 96  # as the hub has it
    if prefix == "hub:" or (not prefix and is_id and not os.path.isdir(path.parent)):
        if not is_id:
            raise ArgumentError(
                f"model '{shown(text)}' is not a hub id", expected="hub:org/name or hub:org/name@revision"
            )
        repo_id, _, revision = rest.partition("@")
        snapshot, commit = hub.fetch(repo_id, revision or None)
        return replace(open_folder(snapshot, text, follow_symlinks=follow_symlinks), revision=commit)
    hint = _near(path) + (f"; for the hub write hub:{shown(rest)}" if is_id and not prefix else "")
    raise ArgumentError(f"model '{shown(text)}' does not exist", expected="a file or folder", do=hint)


def open_stored(reference: str, *, follow_symlinks: bool = False) -> Checkpoint:
    """Return the checkpoint that lies in just this file or folder, or behind `hub:org/name@revision`: a bundle's base.

    Raises:
        ArgumentError: There is none.
        CheckpointError, ResourceError: As for `open_checkpoint`.
    """
    path = Path(os.path.expanduser(reference.removeprefix("file:")))
    if reference.startswith("hub:"):
        return open_checkpoint(reference, follow_symlinks=follow_symlinks)
    if not os.path.lexists(path):
        raise ArgumentError(f"model '{shown(reference)}' does not exist", expected="a file or folder", do=_near(path))
    return (open_folder if os.path.isdir(path) else open_file)(path, reference, follow_symlinks=follow_symlinks)


def _open_task(folder: Path, task: str | None, text: str, follow_symlinks: bool) -> Checkpoint:
    return open_task(folder, task, text, partial(open_stored, follow_symlinks=follow_symlinks), fingerprint)


def _with_adapter(base: str, folder: Path, text: str, follow_symlinks: bool) -> Checkpoint:
    if not os.path.isdir(folder):
        raise ArgumentError(
            f"adapter '{shown(folder)}' of model '{shown(text)}' does not exist",
            expected="a local folder after the last '+'",
            do=_near(folder),
        )
    model = open_checkpoint(base, follow_symlinks=follow_symlinks)
    return replace(adapter.apply_adapter(model, folder, follow_symlinks), reference=text)


def _near(path: Path) -> str:
    """Return a hint with the names in the folder nearest to a path that does not exist."""
    parent = Path(os.path.abspath(path)).parent
    missing = path.name
    while not os.path.isdir(parent) and parent != parent.parent:
        missing, parent = parent.name, parent.parent
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        names = []
    if not names:
        return f"Check the path; '{shown(parent)}' is empty"
    return f"In '{shown(parent)}', {nearest(missing, names)}"


class Files:
    """A pool of read-only descriptors for one thread; at most `limit` are open, the oldest closed first.

    Usable as a context manager. Not to be shared among threads.
    """

    def __init__(self, limit: int = 64) -> None:
        if limit < 1:
            raise ArgumentError("a pool of files needs room for one", expected="a limit of at least 1", got=f"{limit}")
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._path: Path | None = None
        self._handle = -1
        self._memo = Memo()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread_into(self, path: Path, offset: int, target: memoryview) -> None:
        """Fill `target`, a contiguous buffer of bytes, from `offset` of a file.

        Raises:
            CheckpointError: The file ends before the target is full, or is gone.
            ResourceError: The disk fails.
        """
        handle = self._handle if path is self._path else self._take(path)
        try:
            done = os.preadv(handle, (target,), offset)
        except OSError as error:
            raise self._failed(path, offset, error) from error
        if done != target.nbytes:
            self._finish(handle, path, offset, target, done)

    def entry_into(self, entry: Entry, start: int, target: memoryview) -> None:
        """Fill `target` from byte `start` of a tensor, formed where it is not stored as it is; see `pread_into`."""
        if entry.packed is not None:
            rebuild(entry, entry.packed, start, target, self.entry_into, self._memo)
        elif entry.rows is not None:
            gather(entry, entry.rows, start, target, self.entry_into)
        else:
            self.pread_into(entry.file, entry.offset + start, target)

    def close(self) -> None:
        """Close every descriptor; the pool may be used again."""
        while self._open:
            os.close(self._open.popitem()[1])
        self._path, self._handle = None, -1

    def _take(self, path: Path) -> int:
        handle = self._open.get(path)
        if handle is None:
            while len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            try:
                handle = open_regular(path)
            except ResourceError as error:
                if getattr(error.__cause__, "errno", None) not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self.close()
                handle = open_regular(path)
            self._open[path] = handle
        else:
            self._open.move_to_end(path)
        self._path, self._handle = path, handle
        return handle

    def _finish(self, handle: int, path: Path, offset: int, target: memoryview, done: int) -> None:
        """Go on after a short read, which the kernel makes at 2 GiB, on signals and at the end of a file."""
        whole = target.cast("B")
        while done < whole.nbytes:
            try:
                count = os.preadv(handle, (whole[done:],), offset + done)
            except OSError as error:
                raise self._failed(path, offset + done, error) from error
            if count == 0:
                raise CheckpointError(
                    f"file '{shown(path)}' ends at byte {offset + done}: {whole.nbytes - done} bytes missing",
                    expected=f"{whole.nbytes} bytes at byte {offset}",
                    got=f"{done}",
                    do="It changed after it was opened: run again once it is at rest",
                )
            done += count

    @staticmethod
    def _failed(path: Path, offset: int, error: OSError) -> ResourceError:
        return ResourceError(
            f"file '{shown(path)}' cannot be read at byte {offset}: {error.strerror}", do="Check the disk"
        )


def read_array(entry: Entry) -> bytes:
    """Return the bytes of one tensor, without any `low_rank` update; little-endian, row-major.

    Raises:
        CheckpointError: The file is gone or shorter than before.
    """
    raw = bytearray(entry.nbytes)
    with Files() as files:
        files.entry_into(entry, 0, memoryview(raw))
    return bytes(raw)


def fingerprint(checkpoint: Checkpoint) -> dict[str, dict[str, int | str]]:
    """Return path to size (bytes), mtime_ns and header_sha256 of every weight file; ready for JSON.

    The header is the length and the JSON of a .safetensors file, or the pickle of a PyTorch file.

    Raises:
        CheckpointError: A file is gone or no longer what it was.
    """
    table: dict[str, dict[str, int | str]] = {}
    for path in checkpoint.files:
        with regular_file(path) as (handle, size):
            head = read_exactly(handle, min(size, 64), 0, path)
            mtime_ns = os.fstat(handle).st_mtime_ns
            if torchfile.is_torch_file(head):
                raw = torchfile.read_pickle(path)
            else:
                raw = read_exactly(handle, min(size, 8 + int.from_bytes(head[:8], "little")), 0, path)
        digest = hashlib.sha256(raw).hexdigest()
        table[str(path)] = {"size": size, "mtime_ns": mtime_ns, "header_sha256": digest}
    return table


def check_unchanged(before: Mapping[str, Mapping[str, int | str]]) -> None:
    """Compare files on disk with their `fingerprint`; a look at size and time, nothing is read.

    Raises:
        CheckpointError: Some file changed or is gone; the message lists them.
    """
    faults = []
    for name, kept in before.items():
        try:
            now = os.stat(name)
        except OSError as error:
            faults.append(f"file '{shown(name)}' cannot be found again: {error.strerror}")
            continue
        if now.st_size != kept["size"]:
            faults.append(f"file '{shown(name)}' had {kept['size']} bytes and now has {now.st_size}")
        elif now.st_mtime_ns != kept["mtime_ns"]:
            faults.append(f"file '{shown(name)}' was written to")
    if faults:
        raise_all(faults, CheckpointError, "inputs changed while they were read", "Run again on files at rest")
