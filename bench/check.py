"""Compare what a merge wrote with its oracle, or with mergekit's result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import oracle
import oracle_chance
import oracle_more
from oracle import Agreement, Expected, Floats, Tensors
from work import Work

SMALL = 50_000_000  # parameters; below, every tensor is compared, and what refers to whole models is computed
DIFFERING = 0.01  # share of entries that may round to the neighboring bfloat16 number

# mergekit adds up whole tensors in float32. At four million entries that moves its factors by so much, relative to the
# operands, in times of FLOAT32_SLACK.
PEER_SUMS = 2.0**-11 / oracle.FLOAT32_SLACK
SUMMED = ("model_stock", "karcher", "nuslerp", "multislerp", "sce", "sparse_task_arithmetic")

# The methods' own defaults, which the command lines leave out.
LINES_ALPHA = 1.0 / 3.0
MASK_LAMBDA = 0.4
PCB_CLIP = 1e-4
DROP_TOP = 0.01


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, for the formulas that need it."""

    name: str
    row: int  # length of its last axis
    layers: int  # of the model
    exact: bool  # the earlier of equal entries comes first; otherwise those at a bound are left open


# place, base, models -> what the result should be
Oracle = Callable[[Place, Floats, list[Floats]], Expected]
# place, result, base, models -> the nearest merge that chance allows
ChanceOracle = Callable[[Place, Floats, Floats, list[Floats]], Expected]
# base, models -> a formula of any tensor, for those that refer to whole models
WholeOracle = Callable[[Tensors, list[Tensors]], Oracle]

PEER_WEIGHTS = (1.0, 0.8, 0.6)
MULTISLERP_WEIGHTS = (0.5, 0.3, 0.2)

ORACLES: dict[str, Oracle] = {
    "linear": lambda _, base, models: oracle.linear(models),
    "task_arithmetic": lambda _, base, models: oracle.task_arithmetic(base, models, 0.3),
    "slerp": lambda _, base, models: oracle.slerp(models[0], models[1], 0.5),
    "wise_ft": lambda _, base, models: oracle.wise_ft(base, models[0], 0.5),
    "lines": lambda at, base, models: oracle.lines(base, models, at.name, at.layers, LINES_ALPHA, 0.5),
    "tall_masks": lambda _, base, models: oracle.tall_masks(base, models, 1, MASK_LAMBDA),
    "consensus": lambda _, base, models: oracle.consensus(base, models, 0.3, MASK_LAMBDA),
    "breadcrumbs": lambda _, base, models: oracle.breadcrumbs(base, models, 0.5, DROP_TOP, 0.3),
    "ties, scope tensor": lambda at, base, models: oracle.ties(base, models, 0.5, at.exact),
    "breadcrumbs_ties": lambda _, base, models: oracle_more.breadcrumbs_ties(base, models, 0.5, DROP_TOP),
    "magmax": lambda _, base, models: oracle_more.magmax(base, models, 0.5),
    "rebase": lambda _, base, models: oracle_more.rebase(base, models),
    "robust_signatures": lambda _, base, models: oracle_more.robust_signatures(base, models, 0.5),
    "model_stock": lambda _, base, models: oracle_more.model_stock(base, models),
    "karcher": lambda _, base, models: oracle_more.karcher(models),
    "nuslerp": lambda _, base, models: oracle_more.nuslerp(None, models, 0.3),
    "nuslerp_base": lambda _, base, models: oracle_more.nuslerp(base, models, 0.3),
    "multislerp": lambda _, base, models: oracle_more.multislerp(None, models, MULTISLERP_WEIGHTS),
    "multislerp_base": lambda _, base, models: oracle_more.multislerp(base, models, MULTISLERP_WEIGHTS),
    "nearswap": lambda _, base, models: oracle_more.nearswap(base, models[0], 0.0005),
    "sce": lambda at, base, models: oracle_more.sce(base, models, 0.5, at.exact),
    "arcee_fusion": lambda at, base, models: oracle_more.arcee_fusion(base, models[0], at.row),
    "ram": lambda _, base, models: oracle_more.ram(base, models),
    "ramplus": lambda _, base, models: oracle_more.ram(base, models, r=1.0),
    "sparse_task_arithmetic, magnitude": lambda at, base, models: oracle_more.sparse(
        base, models, 0.5, 0.0, PEER_WEIGHTS, at.exact
    ),
    "sparse_task_arithmetic, outliers": lambda at, base, models: oracle_more.sparse(
        base, models, 0.5, DROP_TOP, PEER_WEIGHTS, at.exact
    ),
    "passthrough": lambda _, base, models: oracle_more.copied(models[0]),
}


def _ties_model(base: Tensors, models: list[Tensors]) -> Oracle:
    thresholds = oracle.model_thresholds(base, models, 0.5)
    return lambda _, base, models: oracle.ties_at(base, models, thresholds)


def _lt_sft(base: Tensors, models: list[Tensors]) -> Oracle:
    formula = oracle_more.lt_sft(oracle.model_thresholds(base, models, 0.1))
    return lambda _, base, models: formula(base, models)


def _emr(base: Tensors, models: list[Tensors]) -> Oracle:
    formula = oracle_more.emr(base, models, 2)
    return lambda _, base, models: formula(base, models)


def _flag(base: Tensors, models: list[Tensors]) -> Oracle:
    formula = oracle_more.flag(base, models)
    return lambda _, base, models: formula(base, models)


def _pcb(base: Tensors, models: list[Tensors]) -> Oracle:
    found = oracle_more.pcb(base, models, 0.1, PCB_CLIP)
    return lambda at, base, models: found[at.name]


WHOLE: dict[str, WholeOracle] = {
    "ties, scope model": _ties_model,
    "lt_sft": _lt_sft,
    "emr": _emr,
    "flag": _flag,
    "pcb": _pcb,
}


def _dare(at: Place, got: Floats, base: Floats, models: list[Floats]) -> Expected:
    expected, shares = oracle.dare(got, base, models, 0.5)
    if base.size > oracle_chance.MANY and max(abs(share - 0.5) for share in shares) > oracle_chance.KEPT:
        raise ValueError(f"keeps {shares} of the three task vectors, expected 0.5")
    return expected


def _della(election: bool, rescale: bool) -> ChanceOracle:
    def formula(at: Place, got: Floats, base: Floats, models: list[Floats]) -> Expected:
        vectors = oracle.differences(base, models)
        chances = [oracle_chance.row_chances(vector, at.row, 0.5, 0.1) for vector in vectors]
        return oracle_chance.thinned(got, base, models, chances, election, rescale)

    return formula


def _random(at: Place, got: Floats, base: Floats, models: list[Floats]) -> Expected:
    chances = [np.full(base.shape, 0.5) for _ in models]
    return oracle_chance.thinned(got, base, models, chances, election=True, rescale=True)


CHANCE: dict[str, ChanceOracle] = {
    "dare": _dare,
    "dare_ties": lambda _, got, base, models: oracle.dare(got, base, models, 0.5, mean=True)[0],
    "della": _della(election=True, rescale=True),
    "della_linear": _della(election=False, rescale=False),
    "sparse_task_arithmetic, random": _random,
}


def check(work: Work, data: Path, result: Path, peer: Path | None = None) -> dict[str, float] | None:
    """Compare a result with the oracle or, if `peer` is given, with mergekit's result.

    Returns:
        The figures of `Agreement`, or None where there is no oracle at this size.

    Raises:
        ValueError: They do not agree.
    """
    base, got = Tensors(data / (work.base or "base")), Tensors(result)
    models = [Tensors(data / model) for model in work.models]
    other = Tensors(peer) if peer else None
    if {n: base.shape(n) for n in base.places} != {n: got.shape(n) for n in got.places}:
        raise ValueError(f"{work.name}: the result's names or shapes are not those of the base")
    found = Agreement()
    formula = _formula(work, base, models, got)
    if formula is None:
        return None
    layers = 1 + max(int(name.split(".")[2]) for name in base.places if name.startswith("model.layers."))
    for name in oracle.sample(base, SMALL):
        at = Place(name, base.shape(name)[-1], layers, exact=other is None)
        try:
            expected = formula(at, base.values(name), [model.values(name) for model in models])
        except ValueError as fault:
            raise ValueError(f"{work.name}: {name} {fault}") from fault
        if other:
            slack = PEER_SUMS if work.method.removesuffix("_base") in SUMMED else 1.0
            values = other.values(name).astype(np.float64)
            expected = replace(expected, values=values, scale=expected.scale * slack)
        found.add(got.bits(name), expected)
    return _assert(work, found, "mergekit's result" if peer else "the oracle's")


def _formula(work: Work, base: Tensors, models: list[Tensors], got: Tensors) -> Oracle | None:
    """Return the formula for one merge, or None where there is none at this size."""
    if work.name in CHANCE:
        chance = CHANCE[work.name]
        return lambda at, base, models: chance(at, got.values(at.name), base, models)
    if work.name in WHOLE:
        small = sum(place[2] for place in base.places.values()) <= SMALL
        return WHOLE[work.name](base, models) if small else None
    return ORACLES[work.name]


def _assert(work: Work, found: Agreement, what: str) -> dict[str, float]:
    """Return the figures, or complain."""
    figures = found.as_dict()
    if figures["beyond_one_unit"] or figures["differing_share"] > DIFFERING:
        raise ValueError(f"{work.name}: the result is not {what}: {figures}")
    return figures
