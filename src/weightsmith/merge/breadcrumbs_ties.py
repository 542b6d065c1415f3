"""Model Breadcrumbs with TIES sign election (arXiv:2312.06795 and arXiv:2306.01708, combined as in mergekit)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Number, Proportion, Share
from weightsmith.merge.breadcrumbs import SCOPES, band, prepare
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.sign import MERGES, merge_agreeing
from weightsmith.tensor.vector import add_scaled


@method(prepare=prepare, scope="parameter")
def breadcrumbs_ties(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.15,
    drop_top: Share = 0.006,
    lambda_: Number = 1.0,
    merge: Annotated[str, Choice(MERGES)] = "mean",
    scope: Annotated[str, Choice(SCOPES)] = "tensor",
    tile: Tile,
) -> Array:
    """Trim both ends of each task vector, then merge the entries that agree with the elected sign.

    With d_t = m_t * tau_t as in `breadcrumbs`, s = sign(sum_t d_t) and A = {t : sign(d_t) = s}, entry by entry:

        result = base + lambda * (1 / |A|) * sum over A of d_t        (0 where A is empty or the vote is level)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        density: Share kept.
        drop_top: Share of largest entries dropped.
        lambda_: Scale of the merged task vector.
        merge: mean, sum or max over those who agree.
        scope: Rank each tensor, or each row.
        tile: Carries the bounds.

    Returns:
        (n,), dtype of base.

    Differs from the paper: no paper has this combination; mergekit sums and counts a level vote as plus.
    Cost: two passes over T + 1 models, more where a tensor is not like its sample; memory for 65,536 counters per task and
    bound, or for a third of a tensor, and a tile.

    Command:
        weightsmith merge breadcrumbs_ties --base B --model A1 --model A2 --density 0.15 --out OUT

    Example:
        >>> import numpy as np
        >>> a, b = np.array([9.0, -3.0, 2.0, 0.1]), np.array([0.1, 8.0, 4.0, 2.0])
        >>> breadcrumbs_ties(np.zeros(4), [a, b], density=0.5, drop_top=0.25).tolist()
        [0.0, -3.0, 3.0, 2.0]
    """
    return add_scaled(base, merge_agreeing(band(task_vectors, tile.statistics, tile), merge, 0), lambda_)
