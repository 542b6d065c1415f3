"""SPT: sensitivity-aware selection (He et al., 2023, arXiv:2303.08566)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from weightsmith.arguments import Choice, Proportion
from weightsmith.localize.localizer import localizer
from weightsmith.localize.magnitude import prepare
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import is_among_largest

STRUCTURED, WHOLE, MASKED, FROZEN = "structured", "whole", "masked", "frozen"


@localizer(prepare=prepare, scope="parameter")
def sensitivity(
    statistics: Array,
    *,
    density: Proportion = 0.005,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Select the entries of which one step of training lowers a task's loss most.

    With s_t = sum over batches of (d loss / d theta)^2, the gradient of a batch's mean loss:

        m_t = the round(density * size) largest s_t, at least one; the earlier entry first when equal

    `allocate` then says, from how many entries each tensor got, which are trained by a structured module.

    Args:
        statistics: s_t, (T, n): checkpoints with the model's names and shapes, at least 0. Squares of batch gradients, not the
            mean of squared sample gradients, which ranks differently.
        density: Share selected.
        scope: What `size` refers to: the whole model, as in the paper, or each tensor.
        tile: Carries the thresholds.

    Returns:
        (T, n), bool.

    Differs from the paper: the statistics are given, not measured; the number of entries is given, not swept for a budget.
    Cost: two passes over the statistics (one more where a tensor is large), memory for 65,536 counters per task.
    Reference: Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, section 3.

    Example:
        >>> import numpy as np
        >>> sensitivity([np.array([[0.1, 3.0], [2.0, 0.0]])], density=0.5)[0].tolist()
        [[False, True], [True, False]]
    """
    return is_among_largest(statistics, tile.statistics, tile.position)


def allocate(
    selected: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rank: int = 8,
    alpha: float = 10.0,
    beta: float = 5.0,
) -> dict[str, str]:
    """Say how each tensor is trained, from how many of its entries are selected.

    A matrix (in, out) with c entries is trained by a module of rank r where c >= r (in + out) / alpha, else through its mask; a
    tensor of one axis and d entries whole where c >= d / beta, else through its mask. None selected: frozen.

    Args:
        selected: Entries selected, by tensor name.
        shapes: The tensors' shapes; axes after the first count as one.
        rank: r.
        alpha: Larger takes more modules.
        beta: Larger takes more whole vectors.

    Returns:
        Name to "structured", "whole", "masked" or "frozen".

    Example:
        >>> allocate({"w": 20, "v": 1}, {"w": (8, 8), "v": (4,)})
        {'w': 'structured', 'v': 'whole'}
    """
    found = {}
    for name, count in selected.items():
        shape = shapes[name]
        if not count:
            found[name] = FROZEN
        elif len(shape) > 1:
            found[name] = STRUCTURED if count >= rank * (shape[0] + math.prod(shape[1:])) / alpha else MASKED
        else:
            found[name] = WHOLE if count >= math.prod(shape) / beta else MASKED
    return found
