"""Which files of a folder hold the weights, and whether they say the same as the index beside them."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.header import read_exactly, read_header, regular_file, sniff, strict_json
from weightsmith.checkpoint.torchfile import TORCH_SUFFIXES, is_torch_file, read_torch_file
from weightsmith.errors import CheckpointError, ResourceError, raise_all, shown

INDEX_BYTES = 100_000_000
CONFIG_BYTES = 10_000_000
CONFIG_DEPTH = 64
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_CANONICAL = {
    "safetensors": ("model.safetensors", "model.safetensors.index.json"),
    "PyTorch": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
}
_SHARD = re.compile(r"(?:model-.*\.safetensors|pytorch_model-.*\.bin)")
_ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass
class _Weights:
    """What the weight files hold, gathered file by file."""

    tensors: dict[str, Entry] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def open_folder(folder: Path, reference: str, *, follow_symlinks: bool = False) -> Checkpoint:
    """Return the checkpoint that a folder in the layout of Hugging Face holds.

    The weights are model.safetensors, or the shards of model.safetensors.index.json, or pytorch_model.bin, or
    the shards of its index, or the only other .safetensors file. Two of these at once are refused: name the
    file or the index itself to choose.

    Raises:
        CheckpointError: No weights, more than one kind, or files that contradict each other.
        ResourceError: The folder or a file may not be read.
    """
    folder = Path(os.path.abspath(folder))
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ResourceError(
            f"folder '{shown(folder)}' cannot be listed: {error.strerror}", do="Check its permissions"
        ) from error
    chosen = _choose(folder, names)
    return _assemble(folder / chosen, folder, reference, follow_symlinks)


def open_file(path: Path, reference: str, *, follow_symlinks: bool = False) -> Checkpoint:
    """Return the checkpoint of one weight file, or of the shards that one index file lists.

    The file's folder supplies config and tokenizer files if it has a config.json; else `folder` is None.

    Raises:
        CheckpointError: The file is damaged, hostile or of an unknown kind.
    """
    path = Path(os.path.abspath(path))
    folder = path.parent if os.path.lexists(path.parent / "config.json") else None
    return _assemble(path, folder, reference, follow_symlinks)


def read_weights(path: Path) -> tuple[dict[str, Entry], dict[str, str], dict[str, str]]:
    """Return tensors, metadata and aliases of one weight file; its content decides how it is read.

    Raises:
        CheckpointError: It is neither .safetensors nor a PyTorch file of tensors, or its name says otherwise.
    """
    with regular_file(path) as (handle, size):
        head = read_exactly(handle, min(size, 64), 0, path)
    if path.name.lower().endswith(TORCH_SUFFIXES) or is_torch_file(head):
        tensors, aliases = read_torch_file(path)
        return tensors, {}, aliases
    tensors, metadata = read_header(path)
    return tensors, metadata, {}


def read_json(path: Path, limit_bytes: int) -> Any:
    """Return the value of a strict JSON file of at most `limit_bytes`; NaN and Infinity pass.

    Raises:
        CheckpointError: Too large, not a regular file, or not strict JSON.
    """
    with regular_file(path) as (handle, size):
        if size > limit_bytes:
            raise CheckpointError(
                f"file '{shown(path)}' is too large",
                expected=f"at most {limit_bytes} bytes",
                got=f"{size}",
                do="Check that it is what its name says",
            )
        raw = read_exactly(handle, size, 0, path)
    kind = sniff(raw[:64])
    if kind:
        raise CheckpointError(f"file '{shown(path)}' is not JSON", expected="JSON", got=kind, do="Fetch the file again")
    return strict_json(raw, f"file '{shown(path)}'", nonfinite=True)


def read_config(path: Path) -> dict[str, Any]:
    """Return a JSON file that must hold one mapping, of bounded size and depth.

    Raises:
        CheckpointError: Too large, too deep, not a mapping, or not strict JSON.
    """
    value = read_json(path, CONFIG_BYTES)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"file '{shown(path)}' is not a mapping",
            expected="a JSON object",
            got=type(value).__name__,
            do="Restore the file of the original model",
        )
    level: list[Any] = [value]
    for _ in range(CONFIG_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise CheckpointError(
            f"file '{shown(path)}' nests too deeply",
            expected=f"at most {CONFIG_DEPTH} levels",
            do="Restore the file of the original model",
        )
    return value


def check_member(path: Path, root: Path, *, follow_symlinks: bool) -> str | None:
    """Return why a file must not be read as part of the folder `root`, None where it may; nothing is opened.

    A link may lead anywhere inside the folder, and from a snapshot of the Hub cache to its blobs.
    """
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            real = Path(os.path.realpath(path, strict=True))
            mode = os.lstat(real).st_mode
            if not follow_symlinks and not _is_allowed_target(real, Path(os.path.realpath(root))):
                return f"'{shown(path)}' is a link to '{shown(real)}', outside its folder (--follow-symlinks allows it)"
    except FileNotFoundError:
        return f"'{shown(path)}' is " + ("a dangling link" if os.path.islink(path) else "missing")
    except (OSError, ValueError) as error:
        return f"'{shown(path)}' cannot be reached: {shown(getattr(error, 'strerror', None) or error)}"
    if not stat.S_ISREG(mode):
        return f"'{shown(path)}' is not a regular file"
    return None


def _is_allowed_target(real: Path, root: Path) -> bool:
    if real.is_relative_to(root):
        return True
    parts = root.parts
    places = [at for at, part in enumerate(parts[:-1]) if part == "snapshots"]
    return bool(places) and real.parent == Path(*parts[: places[-1]], "blobs")


def _choose(folder: Path, names: list[str]) -> str:
    """Return the name of the weight file or index to read; `names` is the folder's listing."""
    present = set(names)
    found = [name for kind in _CANONICAL.values() for name in kind if name in present]
    where = f"folder '{shown(folder)}'"
    if len(found) > 1:
        raise CheckpointError(
            f"{where} is ambiguous",
            expected="one file of weights or one index",
            got=" and ".join(f"'{name}'" for name in found),
            do=f"Name the one to read, such as '{shown(folder / found[0])}'",
        )
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if found:
        strays = [] if found[0].endswith(INDEX_SUFFIXES) else shards
        strays += [s for s in shards if s.endswith(".bin") != (".bin" in found[0]) and s not in strays]
        if strays:
            raise CheckpointError(
                f"{where} is ambiguous",
                expected=f"'{found[0]}' alone",
                got="also the shards " + ", ".join(f"'{shown(s)}'" for s in strays[:10]),
                do=f"Name the one to read, such as '{shown(folder / found[0])}', or move the others away",
            )
        return found[0]
    if shards:
        raise CheckpointError(
            f"{where} holds shards without their index",
            expected="'model.safetensors.index.json' or 'pytorch_model.bin.index.json'",
            got=", ".join(f"'{shown(s)}'" for s in shards[:10]),
            do="Fetch the index",
        )
    lone = [n for n in names if n.endswith(".safetensors") and n not in _ADAPTER_NAMES]
    if len(lone) == 1:
        return lone[0]
    if not lone and any(n in present for n in _ADAPTER_NAMES):
        raise CheckpointError(
            f"{where} holds an adapter, not a model",
            expected="a file of weights",
            do=f"Write BASE+{shown(folder)} to apply it to its base",
        )
    others = lone or [n for n in names if n.endswith((*TORCH_SUFFIXES, *INDEX_SUFFIXES))]
    raise CheckpointError(
        f"{where} holds " + ("several files of weights" if others else "no weights"),
        expected="model.safetensors, pytorch_model.bin, an index of one, or one other .safetensors file",
        got=", ".join(f"'{shown(n)}'" for n in others[:10]) or f"{len(names)} other files",
        do="Name the file to read" if others else "Name a folder that holds a model",
    )


def _assemble(path: Path, folder: Path | None, reference: str, follow_symlinks: bool) -> Checkpoint:
    root = folder or path.parent
    fault = check_member(path, root, follow_symlinks=follow_symlinks)
    if fault:
        raise CheckpointError(fault, expected="a regular file of weights", do="Name another file")
    notes: list[str] = []
    if path.name.endswith(INDEX_SUFFIXES):
        files, weights = _read_shards(path, follow_symlinks, notes)
    else:
        files, weights = (path,), _Weights(*read_weights(path))
    config = _config(root, follow_symlinks, notes) if folder else {}
    return Checkpoint(
        reference,
        folder,
        weights.tensors,
        files,
        config,
        weights.metadata,
        weights.aliases,
        None,
        tuple(notes),
    )


def _config(folder: Path, follow_symlinks: bool, notes: list[str]) -> dict[str, Any]:
    path = folder / "config.json"
    if not os.path.lexists(path):
        return {}
    fault = check_member(path, folder, follow_symlinks=follow_symlinks)
    if fault:
        raise CheckpointError(fault, expected="a regular file", do="Restore the file of the original model")
    config = read_config(path)
    if "auto_map" in config:
        notes.append(f"{shown(path)} names custom code (auto_map), which is never run here")
    return config


def _read_shards(index: Path, follow_symlinks: bool, notes: list[str]) -> tuple[tuple[Path, ...], _Weights]:
    """Read the shards of an index and refuse, all at once, whatever the two do not agree on."""
    what = f"index '{shown(index)}'"
    table = read_json(index, INDEX_BYTES)
    listed = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(
            f"{what} has no weight_map",
            expected="a mapping of tensor names to file names",
            do="Fetch it again",
        )
    faults: list[str] = []
    names = _shard_names(index, listed, faults)
    if faults:
        raise_all(faults, CheckpointError, what, "Fetch the model again, or repair the index")
    weights = _Weights()
    unread = set()
    for name in names:
        path = index.parent / name
        fault = check_member(path, index.parent, follow_symlinks=follow_symlinks)
        fault = f"shard {fault}" if fault else _add_shard(path, listed, weights, faults)
        if fault:
            faults.append(fault)
            unread.add(name)
    faults += _unlisted(index, set(names))
    known = weights.tensors.keys() | weights.aliases.keys()
    faults += [
        f"tensor '{shown(name)}' is in the index but not in its shard '{shown(shard)}'"
        for name, shard in listed.items()
        if name not in known and shard not in unread
    ]
    if faults:
        raise_all(faults, CheckpointError, what, "Fetch the model again, or repair the index")
    _check_total(index, table.get("metadata"), weights.tensors, notes)
    return tuple(index.parent / name for name in names), weights


def _shard_names(index: Path, listed: dict[str, Any], faults: list[str]) -> list[str]:
    """Return the shards of a weight_map, sorted; only plain names of files beside the index pass."""
    suffix = ".safetensors" if index.name.endswith(INDEX_SUFFIXES[0]) else ".bin"
    first: dict[Any, str] = {}
    for name, shard in listed.items():
        if type(shard) is not str:
            faults.append(f"tensor '{shown(name)}' is mapped to {type(shard).__name__}, not to a file name")
        elif shard not in first:
            first[shard] = name
    for shard, name in first.items():
        if not _is_plain(shard):
            faults.append(f"tensor '{shown(name)}' is mapped to '{shown(shard)}', not to a file beside the index")
        elif not shard.endswith(suffix):
            faults.append(f"tensor '{shown(name)}' is mapped to '{shown(shard)}', which does not end in {suffix}")
    return sorted(first)


def _is_plain(name: str) -> bool:
    """Tell whether a name is one component of a path, on every system."""
    return (
        0 < len(name) <= 255
        and name.strip(" .") == name.rstrip()
        and name.isprintable()
        and not any(c in name for c in '/\\:*?"<>|')
    )


def _unlisted(index: Path, names: set[str]) -> list[str]:
    """Return a fault for every shard beside the index that the index does not list."""
    suffix = ".safetensors" if index.name.endswith(INDEX_SUFFIXES[0]) else ".bin"
    stem = index.name[: -len(suffix + ".index.json")]
    return [
        f"shard '{shown(name)}' is in the folder but not in the index"
        for name in sorted(os.listdir(index.parent))
        if name.startswith(f"{stem}-") and name.endswith(suffix) and name not in names
    ]


def _add_shard(path: Path, listed: dict[str, Any], weights: _Weights, faults: list[str]) -> str | None:
    """Add what a shard holds, and the faults of its tensors; return why it cannot be read, if so."""
    try:
        tensors, metadata, aliases = read_weights(path)
    except CheckpointError as error:
        return str(error)
    for name in (*tensors, *aliases):
        other = weights.tensors.get(name) or weights.tensors.get(weights.aliases.get(name, ""))
        if other:
            both = f"'{shown(other.file.name)}' and '{shown(path.name)}'"
            faults.append(f"tensor '{shown(name)}' is in two shards: {both}")
        elif listed.get(name) != path.name:
            says = f"says '{shown(listed[name])}'" if name in listed else "does not list it"
            faults.append(f"tensor '{shown(name)}' is in shard '{shown(path.name)}', but the index {says}")
    weights.tensors.update(tensors)
    weights.metadata.update(metadata)
    weights.aliases.update(aliases)
    return None


def _check_total(index: Path, metadata: Any, tensors: dict[str, Entry], notes: list[str]) -> None:
    actual = sum(entry.nbytes for entry in tensors.values())
    declared = metadata.get("total_size") if isinstance(metadata, dict) else None
    if declared is None:
        notes.append(f"{shown(index)} states no total_size; its tensors take {actual} bytes")
    elif declared != actual:
        notes.append(
            f"{shown(index)} states total_size {shown(declared)}, but its tensors take {actual} bytes; "
            "the tensors count"
        )
