"""What a checkpoint is: a table of named tensors, each a range of bytes in a file, and what lies beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Every dtype that safetensors knows, with the bits of one element. All can be copied byte for byte.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
ARITHMETIC_DTYPES = ("BF16", "F16", "F32", "F64")
INTEGER_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor: `nbytes` bytes at `offset` of `file`, row-major, little-endian.

    `low_rank`, where present, is added to the stored values when they are read (an adapter). `rows`, where present,
    says of which stored rows the tensor is made, in place of `offset` (another vocabulary). `packed`, where present, says
    from what its bytes are formed when they are read (a task of a bundle).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    low_rank: LowRank | None = None
    rows: Rows | None = None
    packed: Packed | None = None

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update `scale * left @ right` of a tensor, seen as a matrix (rows, columns).

    With `transposed` False, left = up (rows, rank) and right = down (rank, columns), as LoRA stores them for
    [out, in] weights. With True the tensor is stored [in, out] and the update is (up @ down) transposed.
    """

    down: Entry
    up: Entry
    scale: float
    transposed: bool


ZERO, MEAN, PADDING = -1, -2, -3  # rows that are not stored


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Of which rows a tensor is made, in runs; read by `checkpoint.rows`.

    Run r fills the tensor's rows from begins[r] up to the next run, or the tensor's end, with consecutive rows of
    sources[parts[r]] from its row firsts[r] on. Other values of parts[r]: ZERO for zeros; MEAN for the means of the
    rows that means[firsts[r]], means[firsts[r] + 1], ... list as (source, row); PADDING for the mean of the tensor's
    own first `real` rows. Numbers are rounded to the tensor's dtype, so that all is as if it had been stored so.
    """

    sources: tuple[Entry, ...]
    begins: np.ndarray[Any, np.dtype[np.int64]]
    parts: np.ndarray[Any, np.dtype[np.int64]]
    firsts: np.ndarray[Any, np.dtype[np.int64]]
    means: tuple[tuple[tuple[int, int], ...], ...] = ()
    real: int = 0
    padding: list[bytes] = field(default_factory=list)  # the row of PADDING, once it is known


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """What a bundle adds to a base tensor, in one form; read by `checkpoint.packed`.

    Attributes:
        form: Its name in `checkpoint.packed.FORMS`.
        parts: The stored pieces by name, such as "frames" and "lengths".
        settings: Small numbers, such as the scale.
    """

    form: str
    parts: Mapping[str, Entry]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A tensor as a bundle stores it: base + term + term + ..., added in float32 and rounded once to the entry's dtype.

    The base is None where the terms are the whole tensor. Without terms the tensor is the base's, rounded. A single term of
    form "difference" gives back stored bytes.
    """

    base: Entry | None
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and the files they lie in; nothing is read until it is asked for.

    Attributes:
        reference: What the user wrote.
        folder: The folder of config and tokenizer files; None for a lone file.
        tensors: Name to entry, ordered by file and then by offset.
        files: The weight files, in order.
        config: config.json as a mapping, {} where there is none.
        metadata: The `__metadata__` of the headers, later files winning.
        aliases: Names that share another name's storage in an old .bin: alias to the name that is kept.
        revision: The hub commit, where the reference was a hub id.
        notes: What `plan` should tell about this input (wrong total_size, custom code, links, ...).
    """

    reference: str
    folder: Path | None
    tensors: dict[str, Entry]
    files: tuple[Path, ...]
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    revision: str | None = None
    notes: tuple[str, ...] = ()
