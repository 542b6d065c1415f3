"""Checking a bundle: sizes and digests, and every tensor of every task rebuilt. A damaged task does not hide the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import usable_threads
from weightsmith.bundle.unpack import check_files, check_shared
from weightsmith.checkpoint.bundle import MANIFEST, Bundle, open_stated_base, read_bundle, read_part
from weightsmith.checkpoint.bundle_write import LEFT_OVER, manifest_digest
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Entry
from weightsmith.checkpoint.packed import element_bytes
from weightsmith.checkpoint.read import Files, fingerprint, open_checkpoint, open_stored
from weightsmith.checkpoint.write import sha256_file
from weightsmith.errors import WeightsmithError, shown
from weightsmith.plan import Options
from weightsmith.tensor.coding import decode
from weightsmith.tensor.frames import FRAME

READ_FRAMES = 16


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        findings: What is wrong; empty where all is well.
        skipped: Why nothing was rebuilt; empty where tasks were.
        files: Files whose size and SHA-256 were checked.
        tensors: Tensors of all tasks.
        nonfinite: Elements that are NaN or infinite.
        rebuilt: Elements rebuilt.
    """

    findings: tuple[str, ...]
    skipped: tuple[str, ...]
    files: int
    tensors: int
    nonfinite: int
    rebuilt: int


def check_bundle(folder: Path, options: Options, progress: Callable[[str, int, int], None] | None = None) -> Checked:
    """Check a bundle's files against its manifests, and rebuild every tensor of every task.

    Of a base that was not copied into the bundle only sizes and headers are compared. Tensors stored without loss are
    compared with the SHA-256 of the original.
    """
    bundle = read_bundle(folder)
    findings: list[str] = []
    files = tensors = nonfinite = rebuilt = 0
    if bundle.content.get("manifest_sha256") != manifest_digest(bundle.content):
        findings.append(
            f"file '{shown(folder / MANIFEST)}' is not as it was written: it states another SHA-256 of itself"
        )
    try:
        base = open_stated_base(bundle, open_stored, fingerprint)
    except WeightsmithError as error:
        return Checked((*findings, str(error)), ("the base cannot be used",), 0, 0, 0, 0)
    files += _check_base(bundle, [*base.files], findings)
    is_damaged = False
    try:
        check_shared(bundle)
        files += bundle.content["shared"] is not None
    except WeightsmithError as error:
        findings.append(f"{error} Tasks that need it are not rebuilt")
        is_damaged = True
    for task in bundle.tasks:
        try:
            check_files(bundle, task)
            part = read_part(bundle, task)
            files += len(part["files"]) + 1
            if is_damaged and any(t["shared"] for item in part["tensors"] for t in item["terms"]):
                continue
            model = open_checkpoint(f"{folder}#{task}")
            stated = {item["name"]: item.get("sha256") for item in part["tensors"]}
            found = _rebuild(model.tensors, stated, options, progress, task)
        except WeightsmithError as error:
            findings.append(f"task '{task}': {error}")
            continue
        tensors += len(model.tensors)
        nonfinite += sum(bad for _, bad, _ in found.values())
        rebuilt += sum(e.size for e in model.tensors.values())
        for name, (fault, _, _) in found.items():
            findings += [f"task '{task}', tensor '{shown(name)}': {fault}"] if fault else []
    for path in _strays(bundle):
        is_left = path.name.startswith(LEFT_OVER) or path.name == f".{MANIFEST}.new"
        told = (
            "is left of a change that was stopped; the next add or remove clears it" if is_left else "was added later"
        )
        findings.append(f"file '{shown(path)}' {told}")
    return Checked(tuple(findings), (), files, tensors, nonfinite, rebuilt)


def _check_base(bundle: Bundle, files: list[Path], findings: list[str]) -> int:
    """Compare the base's files with their SHA-256 where they were copied into the bundle; return how many were compared."""
    stated = bundle.content["base"]["files"]
    if not all("sha256" in f for f in stated):
        return 0
    for path, file in zip(files, stated, strict=True):
        if sha256_file(path) != file["sha256"]:
            findings.append(f"file '{shown(path)}' of the base has another SHA-256 than the bundle says")
    return len(files)


def _rebuild(
    tensors: Mapping[str, Entry],
    stated: Mapping[str, Any],
    options: Options,
    progress: Callable[[str, int, int], None] | None,
    task: str,
) -> dict[str, tuple[str, int, int]]:
    """Form every tensor; return by name what is wrong, how many elements are NaN or infinite, and bytes."""

    def run(entry: Entry) -> tuple[str, int, int]:
        digest, bad = hashlib.sha256(), 0
        step = READ_FRAMES * FRAME * element_bytes(entry.dtype)
        try:
            with Files() as files:
                for start in range(0, entry.nbytes, step):
                    raw = np.empty(min(step, entry.nbytes - start), np.uint8)
                    files.entry_into(entry, start, raw.data)
                    if stated[entry.name]:
                        digest.update(raw.data)
                    bad += _count_nonfinite(entry, raw)
        except WeightsmithError as error:
            return str(error), bad, entry.nbytes
        fault = stated[entry.name] and digest.hexdigest() != stated[entry.name]
        return "its rebuilt bytes have another SHA-256 than the original" if fault else "", bad, entry.nbytes

    found: dict[str, tuple[str, int, int]] = {}
    total, done = sum(e.nbytes for e in tensors.values()), 0
    with ThreadPoolExecutor(options.threads or usable_threads(), "weightsmith") as pool:
        for name, one in zip(tensors, pool.map(run, tensors.values()), strict=True):
            found[name] = one
            done += one[2]
            if progress is not None:
                progress(f"verify {task}", done, total)
    return found


def _count_nonfinite(entry: Entry, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    if entry.dtype not in ARITHMETIC_DTYPES:
        return 0
    values = np.empty(len(raw) // element_bytes(entry.dtype), np.float64 if entry.dtype == "F64" else np.float32)
    return 0 if decode(raw, entry.dtype, values) else int((~np.isfinite(values)).sum())


def _strays(bundle: Bundle) -> list[Path]:
    """Return what lies in the bundle and is not its own."""
    known = {MANIFEST, "base", "shared", "tasks"}
    found = [p for p in bundle.folder.iterdir() if p.name not in known]
    tasks = bundle.folder / "tasks"
    return sorted(found + [p for p in tasks.glob("*") if p.name not in bundle.tasks.values()])
