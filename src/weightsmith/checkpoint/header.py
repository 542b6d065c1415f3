"""The header of a .safetensors file, read by positioned reads and checked before anything is believed."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from weightsmith.checkpoint.entry import DTYPE_BITS, Entry
from weightsmith.errors import CheckpointError, ResourceError, nearest, shown

HEADER_BYTES = 100_000_000  # the cap that the format itself states
METADATA_BYTES = 10_000_000
DIMENSIONS = 64  # what numpy and torch can hold
ELEMENT_BITS = 2**63  # bits of one tensor, zero-length dimensions left out

_AGAIN = "Fetch the file again, or name another"
_FIELDS = {"dtype", "shape", "data_offsets"}
_MINUS_ZERO = re.compile(r"-0\s*[,\]}]")
_MAGIC = (
    (b"PK\x03\x04", "a zip archive (an old PyTorch file?)"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run git lfs pull"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
)


def read_header(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the tensors and the metadata that a .safetensors file declares; no tensor data is read.

    A file holds a length n (8 bytes, little-endian), n bytes of JSON, and then the buffer that the offsets
    of the JSON divide among the tensors without overlap, hole or rest.

    Args:
        path: A regular file.

    Returns:
        Name to `Entry`, in order of offset (in bytes from the start of the file); and `__metadata__`.

    Raises:
        CheckpointError: The file is not a sound .safetensors file; the message says where.
        ResourceError: The file may not be opened, or the disk fails.

    Cost: one open and two reads; memory in proportion to the header.
    """
    path = Path(path)
    with regular_file(path) as (handle, size):
        head = read_exactly(handle, min(size, 64), 0, path)
        length = _header_length(path, head, size)
        raw = read_exactly(handle, length, 8, path)
    if raw[:1] != b"{":
        _refuse(path, "the header does not begin with '{'", got=sniff(head) or shown(raw[:8]))
    # A tensor needs one object and two lists; many more would take memory far beyond the size of the header.
    if raw.count(b"[") + raw.count(b"{") - 3 * raw.count(b'"data_offsets"') > METADATA_BYTES:
        _refuse(path, "the header holds more lists and objects than tensors and metadata need")
    table = strict_json(raw, f"header of '{shown(path)}'", minus_zero=False)
    return _entries(path, table, 8 + length, size)


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading and give its descriptor and its size in bytes.

    Raises:
        CheckpointError: It is missing, or a directory, device, socket or FIFO (opening never waits).
        ResourceError: It may not be opened, or too many files are open.
    """
    handle = open_regular(path)
    try:
        yield handle, os.fstat(handle).st_size
    finally:
        os.close(handle)


def open_regular(path: Path) -> int:
    """Open a regular file read-only and return its descriptor; raises as `regular_file` does."""
    try:
        # Without O_NONBLOCK the open of a FIFO would wait for a writer that never comes.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG):
            raise CheckpointError(
                f"file '{shown(path)}' cannot be opened: {error.strerror}",
                expected="a regular file",
                do=_AGAIN,
            ) from None
        raise ResourceError(
            f"file '{shown(path)}' cannot be opened: {error.strerror}",
            do="Check its permissions and the disk",
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(
            f"'{shown(path)}' is not a regular file",
            expected="a regular file",
            got="a directory, device, socket or FIFO",
            do="Name a file of weights",
        )
    return handle


def read_exactly(handle: int, count: int, offset: int, path: Path) -> bytes:
    """Return `count` bytes at `offset` of an open file.

    Raises:
        CheckpointError: The file ends before; the message says how many bytes are missing.
        ResourceError: The disk fails.
    """
    parts: list[bytes] = []
    done = 0
    while done < count:
        try:
            part = os.pread(handle, count - done, offset + done)
        except OSError as error:
            raise ResourceError(
                f"file '{shown(path)}' cannot be read at byte {offset + done}: {error.strerror}",
                do="Check the disk",
            ) from error
        if not part:
            raise CheckpointError(
                f"file '{shown(path)}' ends at byte {offset + done}: {count - done} bytes missing",
                expected=f"{count} bytes at byte {offset}",
                got=f"{done}",
                do=_AGAIN,
            )
        parts.append(part)
        done += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sniff(head: bytes) -> str | None:
    """Return what the first bytes of a file show it to be, None where they show nothing.

    >>> sniff(b"GGUF\\x03")
    'a GGUF file'
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    is_header = head[4:9] == b"\0\0\0\0{"  # of safetensors, whose length may begin like a pickle
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5 and not is_header:
        return "a Python pickle"
    return None


def strict_json(raw: bytes, what: str, *, nonfinite: bool = False, minus_zero: bool = True) -> Any:
    """Return the value of a JSON text in which no object names a key twice.

    Args:
        raw: UTF-8 without byte-order mark.
        what: Names the text in messages.
        nonfinite: Let the literals NaN and Infinity pass, which some config files hold.
        minus_zero: Let the number -0 pass, which a safetensors header may not hold.

    Raises:
        CheckpointError: Any fault, deep nesting and numbers beyond 4300 digits included.
    """

    def literal(text: str) -> float:
        if not nonfinite:
            raise ValueError(f"it holds the literal {text}, which JSON does not have")
        return float(text.replace("Infinity", "inf"))

    def integer(text: str) -> int:
        if text == "-0":
            raise ValueError("it holds the number -0")
        return int(text)

    try:
        text = raw.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte-order mark")
        # A hook for integers halves the speed: it is set only where the pattern shows that it may be needed.
        check = integer if not minus_zero and _MINUS_ZERO.search(text) else None
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=literal, parse_int=check)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except RecursionError:
        reason = "it nests too deeply"
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 at byte {error.start}"
    except ValueError as error:  # json's own, the hooks', and int() on too many digits
        reason = shown(error)
    else:
        return value
    raise CheckpointError(f"{what} is not valid JSON: {reason}", expected="one strict JSON value", do=_AGAIN)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = Counter(key for key, _ in pairs)
        twice = next(name for name, count in names.items() if count > 1)
        raise ValueError(f"the name '{shown(twice)}' occurs twice in one object")
    return table


def _header_length(path: Path, head: bytes, size: int) -> int:
    if size < 8:
        problem = f"it is {size} bytes long: {8 - size} bytes missing"
        _refuse(path, problem, expected="a header length of 8 bytes", got=sniff(head) or "")
    length = int.from_bytes(head[:8], "little")
    kind = sniff(head)
    if length > HEADER_BYTES:
        _refuse(
            path,
            f"its header would be {length} bytes long",
            expected=f"at most {HEADER_BYTES} bytes",
            got=kind or f"the length field {length}",
        )
    if length < 2:
        _refuse(path, f"its header is {length} bytes long", expected="at least 2 bytes, '{}'", got=kind or "")
    if 8 + length > size:
        _refuse(
            path,
            f"its header is cut off: {8 + length - size} bytes missing",
            expected=f"a header of {length} bytes",
            got=kind or f"a file of {size} bytes",
        )
    return length


def _entries(path: Path, table: Any, start: int, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Check every declared tensor by itself and all together; `start` is where the buffer begins."""
    metadata = _metadata(path, table.pop("__metadata__")) if "__metadata__" in table else {}
    found = []
    for name, info in table.items():
        if type(info) is not dict or info.keys() != _FIELDS:
            _refuse(path, "is not described by dtype, shape and data_offsets alone", name=name)
        dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
        if type(offsets) is not list or len(offsets) != 2 or not all(type(o) is int for o in offsets):
            _refuse(path, "has data_offsets that are not two integers", name=name, got=shown(offsets)[:100])
        begin, end = offsets
        if not 0 <= begin <= end:
            _refuse(path, "has reversed or negative offsets", name=name, got=shown(offsets)[:100])
        nbytes = _tensor_bytes(path, name, dtype, shape)
        if nbytes != end - begin:
            _refuse(
                path,
                "has offsets that do not fit its shape",
                name=name,
                expected=f"{nbytes} bytes for {shown(dtype)} {shown(shape)}",
                got=f"{shown(end - begin)} bytes at byte {shown(begin)} of the buffer",
            )
        found.append((begin, end, name, dtype, tuple(shape)))
    found.sort(key=_range)
    _check_cover(path, found, size - start)
    entries = {
        name: Entry(name, dtype, shape, path, start + begin, end - begin) for begin, end, name, dtype, shape in found
    }
    return entries, metadata


def _range(item: tuple[int, int, str, str, tuple[int, ...]]) -> tuple[int, int]:
    return item[0], item[1]


def _tensor_bytes(path: Path, name: str, dtype: Any, shape: Any) -> int:
    bits = DTYPE_BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        hint = nearest(dtype, DTYPE_BITS) if type(dtype) is str and len(dtype) < 100 else ""
        _refuse(path, "has an unknown dtype", name=name, got=f"'{shown(dtype)}'", do=hint)
    if type(shape) is not list or len(shape) > DIMENSIONS:
        _refuse(path, "has a bad shape", name=name, expected=f"a list of at most {DIMENSIONS} integers")
    total = bits
    filled = True
    for length in shape:
        if type(length) is not int or length < 0:
            _refuse(path, "has a bad shape", name=name, expected="integers from 0", got=shown(length)[:100])
        if length:
            total *= length
        else:
            filled = False
    if total > ELEMENT_BITS:
        _refuse(path, "has a shape too large for any machine", name=name, got=shown(shape))
    if not filled:
        return 0
    if total % 8:
        _refuse(path, "does not fill whole bytes", name=name, got=f"{total} bits of {dtype}")
    return total // 8


def _check_cover(path: Path, found: list[tuple[int, int, str, str, tuple[int, ...]]], buffer: int) -> None:
    """Refuse overlaps, holes, a missing end and trailing bytes; `found` is sorted, `buffer` in bytes."""
    at = 0
    before = ""
    for begin, end, name, _, _ in found:
        if begin < at:
            _refuse(path, f"overlaps tensor '{shown(before)}' by {at - begin} bytes at byte {begin}", name=name)
        if begin > at:
            _refuse(path, f"leaves a hole of {shown(begin - at)} bytes before it, at byte {at}", name=name)
        at, before = end, name
    if at > buffer:
        short = next(name for begin, end, name, _, _ in found if end > buffer)
        _refuse(
            path,
            f"is cut off: {at - buffer} bytes missing",
            name=short,
            expected=f"a buffer of {at} bytes",
            got=f"{buffer}",
        )
    if at < buffer:
        _refuse(
            path,
            f"it holds {buffer - at} trailing bytes after the last tensor",
            expected=f"a buffer of {at} bytes",
            got=f"{buffer}",
        )


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if type(value) is not dict or not all(type(v) is str for v in value.values()):
        _refuse(path, "its __metadata__ is not a mapping of strings to strings")
    total = sum(len(k) + len(v) for k, v in value.items())
    if total > METADATA_BYTES:
        _refuse(
            path,
            f"its __metadata__ holds {total} characters",
            expected=f"at most {METADATA_BYTES} characters",
        )
    return dict(value)


def _refuse(
    path: Path, problem: str, *, name: str | None = None, expected: str = "", got: str = "", do: str = ""
) -> NoReturn:
    what = f"file '{shown(path)}': " + (problem if name is None else f"tensor '{shown(name)}' {problem}")
    raise CheckpointError(what, expected=expected, got=got, do=do or _AGAIN)
