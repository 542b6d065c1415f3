"""What a localization found: one object, plain data, and names of tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.display import Pictured
from weightsmith.distance import plain_number
from weightsmith.errors import ArgumentError, shown
from weightsmith.localization.lineage import Kinship, judge
from weightsmith.localization.measuring import Pairs
from weightsmith.localization.part import Part, Real, by_cell, by_kind, by_layer, pairwise, together
from weightsmith.localization.scoring import Behavior, Choice
from weightsmith.localization.whole import Convolution, Spectrum
from weightsmith.localize.sensitivity import allocate

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, eq=False)
class Localization(Pictured):
    """Where tasks lie in the weights, and how they get in each other's way.

    Attributes:
        base: Reference of the base.
        models: References of the models.
        tasks: Short names, one per model.
        by: What made the masks: "tall_masks", a localizer, or "given".
        method: The merge whose vector the masks are for; None where a merged model was given.
        merged: That model's reference; None for a method.
        parameters: Of the method and of the localizer.
        lambdas: Of the TALL-masks, per task; None for other masks.
        trim: Density of the trimmed task vectors; None where none were.
        passes: How often the models were read.
        tensors: What was measured, tensor by tensor.
        pairs: Signs of each pair of tasks.
        inputs: Reference, and files with sizes and digests of headers, of base, models and, where given, merged model and masks.
        not_compared: Tensors that were left out, and why.
        notes: What the user should know.
        spectra: Of matrices; None where not asked for.
        convolutions: Their health; None where not asked for.
        choices: How lambdas were chosen by scores; None where they were given.
        behaviors: Scores behind the masks; None without a score.
        masks: Folder of the masks; None where none were written.
    """

    base: str
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    by: str
    method: str | None
    merged: str | None
    parameters: Mapping[str, Any]
    lambdas: tuple[float, ...] | None
    trim: float | None
    passes: int
    tensors: tuple[Part, ...]
    pairs: Pairs
    inputs: tuple[Mapping[str, Any], ...]
    not_compared: Mapping[str, str]
    notes: tuple[str, ...] = ()
    spectra: tuple[Spectrum, ...] | None = None
    convolutions: tuple[Convolution, ...] | None = None
    choices: tuple[Choice, ...] | None = None
    behaviors: tuple[Behavior, ...] | None = None
    masks: Path | None = None

    @cached_property
    def model(self) -> Part:
        """All tensors together."""
        return together("model", self.tensors)

    @cached_property
    def layers(self) -> tuple[Part, ...]:
        """Layer by layer, in order of depth; what lies outside goes by kind."""
        return by_layer(self.tensors)

    @cached_property
    def kinds(self) -> tuple[Part, ...]:
        """Kind by kind."""
        return by_kind(self.tensors)

    @cached_property
    def cells(self) -> tuple[Part, ...]:
        """Each kind of each layer."""
        return by_cell(self.tensors)

    def conflict(self, *, trimmed: bool = False) -> Real | None:
        """Return for each pair of tasks the share of entries with different signs, of those both moved, (T, T)."""
        both, opposed = self.pairs[2:] if trimmed else self.pairs[:2]
        if both is None or opposed is None:
            return None
        shares = np.divide(opposed, both, out=np.zeros(len(both)), where=both > 0)
        found: Real = pairwise(shares, np.zeros(len(self.tasks)))
        return found

    def allocation(self) -> list[dict[str, str]] | None:
        """Return for each task how SPT trains each tensor, by name; None for masks of another kind than "sensitivity"."""
        if self.by != "sensitivity":
            return None
        shapes = {p.name: p.shape or () for p in self.tensors}
        return [allocate({p.name: int(p.selected[t]) for p in self.tensors}, shapes) for t in range(len(self.tasks))]

    def lineage(self) -> list[dict[str, Any]]:
        """Return for each model whether it was trained from the base, with the evidence, as `weightsmith.lineage` judges it."""
        by_tensor = [_kinships(part) for part in self.tensors]
        found = []
        for task, total, *kin in zip(self.tasks, _kinships(self.model), *by_tensor, strict=True):
            verdict, middle = judge(kin)
            found.append(
                {
                    "task": task,
                    "verdict": verdict,
                    "equal": total.equal / max(total.elements, 1),
                    "cosine": total.cosine,
                    "relative": total.relative,
                    "median_cosine": middle,
                }
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        whole = self.model
        matrices = {
            "cosine": whole.cosine,
            "jaccard": whole.jaccard,
            "overlap": whole.overlap,
            "chance": whole.chance,
            "conflict": self.conflict(),
            "conflict_trimmed": self.conflict(trimmed=True),
        }
        convolutions = self.convolutions
        return {
            "format": 1,
            "base": self.base,
            "models": list(self.models),
            "tasks": list(self.tasks),
            "by": self.by,
            "method": self.method,
            "merged": self.merged,
            "parameters": dict(self.parameters),
            "lambdas": None if self.lambdas is None else list(self.lambdas),
            "trim": self.trim,
            "passes": self.passes,
            "notes": list(self.notes),
            "inputs": list(self.inputs),
            "not_compared": dict(self.not_compared),
            "model": whole.summary(),
            "layers": [p.summary() for p in self.layers],
            "kinds": [p.summary() for p in self.kinds],
            "cells": [p.summary() for p in self.cells],
            "tensors": [p.summary() for p in self.tensors],
            "matrices": {name: None if m is None else m.tolist() for name, m in matrices.items()},
            "spectra": None if self.spectra is None else [s.summary() for s in self.spectra],
            "filters": None if convolutions is None else [c.summary(self.tasks) for c in convolutions],
            "lineage": self.lineage(),
            "choice": None if self.choices is None else [c.summary() for c in self.choices],
            "behavior": None if self.behaviors is None else [b.summary() for b in self.behaviors],
            "masks": None if self.masks is None else str(self.masks),
            "allocation": self.allocation(),
        }


def _kinships(part: Part) -> list[Kinship]:
    """Return for each model how near its tensor is to the base's, from inner products of base and task vectors."""
    base, along, moved = part.gram[0, 0], part.gram[0, 2:], np.diagonal(part.gram)[2:]
    squares = base * np.maximum(base + 2 * along + moved, 0)
    cosine = np.divide(base + along, np.sqrt(squares), out=np.full(len(along), np.nan), where=squares > 0)
    relative = np.sqrt(moved / base) if base > 0 else np.where(moved > 0, np.nan, 0.0)
    rows = zip(part.unchanged.tolist(), np.clip(cosine, -1, 1).tolist(), relative.tolist(), strict=True)
    axes = len(part.shape or ())
    return [Kinship(part.name, axes, part.elements, n, plain_number(c), plain_number(r)) for n, c, r in rows]


def named_models(models: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, str]:
    """Return models by the names of their tasks: those given, as a mapping or as TASK=MODEL, or the last parts of references.

    Raises:
        ArgumentError: A name cannot be a folder's, or two are alike.
    """
    if isinstance(models, str | Path):
        raise ArgumentError("localize: models", expected="a list", got=f"'{shown(models)}'", do="Put it in [ ]")
    pairs = [*models.items()] if isinstance(models, Mapping) else [_named(str(m)) for m in models]
    defaults = [re.sub(r"[^A-Za-z0-9._-]+", "-", _last(str(m))).lstrip("-.")[:64] or "task" for _, m in pairs]
    if len(set(map(str.lower, defaults))) < len(defaults):
        defaults = [f"{name[:58]}-{i}" for i, name in enumerate(defaults, 1)]
    names = [default if name is None else str(name) for (name, _), default in zip(pairs, defaults, strict=True)]
    for name in names:
        if not _NAME.fullmatch(name):
            expected = "1 to 64 letters, digits, '.', '_' or '-', the first no '.' or '-'"
            raise ArgumentError("localize: name of a task", expected=expected, got=f"'{shown(name)}'")
    twice = [n for n in names if [*map(str.lower, names)].count(n.lower()) > 1]
    if twice:
        do = "Write --model TASK=MODEL"
        raise ArgumentError(f"localize: task '{twice[0]}' is given twice", expected="a name for each task", do=do)
    return dict(zip(names, (str(m) for _, m in pairs), strict=True))


def _named(text: str) -> tuple[str | None, str]:
    """Part TASK=MODEL; a path that exists, or has a slash before the first '=', is a model without a name."""
    task, mark, model = text.partition("=")
    is_named = mark and model and "/" not in task and "\\" not in task and not os.path.lexists(text)
    return (task, model) if is_named else (None, text)


def _last(reference: str) -> str:
    return os.path.basename(os.path.normpath(re.split("[+#]", reference)[-1] or reference))
