"""Old PyTorch files (.bin, .pt, .pth, .ckpt), read without PyTorch and without running anything in them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from weightsmith.checkpoint.archive import Member, read_members
from weightsmith.checkpoint.entry import DTYPE_BITS, Entry
from weightsmith.checkpoint.header import DIMENSIONS, read_exactly, regular_file, sniff
from weightsmith.checkpoint.unpickle import ForbiddenGlobal, Global, PickleFault, load, scan_globals
from weightsmith.errors import CheckpointError, shown

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_BYTES = 64_000_000
SCAN_BYTES = 4_000_000
WRAPPERS = ("state_dict", "model")

_RESAVE = "Load it where you trust it and save it with safetensors"
_STORAGES = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_REBUILD_V2 = "torch._utils._rebuild_tensor_v2"
_REBUILD_V3 = "torch._utils._rebuild_tensor_v3"
_PARAMETER = "torch._utils._rebuild_parameter"
_STORAGE_OF = {f"{module}.{n}": d for n, d in _STORAGES.items() for module in ("torch", "torch.storage")}
_DTYPE_OF = {f"torch.{n}": d for n, d in _DTYPES.items()}
ALLOWED = frozenset(
    (*_STORAGE_OF, *_DTYPE_OF, _REBUILD_V2, _REBUILD_V3, _PARAMETER, "collections.OrderedDict", "torch.Size")
)


@dataclass(frozen=True, slots=True)
class _Storage:
    """A persistent id: the member `key`, of `nbytes` bytes, holding elements of `dtype`."""

    key: str
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class _View:
    """A contiguous tensor of `shape` that begins `offset` bytes into a storage."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    nbytes: int


def is_torch_file(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a zip archive or a pickle."""
    return head.startswith(b"PK\x03\x04") or sniff(head) == "a Python pickle"


def read_torch_file(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the tensors of a PyTorch file, and the names that share another's storage.

    The file must be a zip archive of stored members, as torch.save writes since version 1.6, and its pickle a
    mapping of names to tensors, alone or under the key state_dict or model. The pickle is read by an
    interpreter that makes only records of where the bytes lie. Checksums of the tensors are not checked.

    Returns:
        Name to `Entry`, in order of offset; and alias to the name, first in the file, that is kept for it.

    Raises:
        CheckpointError: Anything else; a global outside the allow-list is named.

    Cost: two reads and one for each storage; time in proportion to the pickle.
    """
    path = Path(path)
    with regular_file(path) as (handle, size):
        _check_kind(path, read_exactly(handle, min(size, SCAN_BYTES), 0, path))
        members = read_members(handle, size, path)
        raw, root = _pickle_member(handle, path, members)
        order = members.get(f"{root}byteorder")
        if order and read_exactly(handle, min(order.nbytes, 16), order.offset, path) != b"little":
            _refuse(path, "its numbers are not little-endian", do="Save it again on a little-endian machine")
    try:
        value = load(raw, ALLOWED, _call, _persistent)
    except ForbiddenGlobal:
        _refuse_globals(path, scan_globals(raw))
    except ValueError as error:
        _refuse(path, shown(error))
    return _entries(path, _state_dict(path, value), members, root)


def read_pickle(path: Path) -> bytes:
    """Return the pickle of a PyTorch file, unread; raises CheckpointError as `read_torch_file` does."""
    with regular_file(path) as (handle, size):
        _check_kind(path, read_exactly(handle, min(size, SCAN_BYTES), 0, path))
        return _pickle_member(handle, path, read_members(handle, size, path))[0]


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse what is no zip archive, or a zip archive or pickle under a name of another kind."""
    kind = sniff(head) or "a file of an unknown kind"
    if head.startswith(b"PK\x03\x04"):
        if not path.name.lower().endswith(TORCH_SUFFIXES) and path.suffix:
            _refuse(path, "its content does not fit its name", expected=f"a {path.suffix} file", got=kind)
        return
    found = [name for name in scan_globals(head) if name not in ALLOWED]
    if found:
        _refuse_globals(path, found)
    _refuse(path, "it is not a zip archive of tensors", expected="a file that torch.save wrote", got=kind)


def _refuse_globals(path: Path, names: list[str]) -> NoReturn:
    bad = [shown(name) for name in names if name not in ALLOWED]
    listed = ", ".join(f"'{name}'" for name in bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
    _refuse(
        path,
        "its pickle would run code that weights never need, and nothing of it was run",
        expected="only tensors",
        got=f"the forbidden global {listed}",
        do="Do not load it unless you trust whoever made it; ask for the weights as safetensors",
    )


def _pickle_member(handle: int, path: Path, members: dict[str, Member]) -> tuple[bytes, str]:
    """Return the bytes of data.pkl, checked, and the folder inside the archive that it lies in."""
    found = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        _refuse(path, f"it holds {len(found)} members named data.pkl", expected="one")
    root = found[0][: -len("data.pkl")]
    if f"{root}constants.pkl" in members or f"{root}code/" in members:
        _refuse(path, "it is a TorchScript program, not weights")
    member = members[found[0]]
    if member.nbytes > PICKLE_BYTES:
        _refuse(path, f"its pickle is {member.nbytes} bytes long", expected=f"at most {PICKLE_BYTES} bytes")
    raw = read_exactly(handle, member.nbytes, member.offset, path)
    if member.crc and zlib.crc32(raw) != member.crc:  # torch.save writes 0 where it was told to leave it out
        _refuse(path, "its pickle does not have the checksum that the archive states")
    return raw, root


def _persistent(value: Any) -> _Storage:
    if type(value) is not tuple or len(value) != 5 or value[0] != "storage":
        raise PickleFault("the pickle refers to something other than a storage")
    kind, key, count = value[1], value[2], value[4]
    dtype = _STORAGE_OF.get(kind.name) if type(kind) is Global else None
    if dtype is None or type(key) is not str or not _is_count(count):
        raise PickleFault("the pickle describes a storage in an unknown way")
    return _Storage(key, dtype, count * DTYPE_BITS[dtype] // 8)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return a record of the tensor, mapping or shape that a call in a pickle stands for."""
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name == "torch.Size" and len(arguments) == 1 and type(arguments[0]) in (tuple, list):
        return tuple(arguments[0])
    if name == _PARAMETER and len(arguments) == 3 and type(arguments[0]) is _View:
        return arguments[0]
    if name == _REBUILD_V2 and 6 <= len(arguments) <= 7 and type(arguments[0]) is _Storage:
        return _view(arguments[0], arguments[0].dtype, *arguments[1:4])
    if name == _REBUILD_V3 and 7 <= len(arguments) <= 8 and type(arguments[0]) is _Storage:
        dtype = _DTYPE_OF.get(arguments[6].name) if type(arguments[6]) is Global else None
        if dtype:
            return _view(arguments[0], dtype, *arguments[1:4])
    raise PickleFault(f"the pickle calls '{name}' with arguments that torch.save never writes")


def _view(storage: _Storage, dtype: str, start: Any, shape: Any, strides: Any) -> _View:
    """Check a view against its storage, all in elements; only contiguous ones can be read by position."""
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise PickleFault("a tensor's shape and strides do not fit each other")
    if len(shape) > DIMENSIONS or not all(map(_is_count, (start, *shape, *strides))):
        # The values are not shown: they may nest without end.
        raise PickleFault(
            f"a tensor's offset, shape and strides are not integers from 0, or it has more than {DIMENSIONS} dimensions"
        )
    size = 1
    expected = []
    for length in reversed(shape):
        expected.append(size)
        size *= length
    if size and any(n > 1 and s != e for n, s, e in zip(shape, strides, reversed(expected), strict=True)):
        raise PickleFault(f"a tensor of shape {shape} has strides {strides}: it is not contiguous in its storage")
    width = DTYPE_BITS[dtype] // 8
    if size and (start + size) * width > storage.nbytes:
        raise PickleFault(
            f"a tensor of {size} elements at element {start} reaches beyond its storage of {storage.nbytes} bytes"
        )
    return _View(storage, dtype, start * width if size else 0, shape, size * width)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _state_dict(path: Path, value: Any) -> dict[str, _View]:
    """Return the one mapping of names to tensors in what the pickle holds."""
    if type(value) is dict and not any(type(v) is _View for v in value.values()):
        holders = [key for key, v in value.items() if _holds_tensor(v)]
        wrapped = [key for key in holders if key in WRAPPERS]
        if len(holders) == 1 and wrapped:
            value = value[wrapped[0]]
        elif holders:
            _refuse(
                path,
                "it holds more than one state dict, or one under an unknown key",
                expected="tensors, alone or under 'state_dict' or 'model'",
                got="tensors under " + ", ".join(f"'{shown(key)}'" for key in holders[:10]),
            )
    if type(value) is not dict:
        _refuse(path, "it does not hold a mapping of names to tensors", got=type(value).__name__)
    for key, leaf in value.items():
        if type(key) is not str or type(leaf) is not _View:
            _refuse(
                path,
                f"its key '{shown(key)}' does not hold a tensor",
                expected="a mapping of names to tensors",
                got="a mapping" if type(leaf) is dict else type(leaf).__name__,
            )
    return value


def _holds_tensor(value: Any) -> bool:
    """Tell whether a tensor lies anywhere inside; each part is visited once, so shared parts cost nothing."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is _View:
            return True
        if type(item) in (dict, list, tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if type(item) is dict else item)
    return False


def _entries(
    path: Path, views: dict[str, _View], members: dict[str, Member], root: str
) -> tuple[dict[str, Entry], dict[str, str]]:
    entries: list[Entry] = []
    aliases: dict[str, str] = {}
    first: dict[tuple[str, int, str, tuple[int, ...]], str] = {}
    for name, view in views.items():
        key = view.storage.key
        member = members.get(f"{root}data/{key}")
        if member is None or member.nbytes != view.storage.nbytes:
            _refuse(
                path,
                f"tensor '{shown(name)}' lies in storage '{shown(key)}', which is "
                + ("missing" if member is None else f"{member.nbytes} bytes long"),
                expected=f"a storage of {view.storage.nbytes} bytes",
            )
        if view.nbytes:
            kept = first.setdefault((key, view.offset, view.dtype, view.shape), name)
            if kept != name:
                aliases[name] = kept
                continue
        entries.append(Entry(name, view.dtype, view.shape, path, member.offset + view.offset, view.nbytes))
    entries.sort(key=lambda entry: entry.offset)
    return {entry.name: entry for entry in entries}, aliases


def _refuse(path: Path, problem: str, *, expected: str = "", got: str = "", do: str = _RESAVE) -> NoReturn:
    raise CheckpointError(f"file '{shown(path)}': {problem}", expected=expected, got=got, do=do)
