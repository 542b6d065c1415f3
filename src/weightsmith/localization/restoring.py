"""Put a region of one model into another: inside a mask the one's stored bytes, outside the other's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.auxiliary import carry, model_card
from weightsmith.checkpoint.entry import DTYPE_BITS, Checkpoint
from weightsmith.checkpoint.masks import open_mask, read_mask, where_masked
from weightsmith.checkpoint.read import check_unchanged, fingerprint, open_checkpoint
from weightsmith.checkpoint.write import Output
from weightsmith.device import Device
from weightsmith.distance import reporter
from weightsmith.engine.stream import Job, Piece, Stream, Work, Worker
from weightsmith.errors import ArgumentError, MismatchError, raise_all, shown
from weightsmith.localization.writing import stored, write_model
from weightsmith.plan import Options
from weightsmith.record import write_record
from weightsmith.run import Progress, check_place
from weightsmith.tensor.arrays import Array


@dataclass(frozen=True)
class Restoration:
    """What `restore` did.

    Attributes:
        out: The published folder; None where nothing was written.
        target: Reference of the model that was changed.
        source: Reference of the model that the restored weights are from.
        mask: Reference of the mask.
        outside: Whether the weights outside the mask were restored.
        tensors: Tensors that may hold restored weights.
        elements: Entries of the target.
        selected: Entries that the mask selects; 0 where nothing was written.
        bytes_written: Bytes of the output's tensors.
        record: The content of edit.json.
    """

    out: Path | None
    target: str
    source: str
    mask: str
    outside: bool
    tensors: int
    elements: int
    selected: int
    bytes_written: int
    record: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "out": None if self.out is None else str(self.out), "record": dict(self.record)}


def restore(
    target: str | Path,
    *,
    source: str | Path,
    mask: str | Path,
    out: str | Path,
    outside: bool = False,
    dry_run: bool = False,
    force: bool = False,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Restoration:
    """Put the source's stored bytes into the target inside a mask; outside it the target stays as it is.

    With a finetuned model as target and its base as source the region is ablated; with a merged model as target and a finetuned
    one as source it is restored.

    Args:
        target: The model to change: a file, folder, `model+adapter` or hub id; it lends names, files and all unmasked bytes.
        source: The model to take weights from.
        mask: A checkpoint of BOOL tensors with the target's names; tensors that it lacks are not selected.
        out: The new folder.
        outside: Restore what lies outside the mask in place of what lies inside. Tensors that the source lacks stay.
        dry_run: Only check.
        force: Replace an older output.
        options: Memory and threads.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        MismatchError: The mask does not fit the target, or a selected tensor is missing, of another shape or dtype in the source.
        Others as for `merge`; nothing is published.

    Cost: one pass over the target and what is masked of the source.

    The same on the command line: weightsmith restore TARGET --from SOURCE --mask MASK --out OUT
    """
    options, out = options or Options(), Path(out)
    inputs = [open_checkpoint(x, follow_symlinks=options.follow_symlinks) for x in (target, source)]
    shapes = {n: e.shape for n, e in inputs[0].tensors.items()}
    chosen = open_mask(mask, shapes, f"'{shown(inputs[0].reference)}'", follow_symlinks=options.follow_symlinks)
    inputs.append(chosen)
    works = _works(inputs[0], inputs[1], chosen, outside)
    nbytes = sum(e.nbytes for e in inputs[0].tensors.values())
    check_place(out, inputs, nbytes, force=force)
    record: dict[str, Any] = {}
    selected: list[int] = []
    if not dry_run:
        before = [fingerprint(c) for c in inputs]
        job = _job(inputs, options)
        if outside:
            works = {n: replace(w, inputs=(w.inputs[1], w.inputs[0])) for n, w in works.items()}

        def make(worker: Worker, piece: Piece) -> Array:
            first, second = (stored(worker, e, piece.start, piece.stop) for e in piece.work.inputs)
            kept = read_mask(worker.files, chosen.tensors.get(piece.work.name), piece.start, piece.stop)
            selected.append(int(np.count_nonzero(kept)))  # of several threads: appending is one step
            return where_masked(kept, second, first)

        def finish(output: Output) -> None:
            for kept in before:
                check_unchanged(kept)
            record.update(_finish(output, inputs, before, works, outside))

        with Stream(job, 3) as stream:
            report = reporter("restore", nbytes, progress)
            write_model(inputs[0], out, works, stream, make, finish, report)
    return Restoration(
        out=None if dry_run else out,
        target=inputs[0].reference,
        source=inputs[1].reference,
        mask=chosen.reference,
        outside=outside,
        tensors=len(works),
        elements=sum(e.size for e in inputs[0].tensors.values()),
        selected=sum(selected),
        bytes_written=nbytes,
        record=record,
    )


def _works(target: Checkpoint, source: Checkpoint, mask: Checkpoint, outside: bool) -> dict[str, Work]:
    """Return what is put together, by name: target and source; all that does not fit is told together."""
    found, faults = {}, []
    for name, entry in target.tensors.items():
        other = source.tensors.get(name)
        if (name not in mask.tensors and not outside) or (other is None and name not in mask.tensors):
            continue
        if other is None:
            faults.append(f"tensor '{shown(name)}' is missing in the source")
        elif other.shape != entry.shape:
            faults.append(
                f"tensor '{shown(name)}' has shape {entry.shape} in the target and {other.shape} in the source"
            )
        elif other.dtype != entry.dtype:
            faults.append(f"tensor '{shown(name)}' is {entry.dtype} in the target and {other.dtype} in the source")
        elif DTYPE_BITS[entry.dtype] < 8:
            faults.append(f"tensor '{shown(name)}' is {entry.dtype}, whose entries share bytes")
        else:
            found[name] = Work(name, entry.shape, entry.dtype, (entry, other))
    if faults:
        what = f"restore: '{shown(source.reference)}' does not fit '{shown(target.reference)}'"
        do = "List all differences with: weightsmith compare TARGET SOURCE"
        raise_all(faults, MismatchError, what, do)
    if not found:
        raise ArgumentError("restore: the mask selects no tensor", expected="one with the target's names")
    return found


def _job(inputs: list[Checkpoint], options: Options) -> Job:
    entries = [e for c in inputs for e in c.tensors.values()]
    lows = [e.low_rank for e in entries if e.low_rank is not None]
    wide = any(e.dtype == "F64" for e in entries if e.low_rank is not None)
    demand = Demand(
        inputs=4,
        entries=len(entries),
        itemsize=8,
        factor_bytes=max((4 * (p.down.size + p.up.size) for p in lows), default=0),
    )
    memory = min(options.memory_bytes, machine_limit() or options.memory_bytes)
    limits = choose_limits(demand, memory, options.threads or usable_threads())
    return Job(None, 0, "float64" if wide else "float32", limits, Device(), options.allow_nonfinite)


def _finish(
    output: Output, inputs: list[Checkpoint], before: list[Any], works: Mapping[str, Work], outside: bool
) -> dict[str, Any]:
    target, source, mask = inputs
    output.write_index()
    files = carry(target, output.partial, dtype=None, code=False)
    asked = {"target": target.reference, "from": source.reference, "mask": mask.reference, "outside": outside}
    command = "\n".join(["edit: restore", *(f"{k}: {v}" for k, v in asked.items())])
    where = "outside" if outside else "inside"
    card = model_card(
        title=output.out.name,
        bases=[target.reference, source.reference],
        method="restore",
        recipe_yaml=command,
        sources=[target, source],
        version=version("weightsmith"),
        notes=target.notes,
        transformers="architectures" in target.config,
        about=f"The first model, with the weights of the second {where} a mask.",
    )
    output.write_text("README.md", card)
    copied = [{"name": n, "reason": "not masked"} for n in target.tensors if n not in works]
    return write_record(
        output,
        inputs,
        before,
        {"edit": "restore", "recipe": command, "method": "restore", "parameters": asked},
        {
            "carried": files,
            "tensors": {"merged": len(works), "copied": copied, "dropped": []},
            "notes": [*target.notes],
        },
        digest_inputs=False,
    )
