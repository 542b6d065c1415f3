"""`unpack`: tasks of a bundle as ordinary checkpoint folders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.bundle.pack import reporter
from weightsmith.checkpoint.bundle import BASE, BESIDE, SHARED, Bundle, read_bundle, read_part
from weightsmith.checkpoint.read import check_unchanged, fingerprint
from weightsmith.checkpoint.write import Output, lay_out, sha256_file
from weightsmith.engine.stream import Stream
from weightsmith.errors import ArgumentError, CheckpointError, WeightsmithError, raise_all, shown
from weightsmith.plan import Options, Plan, make_plan
from weightsmith.produce import produce
from weightsmith.record import finish
from weightsmith.run import Progress, check_target, make_recipe


@dataclass(frozen=True)
class Unpacked:
    """What was written.

    Attributes:
        folders: Task to its folder.
        bytes_written: Of tensors.
        seconds: Wall time.
    """

    folders: dict[str, Path]
    bytes_written: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the result as plain data, for --json."""
        return {
            "folders": {task: str(path) for task, path in self.folders.items()},
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
        }


def find_task(reference: str | Path) -> tuple[Path, str | None]:
    """Return the bundle's folder and the task that `BUNDLE#TASK` names; no task for `BUNDLE`."""
    text = os.fspath(reference)
    if os.path.lexists(os.path.expanduser(text)):
        return Path(os.path.expanduser(text)), None
    folder, mark, task = text.rpartition("#")
    return Path(os.path.expanduser(folder if mark else text)), task if mark else None


def plan_unpack(
    reference: str | Path,
    out: str | Path,
    *,
    options: Options | None = None,
    force: bool = False,
    faults: dict[str, WeightsmithError] | None = None,
) -> dict[str, tuple[Plan, Path]]:
    """Open the tasks, from headers alone, and say where each would be written; see `unpack`.

    With `faults`, a task of several that is damaged is put there with the reason, in place of being raised.
    """
    folder, task = find_task(reference)
    if not folder.is_dir():
        raise ArgumentError(f"'{shown(reference)}' does not exist", expected="BUNDLE or BUNDLE#TASK")
    bundle = read_bundle(folder)
    if task is not None:
        bundle.place(task)
    plans = {}
    for name in bundle.tasks if task is None else [task]:
        recipe = make_recipe("passthrough", models=[f"{folder}#{name}"])
        try:
            plan = make_plan(recipe, options)
        except CheckpointError as error:
            if faults is None or task is not None:
                raise
            faults[name] = error
            continue
        place = Path(out) / name if task is None else Path(out)
        check_target(plan, place, force=force)
        plans[name] = plan, place
    return plans


def unpack(
    reference: str | Path,
    out: str | Path,
    *,
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Unpacked:
    """Write a task of a bundle as a checkpoint folder, or all tasks, each into a folder of its name.

    The bytes are those that `BUNDLE#TASK` reads as; the bundle's files are checked by SHA-256 meanwhile.

    Args:
        reference: `BUNDLE#TASK`, or `BUNDLE` for all tasks.
        out: The new folder; for all tasks the folder of their folders. Each appears complete or not at all.
        options: Memory, threads and the like.
        force: Replace older outputs, each once the new one is complete.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError, CheckpointError, MismatchError, ResourceError: See `errors`; of the task nothing is published. Of
            several tasks the others are, before a damaged one is told.

    The same on the command line: weightsmith unpack BUNDLE#math OUT
    """
    began = time.perf_counter()
    faults: dict[str, WeightsmithError] = {}
    plans = plan_unpack(reference, out, options=options, force=force, faults=faults)
    bundle = read_bundle(find_task(reference)[0])
    report = reporter(progress, sum(p.bytes_written for p, _ in plans.values()))
    with ThreadPoolExecutor(1, "weightsmith-check") as checker:
        common = checker.submit(check_shared, bundle), checker.submit(check_base, bundle)  # once for all tasks
        for task, (plan, place) in plans.items():
            own = checker.submit(check_files, bundle, task)
            try:
                _write(plan, place, (*common, own), report)
            except CheckpointError as error:
                faults[task] = error
    if faults and len(faults.keys() | plans.keys()) == 1:
        raise next(iter(faults.values()))
    if faults:
        told = [f"task '{task}': {error}" for task, error in faults.items()]
        raise_all(told, CheckpointError, f"bundle '{shown(bundle.folder)}': all tasks but these are unpacked")
    written = sum(p.bytes_written for p, _ in plans.values())
    return Unpacked({t: place for t, (_, place) in plans.items()}, written, time.perf_counter() - began)


def _write(plan: Plan, out: Path, checked: Sequence[Future[None]], report: Callable[[str, int], None]) -> None:
    """Write a task; it is published once its files have been checked."""
    before = [fingerprint(c) for c in plan.inputs]
    tensors = [(w.name, w.dtype, w.shape, w.inputs[0].nbytes) for w in plan.works]
    shards = lay_out(tensors, plan.recipe.shard_bytes, {"format": "pt"})
    with Stream(plan.job, 1) as stream, Output(out, shards) as output:
        produce(plan, stream, shards, {}, output, lambda n: report("unpack", n))
        for check in checked:
            check.result()
        for prints in before:
            check_unchanged(prints)
        finish(plan, output, before, code=False, digest_inputs=False)
        output.publish()


def check_shared(bundle: Bundle) -> None:
    """Compare what all tasks share with the size and SHA-256 of bundle.json; CheckpointError where it is another."""
    if bundle.content["shared"] is not None:
        _check_file(bundle.folder / SHARED, bundle.content["shared"])


def check_base(bundle: Bundle) -> None:
    """Compare a base that lies in the bundle with the sizes and SHA-256 of bundle.json; CheckpointError where it is another."""
    base = bundle.content["base"]
    for stated in base["files"] if base.get("copied") is True else ():
        _check_file(bundle.folder / BASE / stated["file"], stated)


def _check_file(path: Path, stated: Mapping[str, Any]) -> None:
    if not path.is_file() or path.stat().st_size != stated["bytes"] or sha256_file(path) != stated["sha256"]:
        raise CheckpointError(
            f"file '{shown(path)}'",
            expected=f"{stated['bytes']} bytes with the SHA-256 that the bundle states",
            got="another file" if path.is_file() else "none",
            do="Restore it, or pack again",
        )


def check_files(bundle: Bundle, task: str) -> None:
    """Compare a task's own files with the sizes and SHA-256 of the manifests.

    Raises:
        CheckpointError: A file is missing or another one; the message names it.
    """
    place = bundle.place(task)
    for file in read_part(bundle, task)["files"]:
        _check_file(place / file["file"], file)
    there = {p.relative_to(place).as_posix() for p in (place / BESIDE).rglob("*") if p.is_file()}
    added = sorted(there - {f["file"] for f in read_part(bundle, task)["files"]})
    if added:
        raise CheckpointError(
            f"file '{shown(place / added[0])}' of task '{task}'",
            expected="the files that the bundle states",
            got="one more",
            do="Remove it",
        )
