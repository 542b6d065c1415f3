"""Robust Weight Signatures (Cai et al., 2023, arXiv:2302.12480)."""

from __future__ import annotations

from weightsmith.arguments import Number
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.vector import add_scaled, combine, gram


def _prepare() -> Statistics:
    clean, both, _ = yield Sums(lambda base, finetuned, tile: gram(_changes(base, finetuned)))
    return float(both / clean) if clean > 0 else 0.0


def _changes(base: Array, finetuned: Array) -> Array:
    """Return what clean and robust training changed, (2, n)."""
    start = base if len(finetuned) == 2 else finetuned[0]
    return namespace(base).stack([finetuned[-2] - start, finetuned[-1] - start])


@method(prepare=_prepare, scope="tensor", least=2, most=3)
def robust_signatures(base: Array, finetuned: Array, *, lambda_: Number = 1.0, tile: Tile) -> Array:
    """Patch a model with what robust training changes beside what clean training changes; or take the patch out.

    With d_c = clean - start and d_r = robust - start, tensor by tensor:

        R      = d_r - (<d_r, d_c> / <d_c, d_c>) d_c                            (d_r where d_c is 0)
        result = base + lambda * R

    Three uses. Apply: base is the model to patch, the models are start, clean and robust. Extract: base is the start itself
    and the models are clean and robust; the result carries the signature, result - base = R (store it with --dtype float32),
    and `merge rebase --base ANY --model START --model RESULT` applies it to any model. Remove: lambda = -1, either way.

    Args:
        base: The model to patch, or the pre-trained start, (n,).
        finetuned: The pre-trained start, unless it is the base; then the model trained from it on clean data, then the one
            trained from it to be robust, (3, n) or (2, n).
        lambda_: Scale of the signature, alpha in the paper; negative removes it, up to rounding: keep the clean model.
        tile: Carries the tensor's factor <d_r, d_c> / <d_c, d_c>.

    Returns:
        (n,), dtype of base.

    Differs from the paper: patches every tensor, where its code takes the first 7 to 13 convolutions (keep_num) and
    quantizes them: leave the others as they are with --copy. Several signatures are applied one after the other.
    Cost: two passes over 3 or 4 models; memory for a tile.

    Command:
        weightsmith merge robust_signatures --base B --model START --model CLEAN --model ROBUST --out OUT

    Example:
        >>> import numpy as np
        >>> start, clean, robust = np.zeros(2), np.array([2.0, 0.0]), np.array([3.0, 4.0])
        >>> robust_signatures(np.array([1.0, 1.0]), [start, clean, robust], lambda_=0.5).tolist()
        [1.0, 3.0]
    """
    clean, robust = _changes(base, finetuned)
    return add_scaled(base, combine(robust, clean, 1.0, -tile.statistics), lambda_)
