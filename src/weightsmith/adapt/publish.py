"""What both verbs share: factors to a published adapter folder, and the report on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.adapt.ranks import stored_size
from weightsmith.checkpoint.adapter_write import CONFIG_NAME, Target, adapter_config, lay_out_adapter, saved_name
from weightsmith.checkpoint.auxiliary import model_card
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.names import is_expert
from weightsmith.checkpoint.read import check_unchanged
from weightsmith.checkpoint.write import Output, Slot
from weightsmith.distance import add_exactly, plain_number
from weightsmith.engine.stream import Piece, Stream, Work, Worker
from weightsmith.engine.whole import encoded, numbers
from weightsmith.errors import MismatchError, shown
from weightsmith.record import write_record
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import decode, stored_bytes

COPIED_BYTES = 1 << 22


@dataclass(frozen=True)
class Factored:
    """The best factors of one update: left (rows, rank) and right (rank, columns), float64.

    `distance` of factors as they are stored is the Frobenius norm of the update minus their product; `norm` is the update's.
    """

    left: Array
    right: Array
    norm: float
    distance: Callable[[Array, Array], float]


Factor = Callable[[Worker, Target, int], Factored]


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor that the adapter changes.

    Attributes:
        name: The tensor's.
        rank: Of its factors; 0 where the rule keeps nothing.
        norm: Frobenius norm of the wanted update.
        residual: The same of the wanted update minus the stored one.
    """

    name: str
    rank: int
    norm: float
    residual: float

    @property
    def relative(self) -> float:
        """The residual over the norm; 0 where nothing was wanted."""
        return self.residual / self.norm if self.norm else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the row as plain data."""
        found = {"norm": self.norm, "residual": self.residual, "relative_residual": self.relative}
        return {"name": self.name, "rank": self.rank, **found}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that differs from the base and that the adapter does not represent; norm None where it has none."""

    name: str
    reason: str
    norm: float | None

    def summary(self) -> dict[str, Any]:
        """Return the tensor as plain data."""
        return {"name": self.name, "reason": self.reason, "norm": self.norm}


@dataclass(frozen=True)
class Adapter:
    """What was written.

    Attributes:
        out: The published folder.
        record: The content of its edit.json.
        seconds: Wall time.
        bytes_written: Of factors and saved tensors.
        rows: One per tensor with factors, in the base's order.
        saved: Tensors that the adapter replaces as a whole.
        left_out: Tensors that it does not represent.
        relative_residual: ||base + adapter - wanted|| / ||wanted - base|| over all tensors with numbers.
        notes: What the user should know.
    """

    out: Path
    record: dict[str, Any]
    seconds: float
    bytes_written: int
    rows: tuple[Row, ...]
    saved: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    relative_residual: float
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as plain data, for --json."""
        return {
            "out": str(self.out),
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "relative_residual": plain_number(self.relative_residual),
            "tensors": [r.summary() for r in self.rows],
            "saved": list(self.saved),
            "not_represented": [x.summary() for x in self.left_out],
            "notes": list(self.notes),
        }


@dataclass
class Draft:
    """An adapter about to be written.

    Attributes:
        verb: For the record.
        about: One sentence for the model card.
        parameters: Of the verb.
        base: What it belongs to.
        inputs: All checkpoints that were read, as the record lists them.
        before: Their fingerprints.
        ranks: The rank of each target; none is 0.
        dtype: Stored dtype of the factors.
        saved: Tensors that are replaced as a whole.
        empty: Targets of which nothing is kept, with norm and residual.
        left_out: Tensors that are not represented.
        saved_norms: How far the saved tensors lie from the base's.
        notes: What the user should know.
        began: When the run began.
    """

    verb: str
    about: str
    parameters: Mapping[str, Any]
    base: Checkpoint
    inputs: Sequence[Checkpoint]
    before: Sequence[dict[str, Any]]
    ranks: Mapping[Target, int]
    dtype: str
    saved: Mapping[str, Entry] = field(default_factory=dict)
    empty: Sequence[Row] = ()
    left_out: Sequence[LeftOut] = ()
    saved_norms: Sequence[float] = ()
    notes: Sequence[str] = ()
    began: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return stored_size(self.ranks, self.dtype) + sum(e.nbytes for e in self.saved.values())


def publish(draft: Draft, out: Path, stream: Stream, factor: Factor, report: Callable[[int], None]) -> Adapter:
    """Write the adapter with its config, card and record; return what was written and how well it fits."""
    draft.notes = [*draft.notes, *_experts_note(draft.ranks)]
    width = stored_bytes(draft.dtype)
    factors = [
        (name, draft.dtype, shape, width * math.prod(shape))
        for target, rank in draft.ranks.items()
        for name, shape in target.tensors(rank)
    ]
    saved = {saved_name(n): e for n, e in draft.saved.items()}
    shard = lay_out_adapter([*factors, *((n, e.dtype, e.shape, e.nbytes) for n, e in saved.items())])
    by_name = {t.tensors(rank)[0][0]: t for t, rank in draft.ranks.items()}
    rows: list[Row] = []

    def make(worker: Worker, item: Target | Entry) -> tuple[list[Array], Row | None]:
        if isinstance(item, Entry):
            pieces = (
                [encoded(worker, item, numbers(worker, stream.tile, item))] if item.low_rank else _copied(worker, item)
            )
            return list(pieces), None
        return _factored(worker, item, draft.ranks[item], draft.dtype, factor)

    with Output(out, [shard]) as output:
        items = list(_items(shard.slots, by_name, saved))
        for item, (pieces, row) in zip(items, stream.in_order(items, make), strict=True):
            for data in pieces:
                output.append(0, data.data)
            rows += [row] if row else []
            report(item.nbytes)
        for prints in draft.before:
            check_unchanged(prints)
        every = _in_order([*rows, *draft.empty], draft.base)
        if not any(r.norm for r in every):
            raise MismatchError(f"{draft.verb}: the updates add up to zero", expected="one that changes a tensor")
        relative = _relative(every, draft.left_out, draft.saved_norms)
        record = _finish(draft, output, every, relative)
        output.publish()
    seconds = time.perf_counter() - draft.began
    return Adapter(
        out,
        record,
        seconds,
        draft.nbytes,
        every,
        tuple(draft.saved),
        tuple(draft.left_out),
        relative,
        tuple(draft.notes),
    )


def _experts_note(ranks: Mapping[Target, int]) -> list[str]:
    experts = [t.name for t in ranks if is_expert(t.name)]
    if not experts or len(set(ranks.values())) == 1:
        return []
    told = f"ranks differ, and '{shown(experts[0])}' belongs to an expert"
    return [f"{told}: with transformers from 5 on, PEFT loads experts of one rank alone, see --rank"]


def _items(
    slots: Sequence[Slot], targets: Mapping[str, Target], saved: Mapping[str, Entry]
) -> Iterator[Target | Entry]:
    """Yield what fills the file, in its order: A brings B along, which comes next."""
    for slot in slots:
        if slot.name in targets:
            yield targets[slot.name]
        elif slot.name in saved:
            yield saved[slot.name]


def _copied(worker: Worker, entry: Entry) -> Iterator[Array]:
    work = Work(entry.name, entry.shape, entry.dtype, (entry,))
    for start in range(0, entry.nbytes, COPIED_BYTES):
        data = np.empty(min(COPIED_BYTES, entry.nbytes - start), np.uint8)
        worker.copy(Piece(work, start, start + len(data)), data)
        yield data


def _factored(worker: Worker, target: Target, rank: int, dtype: str, factor: Factor) -> tuple[list[Array], Row]:
    """Return the stored bytes of A and B, and how far their product lies from what was wanted."""
    made = factor(worker, target, rank)
    down, up = (made.left.T, made.right.T) if target.is_turned else (made.right, made.left)
    stored, numbers = [], []
    for (name, shape), values in zip(target.tensors(rank), (down, up), strict=True):
        raw = np.empty(values.size * stored_bytes(dtype), np.uint8)
        worker.store(Work(name, shape, dtype, ()), 0, np.ascontiguousarray(values).reshape(math.prod(shape)), raw)
        back = np.empty(values.size)
        decode(raw, dtype, back)
        stored.append(raw)
        numbers.append(back.reshape(values.shape))
    left, right = (numbers[0].T, numbers[1].T) if target.is_turned else (numbers[1], numbers[0])
    return stored, Row(target.name, rank, made.norm, made.distance(left, right))


def _in_order(rows: Sequence[Row], base: Checkpoint) -> tuple[Row, ...]:
    place = {name: i for i, name in enumerate(base.tensors)}
    return tuple(sorted(rows, key=lambda r: place[r.name]))


def _relative(rows: Sequence[Row], left_out: Sequence[LeftOut], saved: Sequence[float]) -> float:
    """Return the norm of all that is missing over the norm of all that was wanted."""
    others = [x.norm**2 for x in left_out if x.norm is not None]
    missing = add_exactly([*(r.residual**2 for r in rows), *others])
    wanted = add_exactly([*(r.norm**2 for r in rows), *(n**2 for n in saved), *others])
    return math.sqrt(missing / wanted) if wanted else 0.0


def _finish(draft: Draft, output: Output, rows: Sequence[Row], relative: float) -> dict[str, Any]:
    output.write_text(
        CONFIG_NAME,
        adapter_config(draft.ranks, _modules(draft.saved), draft.base.reference, draft.base.revision),
    )
    command = "\n".join([f"edit: {draft.verb}", *(f"{k}: {v}" for k, v in draft.parameters.items())])
    card = model_card(
        title=output.out.name,
        bases=[draft.base.reference],
        method=draft.verb,
        recipe_yaml=command,
        sources=draft.inputs,
        version=version("weightsmith"),
        notes=draft.notes,
        about=draft.about,
    )
    output.write_text("README.md", card)
    return write_record(
        output,
        draft.inputs,
        draft.before,
        {"edit": draft.verb, "recipe": command, "method": draft.verb, "parameters": dict(draft.parameters)},
        {
            "carried": [],
            "tensors": {
                "merged": 2 * len(draft.ranks),
                "copied": [{"name": n, "reason": "in modules_to_save"} for n in draft.saved],
                "dropped": [],
            },
            "factors": [r.summary() for r in rows],
            "not_represented": [x.summary() for x in draft.left_out],
            "relative_residual": plain_number(relative),
            "notes": list(draft.notes),
        },
        digest_inputs=False,
    )


def _modules(saved: Mapping[str, Entry]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in saved))
