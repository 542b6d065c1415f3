"""Several adapters over one base: what each adds to which tensor, and what they replace, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.checkpoint.adapter import apply_adapter
from weightsmith.checkpoint.adapter_write import Target
from weightsmith.checkpoint.entry import Checkpoint, Entry, LowRank
from weightsmith.distance import are_numbers
from weightsmith.errors import ArgumentError, WeightsmithError, raise_all, shown
from weightsmith.plan import Options


@dataclass(frozen=True)
class Part:
    """What one adapter adds to one tensor, with its coefficient absorbed: scale * B @ A."""

    update: LowRank
    scale: float


@dataclass(frozen=True)
class Copies:
    """Two tensors that must hold the same numbers, the second one of this adapter."""

    name: str
    kept: Entry
    other: Entry
    adapter: str


def lay_over(base: Checkpoint, adapters: Sequence[Path], verb: str, options: Options) -> tuple[Checkpoint, ...]:
    """Return the base with each adapter; the faults of all adapters are reported together."""
    found, problems = [], []
    for folder in adapters:
        try:
            if not folder.expanduser().is_dir():
                raise ArgumentError(f"adapter '{shown(folder)}' does not exist", expected="a folder that PEFT saved")
            found.append(
                replace(apply_adapter(base, folder.expanduser(), options.follow_symlinks), reference=str(folder))
            )
        except WeightsmithError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise_all([str(p) for p in problems], type(problems[0]), f"{verb}: the adapters cannot be used")
    return tuple(found)


def find_parts(
    base: Checkpoint, inputs: Sequence[Checkpoint], coefficients: Sequence[float], faults: list[str]
) -> dict[Target, tuple[Part, ...]]:
    """Return what is added to each tensor, without what a coefficient or scale makes zero; faults are appended."""
    parts: dict[Target, tuple[Part, ...]] = {}
    for name, entry in base.tensors.items():
        updates = [(c.tensors[name].low_rank, x) for c, x in zip(inputs, coefficients, strict=True)]
        changed = [Part(u, x * u.scale) for u, x in updates if u is not None]
        kinds = {_kind(entry, p.update) for p in changed}
        if len(kinds) > 1:
            told = " and ".join(sorted(kinds))
            faults.append(f"'{shown(name)}' is {told} to different adapters: check their fan_in_fan_out")
        elif any(p.scale for p in changed):
            parts[Target(name, entry.shape, kinds.pop())] = tuple(p for p in changed if p.scale)
    turned = {t.kind: t.name for t in parts}
    if "linear" in turned and "transposed" in turned:
        faults.append(
            f"'{shown(turned['linear'])}' is stored [out, in] and '{shown(turned['transposed'])}' [in, out], by different"
            " fan_in_fan_out; one adapter holds one kind"
        )
    return parts


def _kind(entry: Entry, update: LowRank) -> str:
    if ".lora_embedding_" in update.down.name:
        return "embedding"
    return "convolution" if len(entry.shape) > 2 else "transposed" if update.transposed else "linear"


def find_saved(
    base: Checkpoint, inputs: Sequence[Checkpoint], faults: list[str]
) -> tuple[dict[str, Entry], tuple[Copies, ...]]:
    """Return the tensors that every adapter replaces as a whole, and what must hold the same numbers for that.

    Beside factors of embeddings PEFT stores a copy of the base's tensor: such copies must be the base's.
    """
    saved, copies = {}, []
    for name, entry in base.tensors.items():
        found = [replace(c.tensors[name], low_rank=None) for c in inputs]
        who = [c.reference for c, f in zip(inputs, found, strict=True) if f != entry]
        kept = entry
        if len(who) == len(inputs) and not any(c.tensors[name].low_rank for c in inputs):
            kept = saved[name] = found[0]
        copies += [
            Copies(name, kept, f, c.reference) for f, c in zip(found, inputs, strict=True) if f not in (entry, kept)
        ]
        faults += [
            f"'{shown(reference)}' replaces '{shown(name)}' as a whole, and {f.dtype} has no arithmetic here"
            for f, reference in zip([f for f in found if f != entry], who, strict=True)
            if not are_numbers(f, kept)
        ]
    return saved, tuple(copies)
