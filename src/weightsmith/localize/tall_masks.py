"""TALL-masks (Wang et al., 2024, arXiv:2405.07813)."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.errors import ArgumentError
from weightsmith.tensor.arrays import Array, like, namespace


def tall_masks(task_vectors: Sequence[Array] | Array, merged: Array, *, lambdas: Sequence[float]) -> list[Array]:
    """Say which entries of one merged vector each task needs.

    With tau the merged vector of any merge, before scaling, entry by entry:

        m_t = [ |tau_t| > lambda_t * |tau - tau_t| ]

    Args:
        task_vectors: finetuned - base, T tensors of one shape.
        merged: tau, of the same shape.
        lambdas: One number per task, at least 0; larger selects fewer entries. The paper searches 0.2 .. 0.6 on validation data;
            1 gives the mask whose rebuilt task vector m_t * tau lies nearest to tau_t.

    Returns:
        T masks, bool. An entry that a task left alone is never selected.

    Raises:
        ArgumentError: Another number of lambdas than of tasks.

    Differs from the paper: nothing.
    Cost: elementwise; a few operations per task.
    Reference: Localizing Task Information for Improved Model Merging and Compression, section 4.

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, -0.4])]
        >>> [m.tolist() for m in tall_masks(taus, taus[0] + taus[1], lambdas=[0.4, 2.0])]
        [[True, False, True], [False, True, False]]
    """
    if len(lambdas) != len(task_vectors):
        raise ArgumentError("tall_masks: lambdas", expected=f"{len(task_vectors)}, one per task", got=str(len(lambdas)))
    xp = namespace(merged)
    pairs = zip(task_vectors, lambdas, strict=True)
    return [xp.abs(tau) > xp.abs(merged - tau) * like(bound, merged) for tau, bound in pairs]
