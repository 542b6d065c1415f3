"""Spectra of task vectors: how fast singular values fall, how many directions count, and where they meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from weightsmith.report.charts import lines
from weightsmith.report.depth import Depth, mean
from weightsmith.report.heat import fit, flatten, heat_map
from weightsmith.report.page import Section, folded, titled
from weightsmith.report.table import Column, table
from weightsmith.report.text import figure, percent

_Spectrum = Mapping[str, Any]


def spectra_section(spectra: Sequence[_Spectrum], tasks: Sequence[str], depth: Depth) -> Section:
    """Return the section on the spectra of a localization's matrices.

    Args:
        spectra: One per matrix, as in a Localization's plain data.
        tasks: The tasks.
        depth: Where layers and kinds stand.
    """
    kinds = list(dict.fromkeys(s["kind"] for s in spectra))
    shown = [
        ("Effective rank", "effective rank as a share of the full one, mean over tasks", _rank_share, percent),
        (
            "Alignment",
            "share of a task vector inside the merged one's leading space, mean over tasks",
            _alignment,
            percent,
        ),
        ("Interference", "singular task interference", lambda s: s["interference"], figure),
    ]
    body = [
        titled("Singular values of the task vectors by kind", _curves(spectra, kinds, "values")),
        titled("Of the merged vector", _curves(spectra, kinds, "values_merged")),
    ]
    for title, measure, value, text in shown:
        grid = _by_kind(spectra, kinds, depth, value)
        if any(v is not None for v in flatten(grid)):
            body.append(titled(title, heat_map(kinds, depth.labels, grid, fit(flatten(grid), text), measure=measure)))
    heads = (
        Column("task"),
        Column("effective rank", figure),
        Column("stable rank", figure),
        Column("alignment", percent),
    )
    rows = [
        [task, *(mean([s[name][t] for s in spectra]) for name in ("effective_rank", "stable_rank", "alignment"))]
        for t, task in enumerate(tasks)
    ]
    body.append(folded("By task, mean over the matrices", table(heads, rows)))
    return Section(
        "Spectra",
        "Singular values as a share of the largest, over their index as a share of all. Effective rank: the exponential of"
        " the entropy of singular values.",
        tuple(body),
    )


def filters_section(filters: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section on the health of convolutions, as in a Localization's plain data."""
    heads = (
        Column("convolution"),
        Column("model"),
        Column("silent filters", percent, "share of filters next to zero"),
        Column("entropy", figure, "of how the filters' variance spreads over its directions"),
        Column("beside random", percent, "entropy over that of random filters"),
        Column("orthogonality", percent, "1 minus the mean magnitude of cosines between filters"),
    )
    names = ("model", "sparsity", "entropy", "entropy_ratio", "orthogonality")
    rows = [[f["name"], *(model[n] for n in names)] for f in filters for model in f["models"]]
    return Section(
        "Filters",
        "The health of convolutions. Entropy far below that of random filters tells of redundant ones.",
        (table(heads, rows, sortable=True),),
    )


def _curves(spectra: Sequence[_Spectrum], kinds: Sequence[str], values: str) -> Markup:
    """Draw a line per kind, the mean over its matrices, at the places of the longest."""
    places = max((s["positions"] for s in spectra), key=len)
    series = {}
    for kind in kinds:
        curves = [_curve(s["positions"], s[values], places) for s in spectra if s["kind"] == kind]
        series[kind] = [mean(column) for column in zip(*curves, strict=True)]
    labels = [percent(p) for p in places]
    return lines(labels, series, percent, about="Singular values by kind", axis="index, as a share of all", log=True)


def _curve(
    positions: Sequence[float], values: Sequence[float | None], places: Sequence[float]
) -> Sequence[float | None]:
    """Return the values at these places, each from the nearest position."""
    if positions == places or not values:
        return values or [None] * len(places)
    nearest = [min((abs(position - p), i) for i, position in enumerate(positions))[1] for p in places]
    return [values[i] for i in nearest]


def _rank_share(spectrum: _Spectrum) -> float | None:
    rank = mean(spectrum["effective_rank"])
    return None if rank is None else rank / min(spectrum["shape"])


def _alignment(spectrum: _Spectrum) -> float | None:
    return mean(spectrum["alignment"])


def _by_kind(
    spectra: Sequence[_Spectrum], kinds: Sequence[str], depth: Depth, value: Callable[[_Spectrum], float | None]
) -> list[list[float | None]]:
    """Return the mean over the matrices of each cell, (kinds, layers)."""
    held: dict[tuple[str, int | None], list[float | None]] = {}
    for spectrum in spectra:
        held.setdefault((spectrum["kind"], depth.place(spectrum)), []).append(value(spectrum))
    return [[mean(held.get((kind, i), [])) for i in range(len(depth.layers))] for kind in kinds]
