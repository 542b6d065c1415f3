"""Whether one model was trained from another: what the weights alone tell, and by which numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.compare import compare
from weightsmith.distance import plain_number
from weightsmith.errors import MismatchError, shown
from weightsmith.plan import Options
from weightsmith.run import Progress

RELATED, FOREIGN = 0.9, 0.3  # cosines of matrices: at least so in the middle of them, or at most
IDENTICAL, FINETUNED, UNCLEAR, UNRELATED = "identical", "finetuned", "unclear", "unrelated"


@dataclass(frozen=True)
class Kinship:
    """How near a model is to another, tensor by tensor.

    Attributes:
        name: The tensor's name.
        axes: Its number of axes.
        elements: Its entries.
        equal: How many of them are equal in both.
        cosine: Of the two as vectors; None where one is zero.
        relative: Length of the difference over the first's; None where the first is zero.
    """

    name: str
    axes: int
    elements: int
    equal: int
    cosine: float | None
    relative: float | None


@dataclass(frozen=True)
class Lineage:
    """Whether a model was trained from another, and the evidence.

    Matrices of a model and of one trained from it have cosines near 1. Matrices of models trained from different random starts
    are nearly orthogonal, though norms and biases may be alike. Which of the two came first the weights do not tell.

    Attributes:
        first: Reference of the one.
        second: Reference of the other.
        verdict: "identical" where all entries are equal; "finetuned" where the median cosine of matrices is at least 0.9;
            "unrelated" where it is at most 0.3; else "unclear". Where there are no matrices, all tensors count.
        equal: Share of equal entries.
        cosine: Of all entries as one vector.
        relative: Length of the difference over the first's.
        median_cosine: Of the matrices.
        tensors: Each tensor that both have, in one shape.
        apart: Tensors that only one has, or in another shape.
    """

    first: str
    second: str
    verdict: str
    equal: float
    cosine: float | None
    relative: float | None
    median_cosine: float | None
    tensors: tuple[Kinship, ...]
    apart: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return verdict and evidence as plain data."""
        listed = [{key: getattr(t, key) for key in t.__dataclass_fields__} for t in self.tensors]
        keys = ("first", "second", "verdict", "equal", "cosine", "relative", "median_cosine")
        return {**{key: getattr(self, key) for key in keys}, "tensors": listed, "apart": list(self.apart)}


def judge(tensors: Sequence[Kinship]) -> tuple[str, float | None]:
    """Return the verdict and the median cosine of matrices."""
    matrices = [t for t in tensors if t.axes > 1] or list(tensors)
    cosines = [t.cosine for t in matrices if t.cosine is not None]
    middle = statistics.median(cosines) if cosines else None
    if all(t.equal == t.elements for t in tensors):
        return IDENTICAL, middle
    if middle is None:
        return UNCLEAR, None
    return FINETUNED if middle >= RELATED else UNRELATED if middle <= FOREIGN else UNCLEAR, middle


def lineage(
    first: str | Path, second: str | Path, *, options: Options | None = None, progress: Progress | None = None
) -> Lineage:
    """Say whether one model was trained from the other, from their weights alone.

    Args:
        first: The supposed base: a file, folder, `model+adapter` or hub id.
        second: The model in question.
        options: Memory and threads.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        MismatchError: No tensor is common to both in one shape.
        CheckpointError, ResourceError: As for `compare`.

    Cost: one pass over both.
    """
    found = compare(first, second, options=options, progress=progress)
    rows = [r for r in found.rows if r.distance is not None and r.distance.elements]
    tensors = tuple(
        Kinship(r.name, len(r.shapes[0]), d.elements, d.equal, plain_number(d.cosine), plain_number(d.relative))
        for r in rows
        if (d := r.distance) is not None
    )
    if not tensors:
        what = f"lineage: '{shown(found.a)}' and '{shown(found.b)}' have no tensor of numbers in common"
        raise MismatchError(
            what, expected="equal names and shapes", do="List all differences with: weightsmith compare A B"
        )
    verdict, middle = judge(tensors)
    other = [r.name for r in found.rows if r.has_other_shape]
    return Lineage(
        found.a,
        found.b,
        verdict,
        sum(t.equal for t in tensors) / sum(t.elements for t in tensors),
        plain_number(found.total.cosine),
        plain_number(found.total.relative),
        middle,
        tensors,
        (*found.only_a, *found.only_b, *other),
    )
