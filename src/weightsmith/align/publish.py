"""What the verbs share: what they take, and writing a checkpoint of which some tensors changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.align.groups import Group, Groups, read_groups
from weightsmith.budget import HOST_BYTES, MEGABYTE, machine_limit
from weightsmith.checkpoint.auxiliary import carry, model_card
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.read import check_unchanged
from weightsmith.checkpoint.write import Output, lay_out
from weightsmith.distance import reading_job
from weightsmith.engine.stream import Job, Piece, Stream, Work, Worker
from weightsmith.engine.whole import encoded, numbers
from weightsmith.errors import ResourceError
from weightsmith.plan import Options
from weightsmith.record import write_record
from weightsmith.run import DEFAULT_SHARD_BYTES
from weightsmith.tensor.arrays import Array

COPIED_BYTES = 1 << 22
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Change:
    """A tensor that is written anew: its shape, and what makes its stored bytes, flat uint8, when its turn comes."""

    shape: tuple[int, ...]
    make: Callable[[], Array]


@dataclass
class Edit:
    """What a verb did to one checkpoint, for its record and model card.

    Attributes:
        verb: "align", "shrink" or "merge-experts".
        about: One sentence.
        inputs: The edited checkpoint first.
        before: Their fingerprints.
        parameters: Of the verb.
        details: What else the record holds.
        notes: What the user should know.
        tensors: What is written, in this order, where it is not the edited checkpoint's tensors: name to the entry that lends
            its dtype and, where it is not written anew, its bytes.
        beside: Given the folder and the records of the files carried into it, adapts them; returns the new records.
        why_copied: Why other tensors stay as they are.
    """

    verb: str
    about: str
    inputs: Sequence[Checkpoint]
    before: Sequence[dict[str, Any]]
    parameters: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tensors: Mapping[str, Entry] | None = None
    beside: Callable[[Path, list[dict[str, Any]]], list[dict[str, Any]]] | None = None
    why_copied: str = "in no group"

    @property
    def written(self) -> Mapping[str, Entry]:
        """What is written, in order."""
        return self.inputs[0].tensors if self.tensors is None else self.tensors


def load_groups(groups: Groups | str | Path) -> Groups:
    """Return groups, read from a file where a path is given."""
    return groups if isinstance(groups, Groups) else read_groups(groups)


def whole_job(checkpoints: Sequence[Checkpoint], options: Options) -> Job:
    """Return the job that reads whole tensors of these checkpoints; NaN and infinity are refused."""
    entries = [e for c in checkpoints for e in c.tensors.values() if e.dtype in ARITHMETIC_DTYPES]
    works = [Work(e.name, e.shape, e.dtype, (e,)) for e in entries]
    return replace(reading_job(works, checkpoints, options), allow_nonfinite=options.allow_nonfinite)


def check_memory(verb: str, tensor_bytes: int, units: int, squares: int, extra: int = 0) -> int:
    """Return the peak: 4 copies of the largest tensor, `squares` matrices (units, units) of float64, buffers, `extra`.

    Raises:
        ResourceError: The machine has less.
    """
    peak = HOST_BYTES + 200 * MEGABYTE + 4 * tensor_bytes + squares * 8 * units * units + extra
    limit = machine_limit()
    if limit is not None and peak > limit:
        raise ResourceError(
            f"{verb}: the largest tensor and group need more memory than this process may take",
            expected=f"{-(-peak // MEGABYTE)} MB",
            got=f"{limit // MEGABYTE} MB",
            do="Raise the limit, or leave the largest group out",
        )
    return peak


def written_bytes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes of the output's tensors, some of them of another shape."""
    return sum(_size(e, shapes.get(e.name, e.shape)) for e in checkpoint.tensors.values())


def _size(entry: Entry, shape: tuple[int, ...]) -> int:
    return entry.nbytes if shape == entry.shape else entry.nbytes // entry.size * int(np.prod(shape))


def publish(
    edit: Edit, changes: Mapping[str, Change], out: Path, stream: Stream, report: Callable[[int], None]
) -> dict[str, Any]:
    """Write the edited checkpoint with files, card and record; return the record."""
    source = edit.inputs[0]
    shapes = {name: change.shape for name, change in changes.items()}
    tensors = edit.written
    laid = [(n, e.dtype, shapes.get(n, e.shape), _size(e, shapes.get(n, e.shape))) for n, e in tensors.items()]
    aliases = {alias: kept for alias, kept in source.aliases.items() if kept in tensors}
    shards = lay_out(laid, DEFAULT_SHARD_BYTES, {**aliases, "format": "pt"})
    with Output(out, shards) as output, stream.worker() as worker:
        for index, shard in enumerate(shards):
            for slot in shard.slots:
                for data in _pieces(worker, stream.tile, tensors[slot.name], changes.get(slot.name)):
                    output.append(index, data.data)
                report(slot.nbytes)
        for prints in edit.before:
            check_unchanged(prints)
        record = _finish(edit, changes, output)
        output.publish()
    return record


def _pieces(worker: Worker, tile: int, entry: Entry, change: Change | None) -> Any:
    """Yield a tensor's bytes: made anew, with its adapter added, or copied a piece at a time."""
    if change is not None:
        yield change.make()
    elif entry.low_rank is not None:
        yield encoded(worker, entry, numbers(worker, tile, entry))
    else:
        work = Work(entry.name, entry.shape, entry.dtype, (entry,))
        for start in range(0, entry.nbytes, COPIED_BYTES):
            piece = Piece(work, start, min(start + COPIED_BYTES, entry.nbytes))
            data = np.empty(piece.stop - piece.start, np.uint8)
            worker.copy(piece, data)
            yield data


def _finish(edit: Edit, changes: Mapping[str, Change], output: Output) -> dict[str, Any]:
    source = edit.inputs[0]
    output.write_index()
    files = carry(source, output.partial, dtype=None, code=False)
    if edit.beside is not None:
        files = edit.beside(output.partial, files)
    command = "\n".join([f"edit: {edit.verb}", *(f"{k}: {v}" for k, v in edit.parameters.items())])
    card = model_card(
        title=output.out.name,
        bases=[c.reference for c in edit.inputs],
        method=edit.verb,
        recipe_yaml=command,
        sources=edit.inputs,
        version=version("weightsmith"),
        notes=edit.notes,
        transformers="architectures" in source.config,
        about=edit.about,
    )
    output.write_text("README.md", card)
    copied = [{"name": n, "reason": edit.why_copied} for n in edit.written if n not in changes]
    return write_record(
        output,
        edit.inputs,
        edit.before,
        {"edit": edit.verb, "recipe": command, "method": edit.verb, "parameters": dict(edit.parameters)},
        {
            "carried": files,
            "tensors": {"merged": len(changes), "copied": copied, "dropped": []},
            **edit.details,
            "notes": list(edit.notes),
        },
        digest_inputs=False,
    )


def statistics_note(groups: Sequence[Group]) -> list[str]:
    """Say where running statistics of a normalization belong to a group."""
    found = [p.entry.name for g in groups for p in g.places if p.entry.name.endswith(_STATISTICS)]
    if not found:
        return []
    return [
        f"{len(found)} running statistics, such as '{found[0]}', are not linear in the weights: re-estimate them on data"
        " after merging or shrinking"
    ]
