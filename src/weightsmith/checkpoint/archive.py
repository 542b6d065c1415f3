"""Where the members of an uncompressed zip archive lie. Nothing is extracted."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from weightsmith.checkpoint.header import read_exactly
from weightsmith.errors import CheckpointError, shown

MEMBERS = 1_000_000
DIRECTORY_BYTES = 128_000_000

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member: `nbytes` bytes at `offset` of the archive; `crc` is what the directory states."""

    offset: int
    nbytes: int
    crc: int


def read_members(handle: int, size: int, path: Path) -> dict[str, Member]:
    """Return the members of a zip archive by name, in the order of its directory.

    Args:
        handle: Descriptor of the open archive.
        size: Its length in bytes.
        path: Named in messages.

    Raises:
        CheckpointError: A compressed, encrypted or repeated member, a name that leads elsewhere, members that
            overlap or reach beyond the file, or more of anything than the caps allow.

    Cost: one read for the directory and one for each member.
    """
    count, start, length = _directory(handle, size, path)
    raw = read_exactly(handle, length, start, path)
    found: list[tuple[int, int, str, int]] = []
    names: set[str] = set()
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > length:
            _refuse(path, "its directory ends early")
        fields = _CENTRAL.unpack_from(raw, at)
        flags, method, crc, packed, nbytes = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_end = at + _CENTRAL.size + fields[10]
        name = raw[at + _CENTRAL.size : name_end].decode("utf-8", "replace")
        extra = raw[name_end : name_end + fields[11]]
        at = name_end + fields[11] + fields[12]
        if fields[0] != b"PK\x01\x02" or at > length:
            _refuse(path, "its directory is damaged")
        packed, nbytes, place = _wide(extra, packed, nbytes, fields[16])
        _check_member(path, name, flags, method, packed, nbytes)
        if name in names:
            _refuse(path, f"member '{shown(name)}' occurs twice")
        names.add(name)
        found.append((place, nbytes, name, crc))
    if at != length:
        _refuse(path, "its directory holds more than its members")
    return _locate(handle, path, found, start)


def _directory(handle: int, size: int, path: Path) -> tuple[int, int, int]:
    """Return the number of members and the offset and length, in bytes, of the directory."""
    if size < _END.size:
        _refuse(path, f"it is cut off: {_END.size - size} bytes missing")
    at = size - _END.size
    end = _END.unpack(read_exactly(handle, _END.size, at, path))
    if end[0] != b"PK\x05\x06" or end[7]:
        _refuse(path, "it does not end with the directory of a zip archive: it is cut off, or has trailing bytes")
    count, length, start = end[4], end[5], end[6]
    if at >= _LOCATOR.size:
        locator = _LOCATOR.unpack(read_exactly(handle, _LOCATOR.size, at - _LOCATOR.size, path))
        if locator[0] == b"PK\x06\x07":
            at = locator[2]
            if at + _END64.size > size:
                _refuse(path, "its directory lies beyond its end")
            wide = _END64.unpack(read_exactly(handle, _END64.size, at, path))
            if wide[0] != b"PK\x06\x06":
                _refuse(path, "its directory is damaged")
            count, length, start = wide[7], wide[8], wide[9]
    if start + length != at:
        _refuse(path, "its directory does not lie where it says")
    if count > MEMBERS or length > DIRECTORY_BYTES:
        _refuse(path, f"its directory lists {count} members in {length} bytes", f"at most {MEMBERS} members")
    return count, start, length


def _wide(extra: bytes, packed: int, nbytes: int, place: int) -> tuple[int, int, int]:
    """Replace the 32-bit fields that are full by the 64-bit ones of the extra field."""
    values = [nbytes, packed, place]
    if 0xFFFFFFFF in values:
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                wide = [int.from_bytes(extra[i : i + 8], "little") for i in range(at + 4, at + 4 + length, 8)]
                values = [wide.pop(0) if v == 0xFFFFFFFF and wide else v for v in values]
            at += 4 + length
    return values[1], values[0], values[2]


def _check_member(path: Path, name: str, flags: int, method: int, packed: int, nbytes: int) -> None:
    if flags & _ENCRYPTED:
        _refuse(path, f"member '{shown(name)}' is encrypted")
    if method != 0 or packed != nbytes:
        _refuse(path, f"member '{shown(name)}' is compressed", "members stored as they are")
    parts = name.split("/")
    if ".." in parts or not parts[0] or "\\" in name or "\0" in name or ":" in parts[0]:
        _refuse(path, f"member '{shown(name)}' has a name that leads elsewhere")


def _locate(handle: int, path: Path, found: list[tuple[int, int, str, int]], end: int) -> dict[str, Member]:
    """Read the header before each member; the directory begins at `end`."""
    members = {name: Member(0, 0, 0) for _, _, name, _ in found}
    before = 0
    for place, nbytes, name, crc in sorted(found):
        if not before <= place <= end - _LOCAL.size:
            _refuse(path, f"member '{shown(name)}' overlaps another or lies beyond the end")
        head = read_exactly(handle, _LOCAL.size, place, path)
        fields = _LOCAL.unpack(head)
        if fields[0] != b"PK\x03\x04" or fields[2] & _ENCRYPTED or fields[3] != 0:
            _refuse(path, f"member '{shown(name)}' differs between directory and archive")
        before = place + _LOCAL.size + fields[9] + fields[10]
        members[name] = Member(before, nbytes, crc)
        before += nbytes
        if before > end:
            _refuse(path, f"member '{shown(name)}' is cut off: {before - end} bytes missing")
    return members


def _refuse(path: Path, problem: str, expected: str = "") -> NoReturn:
    raise CheckpointError(
        f"file '{shown(path)}': {problem}",
        expected=expected or "a zip archive as torch.save writes it",
        do="Fetch the file again, or save the model with safetensors",
    )
