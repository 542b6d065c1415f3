"""The page of a comparison: how far two models lie apart, by depth, by kind and by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

from markupsafe import Markup

from weightsmith.compare import Comparison, Row
from weightsmith.distance import Distance, add_distances
from weightsmith.report.charts import Bar, columns, lines
from weightsmith.report.depth import depth_of
from weightsmith.report.heat import fit, flatten, heat_map
from weightsmith.report.page import Page, Section, Tile, folded, titled
from weightsmith.report.svg import powers
from weightsmith.report.table import Column, table
from weightsmith.report.text import cosine, count, figure, percent, place, short


def comparison_page(found: Comparison) -> Page:
    """Return the page of what `compare` found."""
    total, rows = found.total, found.rows
    differing = sum(not row.is_identical for row in rows)
    return Page(
        title=f"{short(place(found.a), 60)} beside {short(place(found.b), 60)}",
        lead=found.verdict().capitalize() + ".",
        tiles=(
            Tile("Tensors in both", count(len(rows)), f"{count(differing)} of them differ"),
            Tile(
                "Numbers that differ", percent(total.differing / max(1, total.elements)), f"of {count(total.elements)}"
            ),
            Tile("Relative difference", percent(total.relative), "length of B − A over that of A"),
            Tile("Cosine", cosine(total.cosine), "between A and B"),
            Tile("Largest difference", figure(total.max_difference), f"mean {figure(total.mean_difference)}"),
            Tile("Only in one", count(len(found.only_a) + len(found.only_b)), "tensors that the other lacks"),
        ),
        sections=(
            *distance_sections(
                rows, f"How far B lies from A, as a share of A's length. A is {found.a}, B is {found.b}."
            ),
            tensors_section(rows),
            *_names(found),
            *_notes(found.notes),
        ),
    )


def distance_sections(rows: Sequence[Row], about: str) -> Iterator[Section]:
    """Yield sections on how far the numbers lie apart by depth, by kind and over the tensors; none without numbers."""
    measured = [(row.name, row.distance) for row in rows if row.distance is not None]
    if not any(distance.differing for _, distance in measured):
        return
    depth = depth_of(measured, add_distances)
    relative = [_finite(part["value"].relative) for part in depth.layers]
    by_kind = depth.by_kind(lambda cell: _finite(cell["value"].relative))
    share = depth.by_kind(lambda cell: cell["value"].differing / max(1, cell["value"].elements))
    pictures = [
        lines(depth.labels, {"all kinds": relative}, percent, about="Relative difference by depth", axis="layer"),
        titled(
            "By layer and kind",
            heat_map(depth.kinds, depth.labels, by_kind, fit(flatten(by_kind), percent), measure="relative difference"),
        ),
        titled(
            "Numbers that differ",
            heat_map(
                depth.kinds, depth.labels, share, fit(flatten(share), percent), measure="share of numbers that differ"
            ),
        ),
    ]
    yield Section("Difference by depth", about, tuple(pictures))
    yield Section(
        "How the tensors spread", "Tensors by their relative difference.", (_histogram([d for _, d in measured]),)
    )


def tensors_section(rows: Sequence[Row]) -> Section:
    """Return the table of all tensors that both have."""
    heads = (
        Column("tensor"),
        Column("dtype"),
        Column("shape"),
        Column("relative", percent, "length of the difference over that of the first"),
        Column("largest", figure, "largest difference"),
        Column("mean", figure, "mean difference"),
        Column("norm A", figure),
        Column("norm B", figure),
        Column("cosine", cosine),
        Column("differ", percent, "share of numbers, or of bytes, that differ"),
    )
    return Section("Tensors", "A click on a heading sorts.", (table(heads, [_cells(r) for r in rows], sortable=True),))


def _cells(row: Row) -> tuple[object, ...]:
    dtype = " | ".join(dict.fromkeys(row.dtypes))
    shape = " | ".join(dict.fromkeys(" × ".join(map(str, s)) or "–" for s in row.shapes))
    d = row.distance
    if d is None:
        nbytes = None if row.differing_bytes is None else row.differing_bytes / max(1, math.prod(row.shapes[0]))
        return row.name, dtype, shape, *[None] * 6, None if nbytes is None else min(1.0, nbytes)
    figures = (d.relative, d.max_difference, d.mean_difference, d.norm_a, d.norm_b, d.cosine)
    return row.name, dtype, shape, *figures, d.differing / max(1, d.elements)


def _histogram(distances: Sequence[Distance]) -> Markup:
    """Count tensors by their relative difference, in steps of half a power of ten."""
    values = [d.relative for d in distances if 0 < d.relative < math.inf]
    edges = powers(values)
    steps = list(dict.fromkeys(chain.from_iterable((edge, edge * math.sqrt(10)) for edge in edges[:-1])))
    equal = sum(d.relative == 0 for d in distances)
    found = [Bar("0", equal, "reference", about="equal")]
    for i, low in enumerate(steps):
        high = steps[i + 1] if i + 1 < len(steps) else edges[-1] * 1.000001
        inside = sum(low <= v < high for v in values)
        found.append(Bar(percent(low), inside, about=f"from {percent(low)} to {percent(high)}"))
    return columns(found, count, about="Tensors by relative difference", axis="relative difference, from")


def _names(found: Comparison) -> Iterator[Section]:
    parts = [
        folded(f"{len(names):,} only in {side}", table((Column("tensor"),), [(name,) for name in names]))
        for side, names in (("A", found.only_a), ("B", found.only_b))
        if names
    ]
    if parts:
        yield Section("Tensors that only one has", "", tuple(parts))


def _notes(notes: Sequence[str]) -> Iterator[Section]:
    if notes:
        yield Section("Notes", "", tuple(Markup("<p>{}</p>").format(note) for note in notes))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
