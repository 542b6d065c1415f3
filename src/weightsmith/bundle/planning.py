"""What `pack` is about to do, from headers alone: which tensor of which task is encoded, and which is stored without loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.bundle.candidates import Choice
from weightsmith.checkpoint.bundle import check_task_name
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.names import layer_count, matches
from weightsmith.checkpoint.packed import element_bytes
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.compress import ENCODINGS
from weightsmith.device import Device
from weightsmith.encoding import PACKED_DTYPES, Encoding
from weightsmith.engine.reductions import ranks_of
from weightsmith.engine.stream import Job
from weightsmith.errors import ArgumentError, MismatchError, nearest, raise_all, shown
from weightsmith.method import KthMagnitude, Method
from weightsmith.plan import Options
from weightsmith.tensor.frames import FRAME, has_zstandard

CHOSEN = "chosen"  # where each tensor has an encoding of its own
SHARED_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}
_ROUNDED = (*PACKED_DTYPES, "F64")  # dtypes that numbers are rounded between
Scales = Callable[[str, Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class Packing:
    """How tasks are packed: what `pack` was given, and what `add` finds in the bundle.

    Attributes:
        encoding: The encoding.
        parameters: Its parameters, checked, for all tasks.
        base: The base.
        exact: Globs of tensors that are stored without loss.
        options: Memory, threads and the like.
        scales: Fits the scales of a task: given the task and scale by tensor, returns those to store.
        choice: A setting for each tensor of each task, in place of the one encoding.
    """

    encoding: Encoding
    parameters: Mapping[str, Any]
    base: Checkpoint
    exact: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    scales: Scales | None = None
    choice: Choice | None = None

    @property
    def name(self) -> str:
        """What bundle.json calls the encoding."""
        return CHOSEN if self.choice is not None else self.encoding.name

    def origin(self, entry: Entry) -> Entry | None:
        """Return the base's tensor that a task's is packed relative to; None where it is stored by itself."""
        base = self.base.tensors.get(entry.name)
        if base is None or base.shape != entry.shape:
            return None
        fits = base.dtype == entry.dtype or {base.dtype, entry.dtype} <= set(_ROUNDED)
        return base if fits else None

    def is_encoded(self, entry: Entry) -> bool:
        """Tell whether a task's tensor is encoded; others are stored without loss."""
        base = self.origin(entry)
        if base is None or self.encoding.form == "difference" or any(matches(g, entry.name) for g in self.exact):
            return False
        return base.dtype in PACKED_DTYPES and self.encoding.is_taken(entry.name, entry.shape, entry.dtype)

    def job(self, method: Method | None, inputs: int, row: int = 0) -> Job:
        """Return the job that reads so many checkpoints at once for this method."""
        entries = [e for e in self.base.tensors.values() if e.dtype in PACKED_DTYPES]
        demand = Demand(
            inputs=inputs,
            entries=inputs * len(self.base.tensors),
            itemsize=4,
            ranks=ranks_of(KthMagnitude(lambda size: [1]), 1) if method is not None and method.prepare else 0,
            ranked=max((e.size for e in entries), default=0) if method is not None and method.prepare else 0,
            row=row,
            matrix_bytes=max((16 * e.size for e in entries if len(e.shape) > 1), default=0)
            if self.encoding.reach == "matrix" or self.choice is not None
            else 0,
        )
        memory = min(self.options.memory_bytes, machine_limit() or self.options.memory_bytes)
        limits = choose_limits(demand, memory, self.options.threads or usable_threads())
        return Job(method, layer_count(self.base.tensors), "float32", limits, Device(), self.options.allow_nonfinite)


@dataclass(frozen=True)
class PackPlan:
    """A bundle that is about to be written.

    Attributes:
        packing: How.
        tasks: Task to its model.
        shared_dtype: Stored dtype of the shared vector, a safetensors name.
        copies_base: Whether the base's files go into the bundle.
        notes: What the user should know.
        vector: A model whose task vector all tasks share, in place of the one that the encoding makes.
    """

    packing: Packing
    tasks: Mapping[str, Checkpoint]
    shared_dtype: str
    copies_base: bool
    notes: tuple[str, ...]
    vector: Checkpoint | None = None

    @property
    def inputs(self) -> list[Checkpoint]:
        """All that is read: the base, the tasks' models, and the model with the shared vector where it is given."""
        return [self.packing.base, *self.tasks.values(), *([self.vector] if self.vector is not None else [])]

    @property
    def bytes_read(self) -> int:
        """Bytes of the inputs, each once."""
        return sum(e.nbytes for c in self.inputs for e in c.tensors.values())

    @property
    def most_bytes(self) -> int:
        """Bytes that the bundle takes at the most, about."""
        shared = sum(e.size for e in self.packing.base.tensors.values()) * 4 if self.packing.encoding.has_shared else 0
        copied = sum(e.nbytes for e in self.packing.base.tensors.values()) if self.copies_base else 0
        return shared + copied + sum(self.expected_bytes(c) for c in self.tasks.values())

    def expected_bytes(self, task: Checkpoint) -> int:
        """Return about how many bytes a task takes: two bits per encoded entry, other tensors as they are."""
        encoded = [e for e in task.tensors.values() if self.packing.is_encoded(e)]
        return sum(e.size for e in encoded) // 4 + sum(e.nbytes for e in task.tensors.values() if e not in encoded)

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data, for --json."""
        tasks = {}
        for name, model in self.tasks.items():
            encoded = [e for e in model.tensors.values() if self.packing.is_encoded(e)]
            exact = [e.name for e in model.tensors.values() if not self.packing.is_encoded(e)]
            tasks[name] = {
                "model": model.reference,
                "encoded": len(encoded),
                "encoded_elements": sum(e.size for e in encoded),
                "stored_without_loss": exact,
            }
        return {
            "encoding": self.packing.name,
            "parameters": plain(self.packing.parameters),
            "base": self.packing.base.reference,
            "vector": self.vector and self.vector.reference,
            "shared_dtype": self.shared_dtype if self.packing.encoding.has_shared else None,
            "tasks": tasks,
            "bytes_read": self.bytes_read,
            "bytes_at_most": self.most_bytes,
            "peak_memory_bytes": self.packing.job(None, len(self.tasks) + 1).limits.peak_bytes,
            "notes": list(self.notes),
        }


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON holds them."""
    return {n: list(v) if isinstance(v, tuple) else v for n, v in parameters.items()}


def find_encoding(name: str) -> Encoding:
    """Return the encoding of that name; ArgumentError with the nearest names otherwise."""
    for encoding in ENCODINGS:
        if encoding.name == name:
            return encoding
    raise ArgumentError(f"unknown encoding '{shown(name)}'", do=nearest(name, [e.name for e in ENCODINGS]))


def named_models(models: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, str]:
    """Return task to reference, from a mapping or from a list of TASK=MODEL or MODEL, which is called as its folder.

    Raises:
        ArgumentError: A name is not fit for a task, or is given twice.

    >>> named_models(["math=models/a", "models/code"])
    {'math': 'models/a', 'code': 'models/code'}
    """
    pairs = []
    if isinstance(models, Mapping):
        pairs = [(str(task), str(model)) for task, model in models.items()]
    else:
        for item in models:
            task, mark, model = str(item).partition("=")
            if not mark or "/" in task or "\\" in task:
                task, model = Path(str(item)).name, str(item)
            pairs.append((task, model))
    for task, _ in pairs:
        check_task_name(task)
    twice = [task for task in dict(pairs) if [t for t, _ in pairs].count(task) > 1]
    if twice:
        raise ArgumentError(
            f"task '{twice[0]}' is given twice", expected="a name for each task", do="Write --model TASK=MODEL"
        )
    if not pairs:
        raise ArgumentError("no models to pack", do="Pass --model TASK=MODEL, once per task")
    return dict(pairs)


def open_base_to_pack(reference: str | Path, options: Options) -> Checkpoint:
    """Open a base; ArgumentError where its bytes are not stored as they are."""
    base = open_checkpoint(reference, follow_symlinks=options.follow_symlinks)
    if any(e.low_rank is not None or e.rows is not None or e.packed is not None for e in base.tensors.values()):
        raise ArgumentError(
            f"base '{shown(reference)}'",
            expected="a model that holds its own bytes",
            got="one with an adapter, or a task of a bundle",
            do="Write it out first, with weightsmith merge passthrough",
        )
    return base


def open_task_to_pack(task: str, reference: str, packing: Packing) -> Checkpoint:
    """Open the model of a task; MismatchError where it has no tensor of the base's, or names that are not written."""
    model = open_checkpoint(reference, follow_symlinks=packing.options.follow_symlinks)
    faults = [f"tensor '{shown(n)}' has control characters in its name" for n in model.tensors if not n.isprintable()]
    do = "Rename them in the model"
    if not faults and not any(packing.origin(e) for e in model.tensors.values()):
        faults, do = ["no tensor has a name and shape of the base's"], "Name the base it was trained from"
    if faults:
        raise_all(faults, MismatchError, f"task '{task}', model '{shown(reference)}'", do)
    return model


def plan_pack(
    encoding: str,
    *,
    base: str | Path,
    models: Mapping[str, str | Path] | Sequence[str | Path],
    exact: Sequence[str] = (),
    shared_dtype: str = "float32",
    vector: str | Path | None = None,
    copy_base: bool = False,
    options: Options | None = None,
    scales: Scales | None = None,
    **parameters: Any,
) -> PackPlan:
    """Open the inputs, read headers, and say what would be packed; see `pack`."""
    chosen, options = find_encoding(encoding), options or Options()
    named = named_models(models)
    checked = chosen.check({n: v for n, v in parameters.items() if v is not None}, len(named))
    if shared_dtype not in SHARED_DTYPES:
        raise ArgumentError(
            "pack: shared_dtype", expected="one of " + ", ".join(SHARED_DTYPES), got=f"'{shown(shared_dtype)}'"
        )
    packing = Packing(chosen, checked, open_base_to_pack(base, options), tuple(exact), options, scales)
    tasks = {task: open_task_to_pack(task, model, packing) for task, model in named.items()}
    for glob in packing.exact:
        if not any(matches(glob, n) for c in tasks.values() for n in c.tensors):
            raise ArgumentError(f"pack: --exact pattern '{shown(glob)}' matches no tensor")
    if vector is not None and not chosen.has_vector:
        raise ArgumentError(
            f"pack {encoding}: vector", expected="none", do="This encoding shares no vector between tasks"
        )
    merged = None if vector is None else open_task_to_pack("vector", str(vector), packing)
    notes = [note for c in (packing.base, *tasks.values()) for note in c.notes]
    if not has_zstandard():
        notes.append("without the package zstandard, frames are larger: pip install 'weightsmith[bundle]'")
    return PackPlan(packing, tasks, SHARED_DTYPES[shared_dtype], copy_base, tuple(dict.fromkeys(notes)), merged)


def frames_of(entry: Entry) -> range:
    """Return where the frames of a tensor begin, in elements."""
    return range(0, math.ceil(entry.nbytes / element_bytes(entry.dtype)), FRAME)
