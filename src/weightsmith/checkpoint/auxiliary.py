"""What lies beside the weights: config and tokenizer files carried over, and the model card of the result."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from weightsmith.checkpoint.config_text import config_with_dtype, config_with_layers
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.folder import check_member
from weightsmith.checkpoint.header import read_exactly, regular_file
from weightsmith.checkpoint.names import layer_count
from weightsmith.errors import ArgumentError, CheckpointError, ResourceError, shown
from weightsmith.strict_yaml import Faults, mapping, parse_tree, text_of

MAX_FILE_BYTES = 200_000_000
MAX_CONFIG_BYTES = 10_000_000
MAX_CARD_BYTES = 1_000_000
MAX_CARD_NODES = 50_000

# What config.json calls a dtype; others have no name there.
_CONFIG_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot",
    ".tflite", ".npz", ".npy", ".pkl", ".pickle", ".index.json",
)  # fmt: skip
_CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1")
_TRAINING = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_CHUNK = 1 << 20


def carry(
    checkpoint: Checkpoint,
    into: Path,
    *,
    dtype: str | None,
    code: bool,
    origins: Sequence[tuple[Checkpoint, int]] = (),
) -> list[dict[str, Any]]:
    """Copy the files beside a checkpoint's weights: those of its folder and of subfolders without weights.

    Weights, indexes, adapters, hidden files, the model card, records of training and files above
    MAX_FILE_BYTES stay behind, and so do links that lead outside. Everything is copied byte for byte, save
    that config.json gets the dtype of the new weights where it names another one, and their layers where those were stacked.

    Args:
        checkpoint: The opened checkpoint; nothing is carried where it has no folder.
        into: The folder of the result, which exists; a file already there is replaced.
        dtype: The one dtype of the new weights as safetensors names it; None where they have several.
        code: Copy custom code (`*.py` and other programs) as well.
        origins: Per layer of the new weights the model and the layer that it comes from; none where layers stay.

    Returns:
        One record per file, by name: file, action ("copied", "rewritten" or "skipped"), reason, and bytes
        written.

    Raises:
        ArgumentError: `into` is the checkpoint's own folder.
        CheckpointError: A file is not readable as what it must be, or changes while it is read.
        ResourceError: The disk fails or is full.
    """
    if checkpoint.folder is None:
        return []
    if os.path.realpath(checkpoint.folder) == os.path.realpath(into):
        raise ArgumentError(f"output {shown(into)} is the folder of an input", do="Name another output folder")
    weights = {os.path.realpath(file) for file in checkpoint.files}
    records = []
    for name, reason in list(_listing(checkpoint.folder, weights, code)):
        action, count = "skipped", 0
        if not reason:
            action, count, reason = _carry_file(checkpoint, name, into, dtype, origins)
        if name == "config.json" and "auto_map" in checkpoint.config and not code:
            reason = f"{reason}; " if reason else ""
            reason += "auto_map names custom code, which was not copied and is needed to load the model"
        records.append({"file": shown(name), "action": action, "reason": reason, "bytes": count})
    return records


def _listing(folder: Path, weights: Collection[str], code: bool) -> Iterator[tuple[str, str]]:
    """Give every file's name relative to the folder and why it stays behind, "" where it does not."""
    for entry in sorted(_scan(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__pycache__")):
            inner = sorted(_scan(folder / entry.name), key=lambda entry: entry.name)
            if any(_is_weights(item, weights) for item in inner):
                yield f"{entry.name}/", "a folder with weights of its own"
                continue
            for item in inner:
                reason = (
                    "a folder within a folder" if os.path.isdir(item.path) else _reason(item, folder, weights, code)
                )
                yield f"{entry.name}/{item.name}", reason or _reason_of_name(entry.name)
        elif os.path.isdir(entry.path):
            yield f"{entry.name}/", "a hidden folder or a link to a folder"
        else:
            yield entry.name, _reason(entry, folder, weights, code)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise CheckpointError(f"folder {shown(folder)} cannot be listed: {error.strerror}") from error


def _is_weights(entry: os.DirEntry[str], weights: Collection[str]) -> bool:
    return entry.name.lower().endswith(_WEIGHTS) or os.path.realpath(entry.path) in weights


def _reason(entry: os.DirEntry[str], folder: Path, weights: Collection[str], code: bool) -> str:
    """Return why a file stays behind, "" where it is to be copied."""
    name = entry.name.lower()
    reason = _reason_of_name(entry.name)
    if _is_weights(entry, weights):
        reason = "weights, or an index of weights"
    elif name in ("readme.md", "edit.json"):
        reason = "written anew"
    elif name.startswith(("adapter_config.", "adapter_model.")):
        reason = "part of an adapter"
    elif name in _TRAINING or name.startswith("events.out.tfevents"):
        reason = "a record of the parent's training"
    elif name.endswith(_CODE) and not code:
        reason = "custom code, copied only when asked for"
    if reason:
        return reason
    if check_member(Path(entry.path), folder, follow_symlinks=False):
        return "a link that leads outside the folder or nowhere" if entry.is_symlink() else "not a regular file"
    size = entry.stat().st_size
    limit = MAX_CONFIG_BYTES if entry.name == "config.json" else MAX_FILE_BYTES
    return f"{size} bytes, above the limit of {limit}" if size > limit else ""


def _reason_of_name(name: str) -> str:
    if name.startswith("."):
        return "a hidden file"
    return "" if name.isprintable() else "a name with control characters"


def _carry_file(
    checkpoint: Checkpoint, name: str, into: Path, dtype: str | None, origins: Sequence[tuple[Checkpoint, int]]
) -> tuple[str, int, str]:
    """Copy one file; return the action, the bytes written and the reason of a rewrite."""
    source, target, word = (checkpoint.folder or Path()) / name, into / name, _CONFIG_NAMES.get(dtype or "")
    with regular_file(source) as (handle, size):
        chunks = (read_exactly(handle, min(_CHUNK, size - at), at, source) for at in range(0, size, _CHUNK))
        action, reason = "copied", ""
        if name == "config.json":
            before = b"".join(chunks)
            what = f"file {shown(source)}"
            after = config_with_dtype(before, word, what)
            reasons = [f"dtype set to {word}, that of the weights"] if after != before else []
            if origins:
                stacked = [(model.config, layer) for model, layer in origins]
                layered = config_with_layers(after, layer_count(checkpoint.tensors), stacked, what)
                reasons += ["layers set to those of the weights"] if layered != after else []
                after = layered
            if reasons:
                action, reason, size = "rewritten", "; ".join(reasons), len(after)
            chunks = (piece for piece in (after,))
        try:
            target.parent.mkdir(exist_ok=True)
            with target.open("wb") as out:
                for chunk in chunks:
                    out.write(chunk)
        except OSError as error:
            raise ResourceError(f"file {shown(target)} cannot be written: {error.strerror}") from error
    return action, size, reason


def model_card(
    *,
    title: str,
    bases: Sequence[str],
    method: str,
    recipe_yaml: str,
    sources: Sequence[Checkpoint],
    version: str,
    notes: Sequence[str] = (),
    transformers: bool = False,
    about: str = "",
) -> str:
    """Return the README.md of a merged model: YAML front matter, what was done, the inputs and the recipe.

    Local paths are reduced to their folder's name. A license is stated only where every source states the
    same one in its own README.md. No name can end the front matter, the table or the recipe's block.

    Args:
        title: The heading.
        bases: References of the base and the models, as the user wrote them.
        method: The method's name.
        recipe_yaml: The recipe, as text.
        sources: The opened checkpoints, for the table of inputs and the license.
        version: The version of weightsmith.
        notes: Sentences to add, one per line.
        transformers: Whether the result loads with transformers (its config.json names architectures).
        about: What was done, in one sentence, where it was no merge.
    """
    license_, sentence = _common_license(sources)
    parents = [public_name(part) for reference in bases for part in _parts(reference)]
    front: dict[str, Any] = {"base_model": list(dict.fromkeys(parents))}
    front |= {} if about else {"base_model_relation": "merge"}
    front |= {"library_name": "transformers"} if transformers else {}
    front |= {"tags": ["weightsmith"] if about else ["merge", "weightsmith"], **license_}
    told = f"The weights of {len(sources)} checkpoints, merged with the method {_plain(method)}"
    hide = _hider([*bases, *(source.reference for source in sources)])
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=2**30) + "---",
        "",
        f"# {_plain(hide(title)) or 'Merged model'}",
        "",
        f"{_plain(about) or told} by weightsmith {_plain(version)}. No training took place. {sentence}",
        "",
        "| model | revision | tensors | elements |",
        "|---|---|---|---|",
        *map(_row, sources),
        "",
        *(f"- {_plain(hide(note))}" for note in notes),
        *([""] if notes else []),
        "## Recipe",
        "",
        *(["Local paths are shortened.", ""] if hide(recipe_yaml) != recipe_yaml else []),
        _fenced(hide(recipe_yaml)),
    ]
    return "\n".join(lines) + "\n"


def public_name(reference: str) -> str:
    """Return a reference fit for publishing: a hub id without revision, or the name of a local folder.

    >>> public_name("hub:org/name@main"), public_name("/home/me/models/mine/")
    ('org/name', 'mine')
    """
    text = reference.removeprefix("hub:").removeprefix("file:")
    path = os.path.expanduser(text)
    hub_id = text.partition("@")[0]
    is_local = reference.startswith("file:") or (not reference.startswith("hub:") and os.path.lexists(path))
    if not is_local and _HUB_ID.fullmatch(hub_id):
        return hub_id
    parts = Path(os.path.abspath(path)).parts
    if os.path.join(*parts) == os.path.expanduser("~"):
        return "model"
    cached = [part for part in parts[:-1] if part.startswith("models--")]
    if cached:  # a snapshot in the Hub's cache
        return _visible("/".join(cached[-1].split("--")[1:]))
    is_weights = parts[-1].startswith(("model", "pytorch_model")) and parts[-1].endswith(_WEIGHTS)
    return _visible(parts[-2] if is_weights and len(parts) > 2 else parts[-1])


def _parts(reference: str) -> list[str]:
    """Return the model and the adapters that `MODEL+ADAPTER` names, or the reference alone."""
    adapters: list[str] = []
    while not os.path.lexists(os.path.expanduser(reference.removeprefix("file:"))):
        model, plus, adapter = reference.rpartition("+")
        if not plus or not model:
            break
        adapters.insert(0, f"file:{adapter}")
        reference = model
    return [reference, *adapters]


def _row(source: Checkpoint) -> str:
    name = " + ".join(public_name(part) for part in _parts(source.reference))
    size = sum(entry.size for entry in source.tensors.values())
    return f"| {_plain(name)} | {_plain(source.revision or '')} | {len(source.tensors)} | {size} |"


def _hider(references: Sequence[str]) -> Callable[[str], str]:
    """Return a function that shortens in a text the paths of local references and the home folder."""
    paths: dict[str, str] = {}
    for part in (part.removeprefix("file:") for reference in references for part in _parts(reference)):
        if part.startswith(("/", "~")) or ".." in Path(part).parts:
            paths[part] = paths[os.path.expanduser(part)] = public_name(f"file:{part}")
    home = os.path.expanduser("~")
    paths |= {home: "~"} if len(home) > 1 else {}
    longest_first = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w.~-])(?:{longest_first})(?![\w-])") if paths else None
    return lambda text: pattern.sub(lambda found: paths[found.group()], text) if pattern else text


def _common_license(sources: Sequence[Checkpoint]) -> tuple[dict[str, str], str]:
    """Return the license entries that all sources and their adapters share, {} if none, and a sentence."""
    stated = []
    for source in sources:
        model, *adapters = _parts(source.reference)
        folders = [
            source.folder,
            *(Path(os.path.expanduser(part.removeprefix("file:"))) for part in adapters),
        ]
        for part, folder in zip((model, *adapters), folders, strict=True):
            stated.append((public_name(part), *_license(folder)))
    first: dict[str, str] = stated[0][1] if stated else {}
    if first and all(entries == first for _, entries, _ in stated):
        return first, f"All of them state the license {_plain(first['license'])}."
    each = "; ".join(f"{_plain(name)}: {_plain(told)}" for name, _, told in stated)
    return {}, f"No license is stated here, since the inputs do not all state the same one ({each})."


def _license(folder: Path | None) -> tuple[dict[str, str], str]:
    """Return the license entries of a folder's README.md, and the license or why there is none."""
    if folder is None or not os.path.lexists(folder / "README.md"):
        return {}, "no README.md"
    path = folder / "README.md"
    if check_member(path, folder, follow_symlinks=False):
        return {}, "README.md is not a file of its folder"
    try:
        with regular_file(path) as (handle, size):
            if size > MAX_CARD_BYTES:
                return {}, f"README.md has {size} bytes, above the limit of {MAX_CARD_BYTES}"
            text = read_exactly(handle, size, 0, path).decode("utf-8-sig", "replace")
    except (CheckpointError, ResourceError):
        return {}, "README.md cannot be read"
    found = re.match(r"---[ \t]*\r?\n(.*?\n)---[ \t]*(?:\r?\n|\Z)", text, re.DOTALL)
    if not found:
        return {}, "README.md has no front matter"
    faults: Faults = []
    root = parse_tree(found[1], faults, max_nodes=MAX_CARD_NODES)
    fields = mapping(root, "front matter", None, faults) if root else {}
    if faults:
        return {}, "the front matter of README.md has faults"
    entries: dict[str, str] = {}
    for key in ("license", "license_name", "license_link"):
        value = text_of(fields.get(key), key, faults)
        entries |= {key: shown(value)} if value else {}
    if faults or not _LICENSE.fullmatch(entries.get("license", "")):
        return {}, "none stated"
    return entries, entries["license"]


def _visible(text: str) -> str:
    """Return text with its control and direction characters escaped."""
    return "".join(c if c.isprintable() else shown(c) for c in text)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: whatever could be markup becomes a character reference."""
    return re.sub(r"[\\`*{}\[\]<>#|~&!]|\b_\B|\B_\b", lambda c: f"&#{ord(c.group())};", _visible(text))


def _fenced(text: str) -> str:
    """Return a fenced block whose fence is longer than any run of backticks within."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    lines = text.replace("\r\n", "\n").replace("\t", "    ").rstrip("\n").split("\n")
    return "\n".join([f"{fence}yaml", *map(_visible, lines), fence])
