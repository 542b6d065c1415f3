"""Heat maps: rows by columns of colored cells, with a scale beside them; hovering shows each value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from weightsmith.errors import shown
from weightsmith.report.colors import STEPS, step_of
from weightsmith.report.svg import LABEL, Text, label, labels_below, n, picture, text_width
from weightsmith.report.text import short

WIDTH = 900  # of the cells of a map of layers
SMALLEST, LARGEST = 1.5, 56.0  # a cell's side
MATRIX_LABEL = 18  # characters
ALIGNED = 112.0  # maps with short names start at one edge
NUMBERED = 32.0  # a cell this wide holds its number

Values = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """What a color means.

    Attributes:
        low: The value of the first color.
        high: The value of the last.
        text: How a value is written, with its unit.
        around_zero: Whether the scale has a middle at 0, with a color for either sign.
    """

    low: float
    high: float
    text: Text
    around_zero: bool = False

    def color(self, value: float | None) -> str:
        """Return the class of a value's color."""
        if value is None:
            return "none"
        return f"{'d' if self.around_zero else 'c'}{step_of(value, self.low, self.high)}"


def fit(values: Iterable[float | None], text: Text, *, around_zero: bool = False, least: float = 0.0) -> Scale:
    """Return the scale that just holds these values: from 0 or the lowest, whichever is less, or evenly around 0.

    Its end is never less than `least`, so that colors do not make much of what is next to nothing.
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    high = max([*(abs(v) if around_zero else v for v in finite), least] if finite else [1.0])
    low = -high if around_zero else min(0.0, min(finite, default=0.0))
    return Scale(low, high if high > low else low + 1.0, text, around_zero)


def flatten(values: Values) -> list[float | None]:
    """Return the values of all rows in one list."""
    return [value for row in values for value in row]


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Values,
    scale: Scale,
    *,
    measure: str,
    row: str = "",
    column: str = "layer",
) -> Markup:
    """Draw values (rows, columns), wide and low: columns are layers, which may be hundreds.

    Args:
        rows: Labels of the rows, such as kinds of tensors or tasks.
        columns: Labels of the columns.
        values: One sequence per row; None where there is none.
        scale: What the colors mean.
        measure: What a value is, for hovering and for those who cannot see the picture.
        row: What the rows are, such as "task".
        column: What the columns are.
    """
    side = min(LARGEST, max(SMALLEST, math.floor(2 * WIDTH / max(1, len(columns))) / 2))
    cells = _Cells(max(ALIGNED, _label_width(rows)), 0.0, side, 22.0 if len(rows) <= 16 else 15.0)
    bottom = cells.height * len(rows)
    ends = cells.left + side * len(columns)
    parts = [
        _row_labels(rows, cells),
        _colored(values, scale, cells),
        _numbers(values, scale, cells, scale.text),
        labels_below(columns, cells.left + side / 2, side, bottom + 16),
        label((cells.left + ends) / 2, bottom + 33, column),
    ]
    names = [f"{row} {shown(r)}".strip() for r in rows], [f"{column} {shown(c)}" for c in columns]
    return _figure(parts, (max(ends, cells.left + 40) + 24, bottom + 40), cells, names, values, scale, measure)


def matrix(labels: Sequence[str], values: Values, scale: Scale, *, measure: str, numbers: Text | None = None) -> Markup:
    """Draw square values (T, T) between tasks.

    Args:
        labels: The tasks.
        values: One sequence per task; None where there is none.
        scale: What the colors mean.
        measure: What a value is.
        numbers: How a value is written inside a cell, where there is room for it.
    """
    side = float(max(11, min(40, 340 // max(1, len(labels)))))
    names = [short(x, MATRIX_LABEL) for x in labels]
    left, upright = _label_width(names), side < 30
    cells = _Cells(left, left if upright else 0.78 * left + 4, side, side)
    size = min(12.5, side)
    above = [
        Markup('<text font-size="{}" transform="translate({} {}) rotate({})">{}</text>').format(
            n(size), n(left + side * (i + 0.5) + (4 if upright else 3)), n(cells.top - 6), -90 if upright else -52, name
        )
        for i, name in enumerate(names)
    ]
    parts = [
        *above,
        _row_labels(names, cells),
        _colored(values, scale, cells),
        _numbers(values, scale, cells, numbers or scale.text),
    ]
    corner = left + side * len(labels) + (8 if upright else 0.62 * left), cells.top + side * len(labels) + 8
    told = [f"task {shown(x)}" for x in labels]
    return _figure(parts, corner, cells, (told, told), values, scale, measure)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Where the cells stand: the corner of the first, and their size."""

    left: float
    top: float
    width: float
    height: float


def _row_labels(rows: Sequence[str], cells: _Cells) -> Markup:
    size = n(min(13.0, cells.height))
    placed = [
        Markup('<text font-size="{}" x="{}" y="{}" text-anchor="end">{}</text>').format(
            size, n(cells.left - 8), n(cells.top + cells.height * (i + 0.5) + 4), short(name, LABEL)
        )
        for i, name in enumerate(rows)
    ]
    return Markup("").join(placed)


def _colored(values: Values, scale: Scale, cells: _Cells) -> Markup:
    """Draw all cells of one color as one path: thousands of cells stay a small picture."""
    paths: dict[str, list[str]] = {}
    gap = 1.0 if cells.width >= 8 else 0.0
    box = f"h{n(cells.width - gap)}v{n(cells.height - 1)}h-{n(cells.width - gap)}z"
    for i, row in enumerate(values):
        y = n(cells.top + cells.height * i)
        for j, value in enumerate(row):
            paths.setdefault(scale.color(value), []).append(f"M{n(cells.left + cells.width * j)} {y}{box}")
    return Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(color, "".join(boxes)) for color, boxes in sorted(paths.items())
    )


def _numbers(values: Values, scale: Scale, cells: _Cells, text: Text) -> Markup:
    """Write each value in its cell, where there is room."""
    if cells.width < NUMBERED:
        return Markup("")
    written = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None:
                x, y = cells.left + cells.width * (j + 0.5) - 0.5, cells.top + cells.height * (i + 0.5) + 3.5
                told = text(value).removesuffix(" %")
                written.append(label(x, y, told, kind=f"in t{scale.color(value)}"))
    return Markup("").join(written)


def _figure(
    parts: Sequence[Markup],
    corner: tuple[float, float],
    cells: _Cells,
    names: tuple[list[str], list[str]],
    values: Values,
    scale: Scale,
    measure: str,
) -> Markup:
    """Put the parts into one picture, with what hovering tells and the scale beneath."""
    rows, columns = (json.dumps(x, ensure_ascii=False) for x in names)
    told = ";".join("|".join(map(scale.text, row)) for row in values)
    place = " ".join(map(n, (cells.left, cells.top, cells.width, cells.height)))
    extra = Markup(' class="map" data-m="{}" data-r="{}" data-c="{}" data-v="{}" data-at="{}"').format(
        measure, rows, columns, told, place
    )
    mark = Markup('<rect class="mark" width="{}" height="{}" x="-99" y="0"/>').format(
        n(cells.width - 1 if cells.width >= 8 else cells.width), n(cells.height - 1)
    )
    return picture([*parts, mark], *corner, measure, extra=extra, below=_legend(scale, measure))


def _legend(scale: Scale, measure: str) -> Markup:
    kind = "d" if scale.around_zero else "c"
    steps = Markup("").join(
        Markup(f'<rect class="{kind}{i}" x="{8 * i}" width="8" height="10"/>') for i in range(STEPS)
    )
    bar = Markup('<svg width="{w}" height="10" viewBox="0 0 {w} 10" aria-hidden="true">{}</svg>').format(
        steps, w=8 * STEPS
    )
    return Markup('<figcaption class="legend"><span>{}</span><span>{}{}{}</span></figcaption>').format(
        measure, scale.text(scale.low), bar, scale.text(scale.high)
    )


def _label_width(labels: Sequence[str]) -> float:
    return 14 + 1.12 * max(map(text_width, labels), default=0.0)  # names stand in a larger font
