"""FISH masks: the entries of largest Fisher information (Sung et al., 2021, arXiv:2111.09839)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Proportion
from weightsmith.localize.localizer import localizer
from weightsmith.localize.magnitude import prepare
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import is_among_largest


@localizer(prepare=prepare, scope="parameter")
def fisher(
    statistics: Array,
    *,
    density: Proportion = 0.005,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Select the entries whose change would alter a task's predictions most.

    With F_t the diagonal of the Fisher information of task t, the mean over samples of squared gradients of the log-likelihood:

        m_t = the round(density * size) largest F_t, at least one; the earlier entry first when equal

    Args:
        statistics: F_t, (T, n): checkpoints with the model's names and shapes, at least 0.
        density: Share selected; the paper takes 0.005.
        scope: What `size` refers to: the whole model, or each tensor.
        tile: Carries the thresholds.

    Returns:
        (T, n), bool.

    Differs from the paper: the statistics are given, not measured.
    Cost: two passes over the statistics (one more where a tensor is large), memory for 65,536 counters per task.
    Reference: Training Neural Networks with Fixed Sparse Masks, section 3.

    Example:
        >>> import numpy as np
        >>> fisher([np.array([0.1, 3.0, 2.0, 0.0])], density=0.25)[0].tolist()
        [False, True, False, False]
    """
    return is_among_largest(statistics, tile.statistics, tile.position)
