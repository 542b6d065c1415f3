"""Stored masks: checkpoints of BOOL tensors with a model's names; what a mask lacks, it does not select."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.read import Files, open_checkpoint
from weightsmith.errors import CheckpointError, MismatchError, nearest, raise_all, shown

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def open_mask(
    reference: str | Path, shapes: Mapping[str, tuple[int, ...]], whose: str, *, follow_symlinks: bool = False
) -> Checkpoint:
    """Open a mask for tensors of these shapes.

    Args:
        reference: A file or folder.
        shapes: Of the tensors it may select from, by name.
        whose: What has these tensors, for messages.
        follow_symlinks: Let links of a folder lead outside it.

    Raises:
        MismatchError: It has tensors that are not BOOL, of another shape or of unknown name; all of them together.
        CheckpointError: It is damaged.
    """
    mask = open_checkpoint(reference, follow_symlinks=follow_symlinks)
    faults = []
    for name, entry in mask.tensors.items():
        if name not in shapes:
            faults.append(f"tensor '{shown(name)}' is not in {whose}; {nearest(name, shapes)}")
        elif entry.shape != shapes[name]:
            faults.append(f"tensor '{shown(name)}' has shape {entry.shape}, in {whose} {shapes[name]}")
        if entry.dtype != "BOOL":
            faults.append(f"tensor '{shown(name)}' is {entry.dtype}, a mask is BOOL")
    if faults:
        do = "Masks come from: weightsmith localize --base B --model A1 --masks OUT"
        raise_all(faults, MismatchError, f"mask '{shown(mask.reference)}' does not fit", do)
    return mask


def of_tasks(masks: Sequence[Checkpoint], names: Sequence[str]) -> dict[str, list[Entry | None]]:
    """Return for each tensor its entry in each mask, None where a mask lacks it."""
    return {name: [m.tensors.get(name) for m in masks] for name in names}


def read_mask(files: Files, entry: Entry | None, start: int, stop: int) -> Bools:
    """Return elements start .. stop of a stored mask; nothing is selected where there is none.

    Raises:
        CheckpointError: A byte is neither 0 nor 1.
    """
    if entry is None:
        return np.zeros(stop - start, np.bool_)
    raw = np.empty(stop - start, np.uint8)
    files.entry_into(entry, start, raw.data)
    if raw.size and raw.max() > 1:
        first = int(np.argmax(raw > 1))
        got = f"{raw[first]} at flat index {start + first}"
        raise CheckpointError(
            f"{entry.file}: mask '{shown(entry.name)}'", expected="bytes 0 and 1, as BOOL has", got=got
        )
    return raw.view(np.bool_)


def where_masked(mask: Bools, inside: Bytes, outside: Bytes) -> Bytes:
    """Return stored elements: those of `inside` where the mask is set, else those of `outside`.

    Args:
        mask: (n,).
        inside: (n * width,).
        outside: (n * width,).
    """
    width = inside.size // max(len(mask), 1)
    words = np.dtype(f"u{width}")
    return np.where(mask, inside.view(words), outside.view(words)).view(np.uint8)
