"""The merges that are measured: their options, the models they read, their peer recipe and their oracle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import oracle
from oracle import Agreement, Expected, Floats, Tensors

FINETUNED = ("ft1", "ft2", "ft3")
SMALL = 50_000_000  # parameters; below, every tensor is compared, and whole-model thresholds are computed
DIFFERING = 0.01  # share of entries that may round to the neighboring bfloat16 number

# name, base, models -> what the result should be; `name` is the tensor's
Oracle = Callable[[str, Floats, list[Floats]], Expected]


@dataclass(frozen=True)
class Work:
    """One merge.

    Attributes:
        name: As it appears in the table.
        method: The method's name on weightsmith's command line.
        models: Folders given as --model, in order.
        base: Whether --base is given (and so read).
        options: Further options.
        peer: Lines of mergekit's recipe before `models:`, or None where it has no such method.
        peer_parameters: Per-model parameters of that recipe.
        peer_base: Which folder is the recipe's base_model, if any.
    """

    name: str
    method: str
    models: tuple[str, ...] = FINETUNED
    base: bool = True
    options: tuple[str, ...] = ()
    peer: str | None = None
    peer_parameters: str = ""
    peer_base: str | None = "base"

    def inputs(self) -> tuple[str, ...]:
        """Return the folders this merge reads."""
        return (("base",) if self.base else ()) + self.models

    def arguments(self, data: Path | None) -> list[str]:
        """Return the command's words after `weightsmith`; without a folder, as written in the README."""

        def place(folder: str) -> str:
            return str(data / folder) if data else folder

        words = ["merge", self.method]
        if self.base:
            words += ["--base", place("base")]
        for model in self.models:
            words += ["--model", place(model)]
        return [*words, *self.options]

    def recipe(self, data: Path, exact: bool = False) -> str:
        """Return mergekit's recipe; `exact` computes in float32 and rounds once."""
        lines = ["dtype: float32", "out_dtype: bfloat16"] if exact else ["dtype: bfloat16"]
        lines += [line.strip() for line in (self.peer or "").split(";")]
        if self.peer_base:
            lines.append(f"base_model: {data / self.peer_base}")
        lines.append("models:")
        for model in self.models:
            lines.append(f"  - model: {data / model}")
            if self.peer_parameters:
                lines.append(f"    parameters: {self.peer_parameters}")
        return "\n".join(lines) + "\n"


WORKS = (
    Work(
        "linear",
        "linear",
        base=False,
        peer="merge_method: linear",
        peer_parameters="{weight: 1.0}",
        peer_base=None,
    ),
    Work(
        "task_arithmetic",
        "task_arithmetic",
        options=("--lambda", "0.3"),
        peer="merge_method: task_arithmetic; parameters: {lambda: 0.3, normalize: false}",
        peer_parameters="{weight: 1.0}",
    ),
    Work(
        "slerp",
        "slerp",
        models=FINETUNED[:2],
        base=False,
        options=("--t", "0.5"),
        peer="merge_method: slerp; parameters: {t: 0.5}",
        peer_base="ft1",
    ),
    Work("wise_ft", "wise_ft", models=FINETUNED[:1], options=("--lambda", "0.5")),
    Work("lines", "lines", options=("--beta", "0.5")),
    Work("tall_masks", "tall_masks", options=("--task", "1")),
    Work("consensus", "consensus", options=("--lambda", "0.3")),
    Work("dare", "dare", options=("--density", "0.5", "--seed", "0")),
    Work("dare_ties", "dare_ties", options=("--density", "0.5", "--seed", "0")),
    Work("breadcrumbs", "breadcrumbs", options=("--density", "0.5", "--drop-top", "0.01", "--lambda", "0.3")),
    Work(
        "ties, scope tensor",
        "ties",
        options=("--density", "0.5", "--scope", "tensor"),
        peer="merge_method: ties; parameters: {normalize: true}",
        peer_parameters="{weight: 1.0, density: 0.5}",
    ),
    Work("ties, scope model", "ties", options=("--density", "0.5", "--scope", "model")),
)

# The methods' own defaults, which the command lines above leave out.
LINES_ALPHA = 1.0 / 3.0
MASK_LAMBDA = 0.4


def oracle_of(work: Work, data: Path, layers: int, small: bool, exact: bool = True) -> Oracle | None:
    """Return the formula for one merge, or None where there is none at this size."""
    if work.name == "ties, scope model":
        if not small:
            return None
        tensors = [Tensors(data / model) for model in work.models]
        thresholds = oracle.model_thresholds(Tensors(data / "base"), tensors, 0.5)
        return lambda _, base, models: oracle.ties_at(base, models, thresholds)
    found: dict[str, Oracle] = {
        "linear": lambda _, base, models: oracle.linear(models),
        "task_arithmetic": lambda _, base, models: oracle.task_arithmetic(base, models, 0.3),
        "slerp": lambda _, base, models: oracle.slerp(models[0], models[1], 0.5),
        "wise_ft": lambda _, base, models: oracle.wise_ft(base, models[0], 0.5),
        "lines": lambda name, base, models: oracle.lines(base, models, name, layers, LINES_ALPHA, 0.5),
        "tall_masks": lambda _, base, models: oracle.tall_masks(base, models, 1, MASK_LAMBDA),
        "consensus": lambda _, base, models: oracle.consensus(base, models, 0.3, MASK_LAMBDA),
        "breadcrumbs": lambda _, base, models: oracle.breadcrumbs(base, models, 0.5, 0.01, 0.3),
        "ties, scope tensor": lambda _, base, models: oracle.ties(base, models, 0.5, exact),
    }
    return found.get(work.name)


def check(work: Work, data: Path, result: Path, peer: Path | None = None) -> dict[str, float] | None:
    """Compare a result with the oracle or, if `peer` is given, with mergekit's result.

    Returns:
        The figures of `Agreement`, or None where there is no oracle.

    Raises:
        ValueError: They do not agree.
    """
    base, got = Tensors(data / "base"), Tensors(result)
    other = Tensors(peer) if peer else None
    if {n: base.shape(n) for n in base.places} != {n: got.shape(n) for n in got.places}:
        raise ValueError(f"{work.name}: the result's names or shapes are not those of the base")
    small = sum(place[2] for place in base.places.values()) <= SMALL
    layers = 1 + max(int(name.split(".")[2]) for name in base.places if name.startswith("model.layers."))
    models = [Tensors(data / model) for model in work.models]
    names = oracle.sample(base, SMALL)
    if work.name in ("dare", "dare_ties"):
        return _check_dare(work, base, models, got, names)
    formula = oracle_of(work, data, layers, small, exact=peer is None)
    if formula is None:
        return None
    found = Agreement()
    for name in names:
        expected = formula(name, base.values(name), [model.values(name) for model in models])
        if other:
            expected = replace(expected, values=other.values(name).astype(np.float64))
        found.add(got.bits(name), expected)
    return _assert(work, found, "mergekit's result" if peer else "the oracle")


def _check_dare(
    work: Work, base: Tensors, models: Sequence[Tensors], got: Tensors, names: Sequence[str]
) -> dict[str, float]:
    """Check that each entry is a sum (or mean) of kept task vectors and that half of them were kept."""
    elected = work.name == "dare_ties"
    found = Agreement()
    for name in names:
        expected, shares = oracle.dare(
            got.values(name), base.values(name), [model.values(name) for model in models], 0.5, elected
        )
        found.add(got.bits(name), expected)
        if not elected and expected.values.size > 100_000 and max(abs(share - 0.5) for share in shares) > 0.02:
            raise ValueError(f"{work.name}: {name} keeps {shares} of the three task vectors, expected 0.5")
    return _assert(work, found, "the nearest sum of kept task vectors")


def _assert(work: Work, found: Agreement, what: str) -> dict[str, float]:
    """Return the figures, or complain."""
    figures = found.as_dict()
    if figures["beyond_one_unit"] or figures["differing_share"] > DIFFERING:
        raise ValueError(f"{work.name}: the result is not {what}: {figures}")
    return figures
