"""A bundle at hand: its tasks and tensors, and a model in memory that is switched from one task to another in place."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import usable_threads
from weightsmith.bundle.account import Account, account
from weightsmith.checkpoint.bundle import open_task, read_bundle
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.read import Files, fingerprint, open_stored
from weightsmith.errors import ArgumentError, MismatchError, nearest, raise_all, shown
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import INTEGERS, decode

_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8", "I8": "int8",
    "I16": "int16", "I32": "int32", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
STEP_BYTES = 1 << 23  # formed at a time by one thread; whole frames of any dtype


class Bundle:
    """An opened bundle.

    Example:
        >>> Bundle("BUNDLE").load_into(model, "math")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        """Read the manifest; tasks are opened when they are asked for."""
        self._bundle = read_bundle(Path(os.path.expanduser(os.fspath(path))))
        self._opened: dict[str, Checkpoint] = {}
        self._resident: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(self._bundle.tasks)

    def account(self) -> Account:
        """Return what the bundle stores."""
        return account(self._bundle)

    def checkpoint(self, task: str) -> Checkpoint:
        """Return the checkpoint of a task, as `BUNDLE#task` opens."""
        if task not in self._opened:
            folder = self._bundle.folder
            self._opened[task] = open_task(folder, task, f"{folder}#{task}", open_stored, fingerprint)
        return self._opened[task]

    def tensor(self, task: str, name: str) -> Array:
        """Return one tensor of a task; numbers are float32, or float64 where they are stored so; integers as stored.

        Raises:
            ArgumentError: There is no such task or tensor, or its dtype is only copied.
            CheckpointError: The bundle is damaged there.
        """
        entry = self._entry(task, name)
        raw = np.empty(entry.nbytes, np.uint8)
        with Files() as files:
            files.entry_into(entry, 0, raw.data)
        if entry.dtype in INTEGERS:
            return raw.view(INTEGERS[entry.dtype]).reshape(entry.shape)
        if entry.dtype not in ARITHMETIC_DTYPES:
            raise ArgumentError(
                f"tensor '{shown(name)}'", expected="numbers", got=f"{entry.dtype}, which is only copied"
            )
        values = np.empty(entry.size, np.float64 if entry.dtype == "F64" else np.float32)
        decode(raw, entry.dtype, values)
        return values.reshape(entry.shape)

    def load_into(self, module: Any, task: str) -> int:
        """Switch a torch module to a task, in place; return how many bytes were written.

        Tensors are found by their names in `module.state_dict()`. On first use all are written; from then on those alone that
        the last or the new task changes. What is written is bit for bit what the unpacked folder holds, rounded to the
        module's dtypes where they are others. After an error the module may hold parts of both tasks; load again.

        Args:
            module: A torch.nn.Module of the class that the tasks were saved from, on any device.
            task: The task.

        Raises:
            MismatchError: The module lacks a tensor of the task, has one of another shape, or has one that the task lacks.
            CheckpointError: The bundle is damaged.
        """
        import torch

        entries = self.checkpoint(task).tensors
        state = module.state_dict(keep_vars=True)
        _check_fit(entries, state, task)
        before = self._resident.pop(module, None)
        changed = None if before is None else self._changed(before) | self._changed(task)
        jobs = [j for n, e in entries.items() if changed is None or n in changed for j in _jobs(e, state[n])]
        largest_first, threads = iter(sorted(jobs, key=_Job.order)), usable_threads()
        with torch.no_grad(), ThreadPoolExecutor(threads, "weightsmith") as pool:
            written = sum(pool.map(lambda _: _write_all(largest_first), range(threads)))
        self._resident[module] = task
        return written

    def _changed(self, task: str) -> set[str]:
        """Return the tensors in which a task differs from the base."""
        return {n for n, e in self.checkpoint(task).tensors.items() if e.packed is not None}

    def _entry(self, task: str, name: str) -> Entry:
        tensors = self.checkpoint(task).tensors
        if name not in tensors:
            raise ArgumentError(f"task '{task}' has no tensor '{shown(name)}'", do=nearest(name, list(tensors)))
        return tensors[name]


def _check_fit(entries: Mapping[str, Entry], state: Mapping[str, Any], task: str) -> None:
    """Refuse a module whose tensors are not the task's; those that share storage with one of them may be missing there."""
    faults = [f"tensor '{shown(n)}' of the task is not in the module" for n in entries if n not in state]
    faults += [
        f"tensor '{shown(n)}' has shape {e.shape} in the task and {tuple(state[n].shape)} in the module"
        for n, e in entries.items()
        if n in state and tuple(state[n].shape) != e.shape
    ]
    held = {state[n].data_ptr() for n in entries if n in state}
    faults += [
        f"tensor '{shown(n)}' of the module is not in the task"
        for n, t in state.items()
        if n not in entries and t.data_ptr() not in held
    ]
    if faults:
        raise_all(
            faults,
            MismatchError,
            f"task '{task}' does not fit the module",
            "Give a module of the class it was saved from",
        )


@dataclass(frozen=True)
class _Job:
    """Bytes of a tensor that one thread writes: into `place`, where the module holds just such, else through pieces.

    Attributes:
        entry: The task's tensor.
        target: The module's.
        start: From which byte of the tensor; 0 without a place.
        place: The module's own memory, uint8; None to go through pieces.
    """

    entry: Entry
    target: Any
    start: int = 0
    place: Array | None = None

    def order(self) -> int:
        """Return what sorts jobs that cannot be divided first, the largest of them at the beginning."""
        return -self.entry.nbytes if self.place is None else 0


def _jobs(entry: Entry, target: Any) -> Iterator[_Job]:
    """Divide the writing of one tensor among threads."""
    import torch

    flat = target.detach()
    is_same = flat.device.type == "cpu" and flat.dtype == getattr(torch, _TORCH[entry.dtype]) and flat.is_contiguous()
    if not is_same:
        yield _Job(entry, flat)
        return
    raw = flat.reshape(-1).view(torch.uint8).numpy() if entry.nbytes else np.empty(0, np.uint8)
    for start in range(0, len(raw), STEP_BYTES):
        yield _Job(entry, flat, start, raw[start : start + STEP_BYTES])


def _write_all(jobs: Iterator[_Job]) -> int:
    """Do what is left of the jobs, which threads take in turn; return how many bytes were written."""
    with Files() as files:
        return sum(_write(job, files) for job in jobs)


def _write(job: _Job, files: Files) -> int:
    import torch

    entry = job.entry
    if job.place is not None:
        files.entry_into(entry, job.start, job.place.data)
        return len(job.place)
    for rows, raw in _pieces(entry, files):
        values = torch.from_numpy(raw).view(getattr(torch, _TORCH[entry.dtype]))
        if not entry.shape:
            job.target.copy_(values.reshape(()))
        else:
            job.target[rows].copy_(values.reshape(-1, *entry.shape[1:]))
    return entry.nbytes


def _pieces(entry: Entry, files: Files) -> Iterator[tuple[slice, Array]]:
    """Yield the bytes of a tensor, whole rows of the first axis at a time."""
    rows = entry.shape[0] if entry.shape else 1
    width = entry.nbytes // max(1, rows)
    step = max(1, STEP_BYTES // max(1, width))
    for start in range(0, rows if entry.nbytes else 0, step):
        stop = min(start + step, rows)
        raw = np.empty((stop - start) * width, np.uint8)
        files.entry_into(entry, start * width, raw.data)
        yield slice(start, stop), raw
