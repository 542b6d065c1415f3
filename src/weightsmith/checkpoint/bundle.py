"""Opening a bundle: many tasks of one base in one folder. Everything it says is checked before anything is decoded.

BUNDLE/bundle.json                          the base, the shared part and the tasks, with sizes and digests
BUNDLE/base/                                the base's files, where they were copied
BUNDLE/shared/model.safetensors             what all tasks share
BUNDLE/tasks/0001-NAME/part.json            the tensors of one task, and how each is formed
BUNDLE/tasks/0001-NAME/part.safetensors     its pieces
BUNDLE/tasks/0001-NAME/beside/              its config and tokenizer files
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.bundle_terms import AGAIN, check_listed, packed_entry, refuse, taken
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.folder import INDEX_BYTES, check_member, read_config, read_json
from weightsmith.checkpoint.header import read_exactly, read_header, regular_file
from weightsmith.errors import ArgumentError, CheckpointError, MismatchError, nearest, raise_all, shown

MANIFEST, PART, WEIGHTS, BESIDE, BASE = "bundle.json", "part.json", "part.safetensors", "beside", "base"
SHARED = "shared/model.safetensors"
FORMAT = 1
TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_FOLDER = re.compile(r"[0-9]{4,9}(-[a-z0-9-]{1,64})?", re.ASCII)

Open = Callable[[str], Checkpoint]
Prints = Callable[[Checkpoint], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says.

    Attributes:
        folder: Where the bundle lies.
        content: The whole of bundle.json.
        tasks: Task to its folder in tasks/, in order.
    """

    folder: Path
    content: Mapping[str, Any]
    tasks: Mapping[str, str]

    def place(self, task: str) -> Path:
        """Return the folder of a task; ArgumentError with the nearest names where there is none."""
        if task not in self.tasks:
            raise ArgumentError(
                f"bundle '{shown(self.folder)}' has no task '{shown(task)}'",
                expected="a task of the bundle",
                do=nearest(task, self.tasks) if self.tasks else "Add it: weightsmith add BUNDLE --model TASK=MODEL",
            )
        return self.folder / "tasks" / self.tasks[task]


def is_bundle(folder: Path) -> bool:
    """Tell whether a path is the folder of a bundle."""
    return os.path.lexists(folder / MANIFEST)


def check_task_name(task: str) -> None:
    """Refuse a name that is not 1 to 64 letters, digits, `.`, `_` and `-`, beginning with no dot; ArgumentError."""
    if not TASK_NAME.fullmatch(task):
        raise ArgumentError(
            f"task '{shown(task)}'",
            expected="a name of 1 to 64 letters, digits, '.', '_' and '-', not beginning with '.'",
            do="Name it yourself: --model TASK=MODEL",
        )


def read_bundle(folder: Path) -> Bundle:
    """Return what bundle.json says; nothing else is opened.

    Raises:
        ArgumentError: There is none.
        CheckpointError: It is not a sound manifest, or of a later version.
    """
    path = folder / MANIFEST
    if not is_bundle(folder):
        raise ArgumentError(
            f"'{shown(folder)}' is not a bundle",
            expected=f"a folder with {MANIFEST}",
            got="a folder without it" if folder.is_dir() else "a file" if folder.exists() else "nothing there",
            do="Name the folder that weightsmith pack wrote",
        )
    fault = check_member(path, folder, follow_symlinks=False)
    if fault:
        raise CheckpointError(fault, expected="a regular file", do=AGAIN)
    content = read_json(path, INDEX_BYTES)
    what = f"file '{shown(path)}'"
    _check_format(content, what)
    taken(content, "encoding", str, what)
    taken(content, "parameters", dict, what)
    if not all(isinstance(glob, str) for glob in taken(content, "exact", list, what)):
        refuse(what, "globs in 'exact' that are no text", "texts")
    base = taken(content, "base", dict, what)
    taken(base, "reference", str, what)
    for file in taken(base, "files", list, what):
        taken(file, "bytes", int, what)
        taken(file, "header_sha256", str, what)
    if taken(content, "shared", (dict, type(None)), what) is not None:
        _check_file(content["shared"], what)
    tasks: dict[str, str] = {}
    for item in taken(content, "tasks", list, what):
        name, place = taken(item, "name", str, what), taken(item, "folder", str, what)
        if not TASK_NAME.fullmatch(name):
            refuse(
                what, f"a task is called '{shown(name)}'", "letters, digits, '.', '_' and '-', not beginning with '.'"
            )
        if not _FOLDER.fullmatch(place):
            refuse(what, f"task '{name}' lies in '{shown(place)}'", "a number and a name of letters, such as 0001-math")
        if name in tasks or place in tasks.values():
            refuse(what, f"task '{name}' or its folder '{place}' is listed twice", "each task once")
        _check_file(taken(item, "part", dict, what), what)
        tasks[name] = place
    return Bundle(folder, content, tasks)


def open_task(folder: Path, task: str | None, reference: str, open_base: Open, fingerprint: Prints) -> Checkpoint:
    """Return the checkpoint of one task of a bundle; its tensors are formed when they are read.

    Args:
        folder: The bundle.
        task: The task; None for the only one.
        reference: What the user wrote.
        open_base: Opens the base by the reference that the bundle states.
        fingerprint: Gives size and header_sha256 of a checkpoint's files.

    Raises:
        ArgumentError: The bundle has no such task, or several and none is named.
        CheckpointError: The bundle's files for this task are damaged or contradict each other.
        MismatchError: The base is another one.
    """
    bundle = read_bundle(Path(os.path.abspath(folder)))
    if task is None and len(bundle.tasks) != 1:
        raise ArgumentError(
            f"'{shown(folder)}' is a bundle of {len(bundle.tasks)} tasks",
            expected="BUNDLE#TASK",
            do="Name one: " + ", ".join(f"'{shown(folder)}#{t}'" for t in [*bundle.tasks][:10]) if bundle.tasks else "",
        )
    task = next(iter(bundle.tasks)) if task is None else task
    place = bundle.place(task)
    base = open_stated_base(bundle, open_base, fingerprint)
    part = read_part(bundle, task)
    own = read_pieces(place / WEIGHTS, bundle.folder)
    shared_file = bundle.folder / SHARED
    shared = read_pieces(shared_file, bundle.folder) if bundle.content["shared"] is not None else {}
    tensors: dict[str, Entry] = {}
    faults: list[str] = []
    for item in part["tensors"]:
        try:
            entry = packed_entry(item, base, own, shared, place / WEIGHTS)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            tensors[entry.name] = entry
    if faults:
        raise_all(faults, CheckpointError, f"task '{task}' of bundle '{shown(folder)}'", AGAIN)
    beside = place / BESIDE
    has_config = os.path.lexists(beside / "config.json")
    return Checkpoint(
        reference,
        beside if beside.is_dir() else None,
        tensors,
        tuple(dict.fromkeys([*base.files, *([shared_file] if shared else []), place / WEIGHTS])),
        read_config(_member(beside / "config.json", bundle.folder)) if has_config else {},
        {"format": "pt"},
    )


def read_part(bundle: Bundle, task: str) -> dict[str, Any]:
    """Return part.json of a task, of just the size and SHA-256 that bundle.json states, checked as far as it can be alone."""
    place = bundle.place(task)
    path = _member(place / PART, bundle.folder)
    fault = _led_out(place / BESIDE, bundle.folder)
    if fault:
        raise CheckpointError(fault, expected="a folder of the bundle", do=AGAIN)
    stated = next(item["part"] for item in bundle.content["tasks"] if item["name"] == task)
    with regular_file(path) as (handle, size):
        raw = read_exactly(handle, min(size, INDEX_BYTES), 0, path)
    if size != stated["bytes"] or hashlib.sha256(raw).hexdigest() != stated["sha256"]:
        refuse(
            f"file '{shown(path)}'",
            f"another SHA-256 or size ({size} bytes)",
            f"those of bundle.json ({stated['bytes']} bytes)",
        )
    content = read_json(path, INDEX_BYTES)
    what = f"file '{shown(path)}'"
    _check_format(content, what)
    if taken(content, "task", str, what) != task:
        refuse(what, f"the task '{shown(content['task'])}'", f"'{task}'")
    for item in taken(content, "files", list, what):
        _check_file(item, what)
        name = taken(item, "file", str, what)
        if name != WEIGHTS and (not name.startswith(f"{BESIDE}/") or ".." in Path(name).parts or "\\" in name):
            refuse(what, f"the file '{shown(name)}'", f"'{WEIGHTS}' or files in {BESIDE}/")
    if [file["file"] for file in content["files"]][:1] != [WEIGHTS]:
        refuse(what, "files without it", f"'{WEIGHTS}' to be the first")
    faults, names = list[str](), set[str]()
    for item in taken(content, "tensors", list, what):
        try:
            check_listed(item, what)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            faults += [f"tensor '{shown(item['name'])}' is listed twice"] if item["name"] in names else []
            names.add(item["name"])
    if faults:
        raise_all(faults, CheckpointError, what, AGAIN)
    return dict(content)


def read_pieces(path: Path, root: Path) -> dict[str, Entry]:
    """Return the entries of a file of pieces, by name."""
    return read_header(_member(path, root))[0]


def open_stated_base(bundle: Bundle, open_base: Open, fingerprint: Prints) -> Checkpoint:
    """Open the base that a bundle states: its copy, or where it lay, absolutely or seen from the bundle.

    Raises:
        MismatchError: Its files have other sizes or headers than the bundle says.
    """
    stated = bundle.content["base"]
    reference = str(bundle.folder / BASE) if stated.get("copied") is True else stated["reference"]
    relative = stated.get("relative")
    if not stated.get("copied") and isinstance(relative, str) and not os.path.lexists(os.path.expanduser(reference)):
        beside = bundle.folder / relative
        reference = str(beside) if os.path.lexists(beside) else reference
    try:
        base = open_base(reference)
    except ArgumentError as error:
        raise MismatchError(
            f"the base of bundle '{shown(bundle.folder)}' cannot be found",
            expected=f"'{shown(stated['reference'])}'",
            got=str(error).rstrip("."),
            do="Put it back, or pack with --copy-base",
        ) from error
    digests = [(f["bytes"], f["header_sha256"]) for f in stated["files"]]
    if digests != [(f["size"], f["header_sha256"]) for f in fingerprint(base).values()]:
        raise MismatchError(
            f"bundle '{shown(bundle.folder)}': the base '{shown(reference)}'",
            expected="the files that it was packed with",
            got="files of another size or header",
            do="Restore that base, or pack again with this one",
        )
    return base


def _member(path: Path, root: Path) -> Path:
    """Return the path of a file that may be read as part of the bundle `root`; CheckpointError for any other."""
    fault = check_member(path, root, follow_symlinks=False) or _led_out(path.parent, root)
    if fault:
        raise CheckpointError(fault, expected="a regular file of the bundle", do=AGAIN)
    return path


def _led_out(folder: Path, root: Path) -> str | None:
    """Return why a folder is none of the bundle `root`, None where it is one."""
    real = Path(os.path.realpath(folder))
    return None if real.is_relative_to(os.path.realpath(root)) else f"'{shown(folder)}' is a link out of the bundle"


def _check_format(content: Any, what: str) -> None:
    version = taken(content, "format", int, what)
    if version != FORMAT:
        do = "Use a newer weightsmith" if version > FORMAT else AGAIN
        raise CheckpointError(f"{what}: format of the bundle", expected=str(FORMAT), got=str(version), do=do)


def _check_file(item: Any, what: str) -> None:
    if taken(item, "bytes", int, what) < 0 or not re.fullmatch(r"[0-9a-f]{64}", taken(item, "sha256", str, what)):
        refuse(what, "a file without size and SHA-256", "both")
