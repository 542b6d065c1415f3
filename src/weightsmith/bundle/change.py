"""`add` and `remove`: tasks come and go; the shared part and the other tasks stay as they are, byte for byte."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.arguments import Reals
from weightsmith.bundle.account import account
from weightsmith.bundle.kinship import check_kinship
from weightsmith.bundle.pack import Packed, add_task, new_place, reporter
from weightsmith.bundle.planning import (
    CHOSEN,
    Packing,
    PackPlan,
    Scales,
    find_encoding,
    named_models,
    open_task_to_pack,
)
from weightsmith.checkpoint.bundle import MANIFEST, SHARED, Bundle, open_stated_base, read_bundle, read_pieces
from weightsmith.checkpoint.bundle_write import changing, sync_tree, write_manifest
from weightsmith.checkpoint.entry import Entry
from weightsmith.checkpoint.read import check_unchanged, fingerprint, open_stored
from weightsmith.checkpoint.write import failed, sync
from weightsmith.encoding import Encoding
from weightsmith.errors import ArgumentError, CheckpointError, ResourceError, shown
from weightsmith.plan import Options
from weightsmith.run import Progress


@dataclass(frozen=True)
class Removed:
    """What was removed: the task and the bytes that it took."""

    bundle: Path
    task: str
    nbytes: int

    def summary(self) -> dict[str, Any]:
        """Return the result as plain data, for --json."""
        return {"bundle": str(self.bundle), "task": self.task, "bytes": self.nbytes}


def plan_add(
    bundle: str | Path,
    models: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    encoding: str | None = None,
    options: Options | None = None,
    scales: Scales | None = None,
    **parameters: Any,
) -> tuple[Bundle, PackPlan]:
    """Open a bundle, its base and the new models, from headers alone; see `add`."""
    found, options = read_bundle(Path(bundle)), options or Options()
    content = found.content
    if encoding is None and content["encoding"] == CHOSEN:
        raise ArgumentError(
            f"add: bundle '{shown(bundle)}' has an encoding for each tensor, chosen under a budget",
            expected="an encoding for the new tasks",
            do="Pass --encoding, such as --encoding compeft",
        )
    chosen = find_encoding(encoding or content["encoding"])
    is_own = chosen.name == content["encoding"]
    if chosen.has_shared and not is_own:
        raise ArgumentError(
            f"add: encoding {chosen.name}",
            expected=f"{content['encoding']}, or one that shares nothing between tasks",
            got=f"one that shares a part, which bundle '{shown(bundle)}' does not have",
            do="Pack all tasks anew with it",
        )
    named = named_models(models)
    for task in named:
        if task in found.tasks:
            raise ArgumentError(
                f"bundle '{shown(bundle)}' has a task '{task}'",
                expected="a new name",
                do="Remove it first, or name this one",
            )
    given = {n: v for n, v in parameters.items() if v is not None}
    if is_own:
        stated = {n: v for n, v in content["parameters"].items() if n in chosen.parameters and n not in given}
        per_task = {
            n
            for n, v in stated.items()
            if isinstance(chosen.parameters[n].kind, Reals) and isinstance(v, list) and len(v) > 1
        }
        given |= {n: tuple(v) if isinstance(v, list) else v for n, v in stated.items() if n not in per_task}
    base = open_stated_base(found, open_stored, fingerprint)
    checked = chosen.check(given, len(named))
    packing = Packing(chosen, checked, base, tuple(content.get("exact", ())), options, scales)
    tasks = {task: open_task_to_pack(task, model, packing) for task, model in named.items()}
    notes = dict.fromkeys(note for c in tasks.values() for note in c.notes)
    return found, PackPlan(packing, tasks, "F32", False, tuple(notes))


def add(
    bundle: str | Path,
    models: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    encoding: str | None = None,
    options: Options | None = None,
    scales: Scales | None = None,
    progress: Progress | None = None,
    **parameters: Any,
) -> Packed:
    """Add tasks to a bundle. What all tasks share stays as it is, and so do the other tasks.

    Args:
        bundle: The bundle.
        models: Task to model; or a list of "task=model", or of models, called as their folders.
        encoding: The bundle's own, by default; or one that shares nothing between tasks.
        options: Memory, threads and the like.
        scales: As for `pack`.
        progress: Called with (stage, bytes done, bytes in all).
        **parameters: The encoding's; by default as the bundle was packed.

    Raises:
        ArgumentError, CheckpointError, MismatchError, ResourceError: See `errors`; the bundle is as before.

    The same on the command line: weightsmith add BUNDLE --model math=A1
    """
    found, plan = plan_add(bundle, models, encoding=encoding, options=options, scales=scales, **parameters)
    return execute_add(found, plan, progress=progress)


def execute_add(bundle: Bundle, plan: PackPlan, *, progress: Progress | None = None) -> Packed:
    """Add tasks to a bundle; see `add`."""
    began = time.perf_counter()
    folder, placed = bundle.folder, list[Path]()
    report = reporter(progress, plan.bytes_read)
    with changing(folder) as work:
        _check_unchanged(bundle)
        pieces: dict[str, Entry] = {}
        if plan.packing.encoding.has_shared:
            pieces = read_pieces(folder / SHARED, folder)
            _check_shared(pieces, plan.packing.encoding, folder)
        for task, model in plan.tasks.items():
            check_kinship(plan.packing, task, model)
        added = []
        for i, (task, model) in enumerate(plan.tasks.items()):
            prints = fingerprint(model)
            added.append(add_task(plan.packing, task, i, len(plan.tasks), model, prints, pieces, work, report))
            check_unchanged(prints)
        sync_tree(work)
        try:
            for item in added:
                place = new_place(folder, item["name"])
                placed.append(place)
                _move(work / "tasks" / item["folder"], place)
                item["folder"] = place.name
            _replace(bundle, {**bundle.content, "tasks": [*bundle.content["tasks"], *added]})
        except BaseException:
            listed = read_bundle(folder).tasks.values()  # an interrupt may come when all is done
            for place in placed:
                if place.name not in listed:
                    shutil.rmtree(place, ignore_errors=True)
            raise
    done = account(read_bundle(folder))
    return Packed(folder, tuple(plan.tasks), done, time.perf_counter() - began, plan.notes)


def remove(bundle: str | Path, task: str) -> Removed:
    """Remove a task from a bundle; the others stay as they are, and so does what they share.

    Raises:
        ArgumentError: The bundle has no such task.
        ResourceError: It cannot be written, or another process is changing it.

    The same on the command line: weightsmith remove BUNDLE math
    """
    found = read_bundle(Path(bundle))
    place = found.place(task)
    with changing(found.folder) as work:
        _check_unchanged(found)
        nbytes = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
        _replace(found, {**found.content, "tasks": [t for t in found.content["tasks"] if t["name"] != task]})
        if place.exists():
            _move(place, work / place.name)
    return Removed(found.folder, task, nbytes)


def _check_shared(pieces: Mapping[str, Entry], encoding: Encoding, folder: Path) -> None:
    """Refuse a shared part that is not what the encoding shares."""
    is_vector = any(name.endswith("/vector") for name in pieces)
    if pieces and is_vector != encoding.has_vector:
        raise CheckpointError(
            f"file '{shown(folder / SHARED)}'",
            expected=f"what {encoding.name} shares between tasks",
            got="a vector" if is_vector else "no vector",
            do="The bundle is damaged: restore it, or pack again",
        )


def _move(old: Path, new: Path) -> None:
    try:
        new.parent.mkdir(exist_ok=True)
        os.rename(old, new)
        sync(new.parent)
    except OSError as error:
        raise failed(new, error) from error


def _replace(bundle: Bundle, content: Mapping[str, Any]) -> None:
    """Write bundle.json anew, unless someone else did meanwhile."""
    _check_unchanged(bundle)
    write_manifest(bundle.folder / MANIFEST, content)


def _check_unchanged(bundle: Bundle) -> None:
    if read_bundle(bundle.folder).content != bundle.content:
        raise ResourceError(f"bundle '{shown(bundle.folder)}' was changed by another process", do="Run again")
