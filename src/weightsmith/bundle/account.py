"""What a bundle stores, in bytes: measured, by the encoding's formula, and against the models by themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.bundle.planning import CHOSEN, find_encoding
from weightsmith.checkpoint.bundle import MANIFEST, PART, Bundle, read_part
from weightsmith.checkpoint.entry import DTYPE_BITS
from weightsmith.errors import ArgumentError, CheckpointError


@dataclass(frozen=True)
class Account:
    """What a bundle stores.

    Attributes:
        base_bytes: The base's files, inside the bundle or not.
        shared_bytes: What all tasks share.
        tasks: Task to bytes of its pieces, of its manifest, and of its config and tokenizer files.
        manifest_bytes: bundle.json.
        individual_bytes: The tensors of all tasks' models by themselves.
        merged: Numbers of the base's tensors that some task encodes.
        frozen: Numbers of its other tensors.
        bits: Of a stored number of the base, the most common ones'.
        formula_bits: Base, shared part and tasks by the card of the encoding; None where it has no formula.
        formula_individual_bits: The models by themselves by that formula.
        damaged: Task to why its part cannot be read.
    """

    base_bytes: int
    shared_bytes: int
    tasks: Mapping[str, tuple[int, int, int]]
    manifest_bytes: int
    individual_bytes: int
    merged: int
    frozen: int
    bits: int
    formula_bits: float | None
    formula_individual_bits: float
    damaged: Mapping[str, str]

    @property
    def bundle_bytes(self) -> int:
        """All of it, the base included, since no task is rebuilt without it."""
        return self.base_bytes + self.shared_bytes + self.manifest_bytes + sum(map(sum, self.tasks.values()))

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """Bits of each task's pieces per number that it encodes or not."""
        size = max(1, self.merged + self.frozen)
        return {task: 8 * pieces / size for task, (pieces, _, _) in self.tasks.items()}

    def summary(self) -> dict[str, Any]:
        """Return the account as plain data, for --json."""
        each = self.bits_per_weight
        return {
            "bundle_bytes": self.bundle_bytes,
            "base_bytes": self.base_bytes,
            "shared_bytes": self.shared_bytes,
            "manifest_bytes": self.manifest_bytes,
            "tasks": {
                task: {"pieces_bytes": p, "manifest_bytes": m, "beside_bytes": b, "bits_per_weight": each[task]}
                for task, (p, m, b) in self.tasks.items()
            },
            "individual_bytes": self.individual_bytes,
            "ratio": self.individual_bytes / max(1, self.bundle_bytes),
            "merged_numbers": self.merged,
            "frozen_numbers": self.frozen,
            "bits_of_a_number": self.bits,
            "formula_bits": self.formula_bits,
            "formula_individual_bits": self.formula_individual_bits,
            "damaged": dict(self.damaged),
        }


def formula(
    encoding: str,
    merged: int,
    frozen: int,
    tasks: int,
    bits: int,
    parameters: Mapping[str, Any] | None = None,
    vector_bits: int | None = None,
) -> tuple[float, float | None]:
    """Return the bits of the models by themselves, and of the bundle with its base, by the encoding's card.

    The models share their frozen numbers, as the card counts them: bits * (tasks * merged + frozen).

    Args:
        encoding: Its name.
        merged: Numbers that finetuning changes.
        frozen: Numbers that it does not.
        tasks: How many models.
        bits: Of one stored number.
        parameters: The encoding's; its defaults where left out.
        vector_bits: Of one number of a vector that all tasks share; `bits` where left out.

    Example:
        >>> individual, bundle = formula("tall_masks", 87_849_216, 25_599_489, 20, 32)
        >>> round(individual / 1e9, 2), round(bundle / 1e9, 2)
        (57.04, 8.2)
    """
    individual = float(bits * (tasks * merged + frozen))
    found = None if encoding == CHOSEN else find_encoding(encoding)
    if found is None or found.formula is None:
        return individual, None
    given = {**found.check(parameters or {}, tasks), "vector_bits": bits if vector_bits is None else vector_bits}
    return individual, float(found.formula(merged, frozen, tasks, bits, given))


def account(bundle: Bundle) -> Account:
    """Return what a bundle stores, from its manifests and the sizes of its files; a damaged task is left out and told."""
    content = bundle.content
    tasks: dict[str, tuple[int, int, int]] = {}
    damaged: dict[str, str] = {}
    encoded: dict[str, int] = {}
    others: dict[str, int] = {}
    individual, bits = 0, dict[int, int]()
    for task in bundle.tasks:
        try:
            part = read_part(bundle, task)
        except CheckpointError as error:
            damaged[task] = str(error)
            continue
        sizes = [(f["file"], f["bytes"]) for f in part["files"]]
        manifest = (bundle.place(task) / PART).stat().st_size
        tasks[task] = (sizes[0][1], manifest, sum(n for _, n in sizes[1:]))
        for item in part["tensors"]:
            size, width = math.prod(item["shape"]), DTYPE_BITS[item["dtype"]]
            individual += size * width // 8
            bits[width] = bits.get(width, 0) + size
            is_encoded = item["base"] is not None and any(t["form"] != "difference" for t in item["terms"])
            (encoded if is_encoded else others)[item["name"]] = size
    merged = sum(encoded.values())
    frozen = sum(n for name, n in others.items() if name not in encoded)
    width = max(bits, key=lambda w: bits[w], default=32)
    counts, shared = (merged, frozen, len(bundle.tasks), width), content["shared"]
    vector = DTYPE_BITS[shared["dtype"]] if shared else None
    try:
        alone, stored = formula(content["encoding"], *counts, _parameters(content["parameters"]), vector)
    except ArgumentError:  # an encoding or parameter of another version; what is stored can be read all the same
        alone, stored = formula(CHOSEN, *counts)
    return Account(
        sum(f["bytes"] for f in content["base"]["files"]),
        shared["bytes"] if shared else 0,
        tasks,
        Path(bundle.folder / MANIFEST).stat().st_size,
        individual,
        merged,
        frozen,
        width,
        stored,
        alone,
        damaged,
    )


def _parameters(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a formula may need: not those that are one per task."""
    return {n: v for n, v in stated.items() if not isinstance(v, list)}
