"""LoRA adapters of one base into one, exactly on their products: concatenation, or truncation through QR of the factors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.adapt.drift import distances
from weightsmith.adapt.overlay import Copies, Part, find_parts, find_saved, lay_over
from weightsmith.adapt.publish import Adapter, Draft, Factor, Factored, publish
from weightsmith.adapt.ranks import RankRule, choose_ranks, largest_ranks, make_rule, stored_size
from weightsmith.arguments import Choice, Reals
from weightsmith.budget import Demand, choose_limits, usable_threads
from weightsmith.checkpoint.adapter_write import CONFIG_NAME, Target
from weightsmith.checkpoint.auxiliary import public_name
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.folder import read_config
from weightsmith.checkpoint.read import fingerprint, open_checkpoint
from weightsmith.device import Device
from weightsmith.distance import reporter
from weightsmith.engine.stream import Job, Stream, Worker
from weightsmith.engine.whole import numbers
from weightsmith.errors import ArgumentError, MismatchError, raise_all, shown
from weightsmith.plan import Options
from weightsmith.recipe import DTYPES
from weightsmith.run import Progress, check_place
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.spectral import of_product
from weightsmith.tensor.truncation import norm_of_product, singular_values_of_product

VERB = "merge-adapters"
ABOUT = "LoRA adapters of one base were merged on their products"
WAYS = ("concat", "svd")
WHOLE_MODELS = (
    "merge whole models: weightsmith merge task_arithmetic --base BASE --model BASE+A1 --model BASE+A2 --out OUT"
)


@dataclass(frozen=True)
class AdapterMerge:
    """What will be merged, from headers alone.

    Attributes:
        base: What all adapters belong to.
        inputs: The base with each adapter laid over it.
        coefficients: One per adapter.
        by: "concat" or "svd".
        rule: How much is kept; None for all.
        parts: Of each tensor, those of the adapters that change it.
        saved: Tensors that all adapters replace as a whole, by the first one's.
        copies: What must hold the same numbers.
        dtype: Stored dtype of the factors, a safetensors name.
        job: What the engine needs.
        notes: What the user should know.
    """

    base: Checkpoint
    inputs: tuple[Checkpoint, ...]
    coefficients: tuple[float, ...]
    by: str
    rule: RankRule | None
    parts: Mapping[Target, tuple[Part, ...]]
    saved: Mapping[str, Entry]
    copies: tuple[Copies, ...]
    dtype: str
    job: Job
    notes: tuple[str, ...]

    @property
    def ranks(self) -> dict[Target, int]:
        """The largest rank that each tensor can get; with concatenation, its rank."""
        total = {t: sum(p.update.down.shape[0] for p in parts) for t, parts in self.parts.items()}
        if self.by == "concat" or self.rule is None:
            return total
        most = largest_ranks(self.rule, [*total], self.dtype)
        return {t: min(total[t], most[t]) for t in total}

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "base": self.base.reference,
            "adapters": [
                {"adapter": c.reference, "coefficient": x} for c, x in zip(self.inputs, self.coefficients, strict=True)
            ],
            "by": self.by,
            "targets": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "stored": t.kind,
                    "ranks": [p.update.down.shape[0] for p in self.parts[t]],
                    "largest_rank": rank,
                }
                for t, rank in self.ranks.items()
            ],
            "saved": list(self.saved),
            "largest_bytes": stored_size(self.ranks, self.dtype) + sum(e.nbytes for e in self.saved.values()),
            "peak_bytes": self.job.limits.peak_bytes,
            "threads": self.job.limits.threads,
            "notes": list(self.notes),
        }


def merge_adapters(
    adapters: Sequence[str | Path],
    *,
    base: str | Path,
    out: str | Path,
    coefficients: Sequence[float] | None = None,
    by: str = "concat",
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Adapter:
    """Merge LoRA adapters of one base into one adapter, on the products and not on the factors.

    With s_t the scale of adapter t (alpha / rank, with rsLoRA alpha / sqrt(rank)) and c_t its coefficient:

        B @ A = sum_t c_t s_t B_t @ A_t        concat: B = [c_1 s_1 B_1, c_2 s_2 B_2, ...], A = [A_1; A_2; ...]
                                               svd: the leading singular triplets of that, by QR of these factors

    An adapter that leaves a tensor as it is counts as zero there. What adds up on products adds up in every layer's output.

    Args:
        adapters: Folders that PEFT saved, of any ranks, scales and targets.
        base: What they were trained from; only its headers are read.
        out: The new folder.
        coefficients: c_t, one per adapter; 1 each by default.
        by: "concat", exact, of rank sum_t rank_t; or "svd".
        rank: With svd: the rank of every tensor, at most.
        energy: Or: the smallest rank that keeps this share of the squared singular values, for each tensor.
        dtype: Of the factors; with one narrower than float32 the products are rounded, and the residual says by how much.
        options: Memory, threads, symbolic links.
        force: Replace an older output, once the new one is complete.
        progress: Called with (stage, done, in all).

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    Tensors that adapters replace as a whole (modules_to_save) must be the same bytes in all.
    Cost: (rows + columns) k^2 for each tensor, k the sum of its ranks; no product is formed.

    The same on the command line: weightsmith merge-adapters --base B --adapter A1 --adapter A2 --out OUT
    """
    plan = plan_adapters(
        adapters, base=base, coefficients=coefficients, by=by, rank=rank, energy=energy, dtype=dtype, options=options
    )
    return execute_adapters(plan, Path(out), force=force, progress=progress)


def plan_adapters(
    adapters: Sequence[str | Path],
    *,
    base: str | Path,
    coefficients: Sequence[float] | None = None,
    by: str = "concat",
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
    options: Options | None = None,
) -> AdapterMerge:
    """Open the base and all adapters and say what will be done; see `merge_adapters`."""
    options = options or Options()
    stored = DTYPES[Choice(tuple(DTYPES)).check(dtype, "dtype", VERB)]
    if Choice(WAYS).check(by, "by", VERB) == "concat" and (rank is not None or energy is not None):
        raise ArgumentError(f"{VERB}: concat keeps all", expected="no rank and no energy", do="Pass --by svd with them")
    rule = make_rule(VERB, rank, energy) if by == "svd" else None
    factors = _coefficients(adapters, coefficients)
    opened = open_checkpoint(base, follow_symlinks=options.follow_symlinks)
    inputs = lay_over(opened, [Path(a) for a in adapters], VERB, options)
    faults: list[str] = []
    parts = find_parts(opened, inputs, factors, faults)
    saved, copies = find_saved(opened, inputs, faults)
    if not parts and not faults:
        faults.append("with these coefficients the result changes 0 tensors")
    if faults:
        raise_all(faults, MismatchError, f"{VERB} on '{shown(opened.reference)}'", f"Leave it out, or {WHOLE_MODELS}")
    notes = dict.fromkeys([n for c in (opened, *inputs) for n in c.notes] + _notes(opened, adapters, saved))
    job = _job(opened, inputs, parts, options)
    return AdapterMerge(opened, inputs, factors, by, rule, parts, saved, copies, stored, job, tuple(notes))


def _coefficients(adapters: Sequence[str | Path], given: Sequence[float] | None) -> tuple[float, ...]:
    if isinstance(adapters, str | Path) or not adapters:
        raise ArgumentError(f"{VERB}: adapters", expected="a list of folders", got="none or one name")
    names = [str(a) for a in adapters]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ArgumentError(f"{VERB}: adapter '{shown(twice)}' is given more than once", do="Give it one coefficient")
    factors = Reals().check([1.0] * len(names) if given is None else given, "coefficients", VERB)
    if len(factors) != len(names):
        raise ArgumentError(f"{VERB}: coefficients", expected=f"one per adapter, {len(names)}", got=str(len(factors)))
    return factors


def _notes(base: Checkpoint, adapters: Sequence[str | Path], saved: Mapping[str, Any]) -> list[str]:
    notes = []
    known = {public_name(base.reference), public_name(str(base.config.get("_name_or_path") or base.reference))}
    for folder in adapters:
        named = read_config(Path(folder).expanduser() / CONFIG_NAME).get("base_model_name_or_path")
        if isinstance(named, str) and named and public_name(named) not in known:
            told = f"adapter '{shown(folder)}' says that its base is '{shown(named)}'"
            notes.append(f"{told}; names and shapes fit '{shown(base.reference)}'")
    if saved:
        notes.append(f"{len(saved)} tensors of modules_to_save are taken as they are; no coefficient applies to them")
    return notes


def _job(
    base: Checkpoint, inputs: Sequence[Checkpoint], parts: Mapping[Target, Sequence[Part]], options: Options
) -> Job:
    sizes = [t.cost * sum(p.update.down.shape[0] for p in found) for t, found in parts.items()]
    demand = Demand(
        inputs=1,
        entries=len(base.tensors) * (1 + len(inputs)),
        itemsize=8,
        matrix_bytes=48 * max(sizes),  # the factors, their QR, the result, and its distance from them
    )
    limits = choose_limits(demand, options.memory_bytes, options.threads or usable_threads())
    return Job(None, 0, "float64", limits, Device())


def execute_adapters(
    plan: AdapterMerge, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Adapter:
    """Run a plan into `out`; see `merge_adapters`."""
    began = time.perf_counter()
    inputs = (plan.base, *plan.inputs)
    check_place(out, inputs, plan.summary()["largest_bytes"], force=force)
    before = [fingerprint(c) for c in inputs]
    _check_copies(plan, progress)
    targets = [*plan.parts]
    size = sum(t.nbytes for t in targets)
    with Stream(plan.job, 1) as stream, threadpool_limits(1, "blas"):
        if plan.rule is None:
            ranks = plan.ranks
        else:
            spectrum = _spectrum(plan, stream.tile)
            chosen = choose_ranks(
                plan.rule, targets, plan.dtype, stream, spectrum, reporter("decompose", size, progress)
            )
            ranks = {t: min(rank, plan.ranks[t]) for t, rank in chosen.items() if rank}
        if not ranks:
            raise MismatchError(f"{VERB}: the products add up to zero", expected="an adapter that changes a tensor")
        parameters = {
            "base": plan.base.reference,
            "adapters": [c.reference for c in plan.inputs],
            "coefficients": list(plan.coefficients),
            "by": plan.by,
            **({k: v for k, v in vars(plan.rule).items() if v is not None} if plan.rule else {}),
            "dtype": next(name for name, stored in DTYPES.items() if stored == plan.dtype),
        }
        saved = plan.saved
        draft = Draft(
            VERB, ABOUT, parameters, plan.base, inputs, before, ranks, plan.dtype, saved, notes=plan.notes, began=began
        )
        report = reporter("merge", size + sum(e.nbytes for e in saved.values()), progress)
        return publish(draft, out, stream, _factor(plan, stream.tile), report)


def _check_copies(plan: AdapterMerge, progress: Progress | None) -> None:
    """Refuse tensors that adapters replace by different ones."""
    pairs = {str(i): (c.kept, c.other) for i, c in enumerate(plan.copies)}
    faults = [
        f"'{shown(copies.adapter)}' replaces '{shown(copies.name)}' as a whole (modules_to_save), by other numbers than"
        f" {'the other adapters' if copies.name in plan.saved else 'those of the base, which other adapters keep'}"
        for copies, found in zip(plan.copies, distances(pairs, plan.job, progress).values(), strict=True)
        if found.differing
    ]
    if faults:
        raise_all(faults, MismatchError, VERB, f"Leave that adapter out, or {WHOLE_MODELS}")


def _product(plan: AdapterMerge, tile: int, worker: Worker, target: Target) -> tuple[Array, Array]:
    """Return left (rows, k) and right (k, columns), float64, whose product is the sum of all updates."""
    downs, ups = [], []
    for part in plan.parts[target]:
        downs.append(numbers(worker, tile, part.update.down))
        ups.append(numbers(worker, tile, part.update.up) * part.scale)
    down, up = np.concatenate(downs), np.concatenate(ups, 1)
    return (down.T, up.T) if target.is_turned else (up, down)


def _spectrum(plan: AdapterMerge, tile: int) -> Callable[[Worker, Target], Array]:
    return lambda worker, target: singular_values_of_product(*_product(plan, tile, worker, target))


def _factor(plan: AdapterMerge, tile: int) -> Factor:
    def factor(worker: Worker, target: Target, rank: int) -> Factored:
        left, right = _product(plan, tile, worker, target)

        def distance(stored_left: Array, stored_right: Array) -> float:
            return norm_of_product(np.hstack([left, -stored_left]), np.vstack([right, stored_right]))

        norm = norm_of_product(left, right)
        if plan.rule is None:
            return Factored(left, right, norm, distance)
        found = of_product(left, right, rank)
        root = np.sqrt(found.values)
        return Factored(found.left * root, root[:, None] * found.right, norm, distance)

    return factor
