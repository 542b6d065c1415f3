"""A merge inside a mask: which tensors are merged there, and what does not fit the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.masks import open_mask
from weightsmith.engine.stream import Work
from weightsmith.errors import ArgumentError, MismatchError, raise_all, shown
from weightsmith.method import Method

OUTSIDE = "outside the mask"


def apply_mask(
    reference: str, method: Method, works: Sequence[Work], follow_symlinks: bool
) -> tuple[Checkpoint, tuple[Work, ...]]:
    """Return the mask, and the works as they are inside it: inside, the result is that of the whole merge.

    Tensors that the mask lacks are copied from the first input, unless the method has to see them for the others' sake.

    Args:
        reference: The mask.
        method: What merges.
        works: What would be merged and copied without it.
        follow_symlinks: Let links of its folder lead outside it.

    Raises:
        MismatchError: The mask does not fit the output's tensors, or the first input's bytes cannot stay as they are.
        ArgumentError: It selects from no tensor that is merged.
    """
    shapes = {w.name: w.shape for w in works}
    mask = open_mask(reference, shapes, "the output", follow_symlinks=follow_symlinks)
    found, faults = [], []
    for work in works:
        base, entry = work.inputs[0], mask.tensors.get(work.name)
        if work.parameters is None:
            found.append(work)
            continue
        if base.low_rank is not None:
            faults.append(
                f"tensor '{shown(work.name)}' of the first input carries an adapter, so its bytes cannot stay"
            )
        elif base.dtype != work.dtype:
            faults.append(
                f"tensor '{shown(work.name)}' is {base.dtype} in the first input and {work.dtype} in the output"
            )
        if entry is not None or method.reduction_scope(work.parameters) == "model":
            found.append(replace(work, is_masked=True, mask=entry))
        else:
            found.append(Work(work.name, work.shape, base.dtype, (base,), work.layer, None, OUTSIDE))
    if faults:
        raise_all(
            faults,
            MismatchError,
            f"mask '{shown(mask.reference)}': what lies outside it cannot stay",
            "Leave dtype out",
        )
    if not any(w.mask is not None for w in found):
        what = f"mask '{shown(mask.reference)}' has no tensor that is merged"
        raise ArgumentError(what, expected="one with a merged tensor's name")
    return mask, tuple(found)
