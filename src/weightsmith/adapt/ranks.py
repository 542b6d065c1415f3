"""The rule that says how much of each matrix an adapter keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.arguments import Real, Whole
from weightsmith.checkpoint.adapter_write import Target
from weightsmith.engine.stream import Stream, Worker
from weightsmith.errors import ArgumentError
from weightsmith.recipe import parse_size
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import stored_bytes
from weightsmith.tensor.truncation import budget_ranks, energy_rank


@dataclass(frozen=True)
class RankRule:
    """One of: the same rank everywhere, a share of each matrix's energy, bytes of all factors together."""

    rank: int | None = None
    energy: float | None = None
    budget: int | None = None


def make_rule(verb: str, rank: int | None, energy: float | None, budget: str | int | None = None) -> RankRule:
    """Return the rule that is given, checked.

    Raises:
        ArgumentError: None or several are given, or a value lies outside its bounds.
    """
    if sum(x is not None for x in (rank, energy, budget)) != 1:
        names = "rank, energy or budget" if verb == "extract-lora" else "rank or energy"
        raise ArgumentError(f"{verb}: how much to keep", expected=f"one of {names}", got="none or several")
    return RankRule(
        None if rank is None else Whole(1).check(rank, "rank", verb),
        None if energy is None else Real(0, 1, open_low=True).check(energy, "energy", verb),
        None if budget is None else parse_size(budget, f"{verb}: budget"),
    )


def largest_ranks(rule: RankRule, targets: Sequence[Target], dtype: str) -> dict[Target, int]:
    """Return the ranks that no choice exceeds, from shapes alone; for a fixed rank, the choice itself.

    Raises:
        ArgumentError: The budget holds no triplet of any matrix.
    """
    full = {t: min(t.matrix) for t in targets}
    if rule.rank is not None:
        return {t: min(rule.rank, rank) for t, rank in full.items()}
    if rule.budget is None:
        return full
    width = stored_bytes(dtype)
    least = min(t.cost for t in targets) * width
    if rule.budget < least:
        raise ArgumentError("extract-lora: budget", expected=f"at least {least} bytes", got=f"{rule.budget}")
    return {t: min(rank, rule.budget // (t.cost * width)) for t, rank in full.items()}


def choose_ranks(
    rule: RankRule,
    targets: Sequence[Target],
    dtype: str,
    stream: Stream,
    spectrum: Callable[[Worker, Target], Array],
    report: Callable[[int], None],
) -> dict[Target, int]:
    """Return the rank of each matrix, 0 where nothing is kept; singular values are computed only where the rule asks."""
    if rule.rank is not None:
        return largest_ranks(rule, targets, dtype)
    spectra: dict[Target, Array] = {}
    for target, values in zip(targets, stream.in_order(targets, spectrum), strict=True):
        spectra[target] = values
        report(target.nbytes)
    if rule.energy is not None:
        return {t: energy_rank(values, rule.energy) if values.any() else 0 for t, values in spectra.items()}
    numbers = (rule.budget or 0) // stored_bytes(dtype)
    return dict(zip(targets, budget_ranks([*spectra.values()], [t.cost for t in targets], numbers), strict=True))


def stored_size(ranks: Mapping[Target, int], dtype: str) -> int:
    """Return the bytes of all factors."""
    return stored_bytes(dtype) * sum(t.cost * rank for t, rank in ranks.items())
