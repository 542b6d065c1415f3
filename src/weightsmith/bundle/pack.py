"""`pack`: many finetuned models of one base into one bundle, published by one rename."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from weightsmith.bundle.account import Account, account
from weightsmith.bundle.choosing import plan_choice
from weightsmith.bundle.kinship import check_kinship
from weightsmith.bundle.packing import write_task
from weightsmith.bundle.planning import Packing, PackPlan, Scales, plain, plan_pack
from weightsmith.bundle.sharing import given_vector, write_shared
from weightsmith.checkpoint.auxiliary import carry
from weightsmith.checkpoint.bundle import (
    BASE,
    BESIDE,
    FORMAT,
    MANIFEST,
    PART,
    SHARED,
    WEIGHTS,
    read_bundle,
    read_pieces,
)
from weightsmith.checkpoint.bundle_write import file_record, write_json, write_manifest
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.read import check_unchanged, fingerprint
from weightsmith.checkpoint.write import Output, check_output, failed
from weightsmith.display import Pictured
from weightsmith.errors import ArgumentError, ResourceError, shown
from weightsmith.plan import Options, free_bytes
from weightsmith.run import Progress

Score = Callable[[str, str], float]


@dataclass(frozen=True)
class Packed(Pictured):
    """What was written.

    Attributes:
        out: The bundle.
        tasks: The tasks that were packed, in order.
        account: What it stores.
        seconds: Wall time.
        notes: What the user should know.
    """

    out: Path
    tasks: tuple[str, ...]
    account: Account
    seconds: float
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as plain data, for --json."""
        return {
            "out": str(self.out),
            "tasks": list(self.tasks),
            "seconds": round(self.seconds, 3),
            "storage": self.account.summary(),
            "notes": list(self.notes),
        }


def pack(
    encoding: str | None = None,
    *,
    base: str | Path,
    models: Mapping[str, str | Path] | Sequence[str | Path],
    out: str | Path,
    budget: str | int | None = None,
    bits_per_weight: float | None = None,
    min_fidelity: float | None = None,
    score: Score | None = None,
    exact: Sequence[str] = (),
    shared_dtype: str = "float32",
    vector: str | Path | None = None,
    copy_base: bool = False,
    options: Options | None = None,
    scales: Scales | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **parameters: Any,
) -> Packed:
    """Pack finetuned models of one base into a bundle.

    Args:
        encoding: Its name: see `weightsmith.encodings`. None chooses one for each tensor, by one of the next three.
        base: What all models were trained from.
        models: Task to model; or a list of "task=model", or of models, called as their folders.
        out: The new folder; it appears complete or not at all.
        budget: Bytes of all tasks' parts, a number or such as "1.5GB".
        bits_per_weight: The same, as bits for each number of each task.
        min_fidelity: Least 1 - |rebuilt - finetuned|^2 / |finetuned - base|^2 of each task; the smallest bundle that has it.
        score: With a budget: tells how good a model is at a task, larger is better, given the task and a reference that
            `open_checkpoint` takes. What a first choice loses by it weighs the tasks' errors in the second.
        exact: Globs of tensors that are stored without loss.
        shared_dtype: Stored dtype of what all tasks share: float32, bfloat16, float16, or int8 with a scale per row.
        vector: A merged model, by any method: its task vector is what all tasks share, in place of the encoding's own.
        copy_base: Copy the base's files into the bundle; else it states where they lie, and their digests.
        options: Memory, threads and the like; nothing in them changes the result.
        scales: Called with a task and scale by tensor; returns the scales to store, such as ones fitted on data.
        force: Replace an older bundle, once the new one is complete.
        progress: Called with (stage, bytes done, bytes in all).
        **parameters: The encoding's, such as density=0.1.

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    The same on the command line: weightsmith pack compeft --base B --model math=A1 --density 0.1 --out BUNDLE
    """
    wanted = {"budget": budget, "bits_per_weight": bits_per_weight, "min_fidelity": min_fidelity}
    if encoding is None:
        if parameters or scales is not None or shared_dtype != "float32" or vector is not None:
            raise ArgumentError("pack without an encoding", expected="no parameters of one", got=", ".join(parameters))
        inputs = {"base": base, "models": models, "exact": exact, "copy_base": copy_base, "options": options}
        drops = None if score is None else partial(_drops, score, Path(out))
        chosen = plan_choice(**inputs, **wanted, drops=drops, progress=progress)  # type: ignore[arg-type]  # as they were given
        return execute_pack(chosen, Path(out), force=force, progress=progress)
    if any(value is not None for value in (*wanted.values(), score)):
        raise ArgumentError(f"pack {encoding}", expected="an encoding, or a budget or fidelity", got="both")
    plan = plan_pack(
        encoding,
        base=base,
        models=models,
        exact=exact,
        shared_dtype=shared_dtype,
        vector=vector,
        copy_base=copy_base,
        options=options,
        scales=scales,
        **parameters,
    )
    return execute_pack(plan, Path(out), force=force, progress=progress)


def _drops(score: Score, out: Path, plan: PackPlan) -> dict[str, float]:
    """Return how far each task's score falls in a bundle that is packed beside `out` and removed again."""
    trial = out.absolute().parent / f".{out.name}.trial-{secrets.token_hex(4)}"
    try:
        execute_pack(plan, trial)
        pairs = {t: (score(t, m.reference), score(t, f"{trial}#{t}")) for t, m in plan.tasks.items()}
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    for task, found in pairs.items():
        if not all(math.isfinite(x) for x in found):
            raise ArgumentError(f"pack: the score of task '{task}'", expected="a finite number", got=f"{found}")
    return {task: before - after for task, (before, after) in pairs.items()}


def check_bundle_place(plan: PackPlan, out: Path, *, force: bool) -> None:
    """Refuse an output path that cannot be used, or a disk without room; nothing is touched."""
    given = [f for c in plan.inputs for f in c.files] + [c.folder for c in plan.inputs if c.folder is not None]
    check_output(out, given, force=force, mark=MANIFEST)
    free = free_bytes(out.absolute().parent)
    if free < plan.most_bytes:
        raise ResourceError(
            f"--out '{shown(out)}'", expected=f"{plan.most_bytes} bytes of free disk", got=f"{free}", do="Free space"
        )


def execute_pack(plan: PackPlan, out: Path, *, force: bool = False, progress: Progress | None = None) -> Packed:
    """Write a bundle; see `pack`."""
    began = time.perf_counter()
    check_bundle_place(plan, out, force=force)
    packing = plan.packing
    before = [fingerprint(c) for c in plan.inputs]
    for task, model in plan.tasks.items():
        check_kinship(packing, task, model)
    report = reporter(progress, plan.bytes_read)
    with Output(out, ()) as output:
        root = output.partial
        base = _write_base(packing.base, before[0], root, out, copies=plan.copies_base)
        shared, pieces = None, dict[str, Entry]()
        if packing.encoding.has_shared:
            shared = write_shared(*_sharing(plan), plan.shared_dtype, root / SHARED, root, report)
            pieces = read_pieces(root / SHARED, root)
        tasks = [
            add_task(packing, task, i, len(plan.tasks), model, prints, pieces, root, report)
            for i, ((task, model), prints) in enumerate(zip(plan.tasks.items(), before[1:], strict=False))
        ]
        for prints in before:
            check_unchanged(prints)
        content = {
            "format": FORMAT,
            "weightsmith": version("weightsmith"),
            "encoding": packing.name,
            "parameters": plain(packing.parameters),
            **_chosen(packing),
            "exact": list(packing.exact),
            "base": base,
            "shared": shared,
            "vector": plan.vector and plan.vector.reference,
            "tasks": tasks,
        }
        write_manifest(root / MANIFEST, content)
        output.publish()
    done = account(read_bundle(out))
    return Packed(out, tuple(plan.tasks), done, time.perf_counter() - began, plan.notes)


def _sharing(plan: PackPlan) -> tuple[Packing, Mapping[str, Checkpoint]]:
    """Return how the shared part is made, and of which models."""
    if plan.vector is None:
        return plan.packing, plan.tasks
    encoding = replace(plan.packing.encoding, share=given_vector)
    return replace(plan.packing, encoding=encoding), {"vector": plan.vector}


def _chosen(packing: Packing) -> dict[str, Any]:
    """Return what was chosen for each tensor, for bundle.json."""
    choice = packing.choice
    if choice is None:
        return {}
    settings = {task: {name: s.label for name, s in each.items()} for task, each in choice.settings.items()}
    return {"chosen": {"settings": settings, "bytes": dict(choice.sizes), "fidelity": dict(choice.fidelity)}}


def add_task(
    packing: Packing,
    task: str,
    index: int,
    count: int,
    model: Checkpoint,
    prints: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Entry],
    root: Path,
    report: Callable[[str, int], None],
) -> dict[str, Any]:
    """Write the folder of one task below `root`; return its place in bundle.json.

    `index` and `count` say which of how many tasks it is, for parameters that are one per task.
    """
    parameters = packing.encoding.of_task(packing.parameters, index)
    place = new_place(root, task)
    weights, tensors = write_task(packing, parameters, task, model, shared, place / WEIGHTS, place, report)
    try:
        (place / BESIDE).mkdir()
    except OSError as error:
        raise failed(place / BESIDE, error) from error
    carry(model, place / BESIDE, dtype=None, code=False)
    beside = [file_record(p, place) for p in sorted((place / BESIDE).rglob("*")) if p.is_file()]
    content = {
        "format": FORMAT,
        "task": task,
        "encoding": packing.name,
        "parameters": plain(parameters),
        "model": {"reference": model.reference, "revision": model.revision, "files": _digests(prints)},
        "files": [weights, *beside],
        "tensors": tensors,
    }
    write_json(place / PART, content)
    part = file_record(place / PART, place)
    return {"name": task, "folder": place.name, "part": {"bytes": part["bytes"], "sha256": part["sha256"]}}


def new_place(root: Path, task: str) -> Path:
    """Return the folder that a task gets below `root`; its number is the first that is free."""
    taken = {p.name.partition("-")[0] for p in (root / "tasks").iterdir()} if (root / "tasks").is_dir() else set()
    number = next(n for n in range(1, 10**9) if f"{n:04d}" not in taken)
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in task.lower()).strip("-")
    return root / "tasks" / (f"{number:04d}-{slug}" if slug else f"{number:04d}")


def _digests(prints: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"file": Path(path).name, "bytes": f["size"], "header_sha256": f["header_sha256"]} for path, f in prints.items()
    ]


def _write_base(
    base: Checkpoint, prints: Mapping[str, Mapping[str, Any]], root: Path, out: Path, *, copies: bool
) -> dict[str, Any]:
    """State where the base lies, or copy its weights into the bundle."""
    stated: dict[str, Any] = {
        "reference": base.reference,
        "relative": None,
        "revision": base.revision,
        "copied": copies,
    }
    files = _digests(prints)
    if copies:
        folder = root / BASE
        names = [f.name for f in base.files]
        index = [p for p in base.files[0].parent.glob("*.index.json") if p.is_file()] if len(names) > 1 else []
        try:
            folder.mkdir()
            for path in (*base.files, *index):
                shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise failed(folder, error) from error
        files = [{**f, "sha256": file_record(folder / f["file"], root)["sha256"]} for f in files]
    elif base.revision is not None:
        stated["reference"] = f"hub:{base.reference.removeprefix('hub:').partition('@')[0]}@{base.revision}"
    else:
        place = os.path.realpath(base.reference.removeprefix("file:") if base.folder is None else base.folder)
        given = os.path.expanduser(base.reference.removeprefix("file:"))
        place = os.path.realpath(given) if os.path.lexists(given) else place
        stated["reference"], stated["relative"] = place, os.path.relpath(place, os.path.realpath(out))
    return {**stated, "files": files}


def reporter(progress: Progress | None, total: int) -> Callable[[str, int], None]:
    """Return a function of (stage, bytes read) that tells progress within each stage."""
    done: dict[str, int] = {}

    def report(stage: str, more: int) -> None:
        done[stage] = done.get(stage, 0) + more
        if progress is not None:
            progress(stage, min(done[stage], total), total)

    return report
