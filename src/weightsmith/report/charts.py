"""Bars, stacked bars, columns, lines and points as inline SVG; every mark carries its value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from weightsmith.errors import shown
from weightsmith.report.depth import mean
from weightsmith.report.svg import Text, grid, label, labels_below, log_ticks, n, nice, picture, share_of
from weightsmith.report.text import short

LINE_COLORS = 8
ROW = 26  # height of a level bar's row
NAME = 26  # characters of its name, at most
LEFT = 70  # where upright axes stand
LETTER = 7.0  # about as wide as one is


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: What it stands for.
        value: Its length, in the chart's unit; from 0.
        kind: The class that colors it.
        note: A few words after its value.
        about: What it stands for, in more words, for whoever hovers.
    """

    label: str
    value: float
    kind: str = "one"
    note: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a scatter plot: its place, its label, the class that colors it."""

    x: float
    y: float
    label: str
    kind: str = "s0"


def bars(rows: Sequence[Bar], text: Text, *, about: str, goal: tuple[float, str] | None = None) -> Markup:
    """Draw one level bar per row, on one axis from 0.

    Args:
        rows: The bars, from the top.
        text: How a value is written.
        about: What the picture shows.
        goal: A value to compare with, drawn as a dashed line, and what it is.
    """
    left, width = _room(r.label for r in rows), 640
    height, head = ROW * len(rows), 24 if goal else 4
    ticks = nice(0.0, max([r.value for r in rows] + ([goal[0]] if goal else []), default=1.0))
    across = [(left + width * tick / ticks[-1], tick) for tick in ticks]
    parts = [_upright("rule", x, 0, height) + label(x, height + 18, text(tick)) for x, tick in across]
    if goal:
        x = left + width * goal[0] / ticks[-1]
        parts.append(_upright("goal", x, -4, height) + label(x, -9, goal[1]))
    for i, bar in enumerate(rows):
        length = width * bar.value / ticks[-1]
        parts.append(
            Markup(
                '<g transform="translate(0 {})"><title>{}: {}</title>{}'
                '<rect class="{}" x="{}" y="6" width="{}" height="14" rx="2"/>'
                '<text class="value" x="{}" y="17.5">{}<tspan class="soft"> {}</tspan></text></g>'
            ).format(
                ROW * i, shown(bar.about or bar.label), text(bar.value), _name(left, bar.label),
                bar.kind, n(left), n(length),
                n(left + length + 8), text(bar.value), bar.note,
            )
        )  # fmt: skip
    return picture(parts, left + width + 130, height + 26 + head, about, top=-head)


def stacks(rows: Sequence[tuple[str, Mapping[str, int]]], text: Text, *, about: str, unit: str = "") -> Markup:
    """Draw one bar per row, divided into shares by kind, with the row's total at its end.

    Args:
        rows: Label and counts by kind, the same kinds in each row; kinds are the classes that color them.
        text: How a share is written.
        about: What the picture shows.
        unit: What is counted.
    """
    left, width = _room(name for name, _ in rows), 640
    parts = []
    for i, (name, counts) in enumerate(rows):
        total, x = sum(counts.values()), left
        row = [_name(left, name)]
        for kind, count in counts.items():
            share = count / max(1, total)
            long = width * share
            if count:
                row.append(
                    Markup(
                        '<g><title>{}: {:,} {} ({})</title><rect class="{}" x="{}" y="4" width="{}" height="18"/>{}</g>'
                    ).format(
                        shown(name), count, kind, text(share), kind, n(x), n(max(0.5, long - 1.5)),
                        label(x + long / 2, 17, text(share), kind=f"inside {kind}") if long > 42 else "",
                    )
                )  # fmt: skip
            x += long
        row.append(label(left + width + 8, 17.5, f"{total:,} {unit}".strip(), anchor="start"))
        parts.append(Markup('<g transform="translate(0 {})">{}</g>').format(ROW * i, Markup("").join(row)))
    return picture(parts, left + width + (140 if unit else 90), ROW * len(rows) + 4, about)


def columns(rows: Sequence[Bar], text: Text, *, about: str, axis: str) -> Markup:
    """Draw one upright bar per row, such as of a histogram; axis says what the labels below are."""
    width, height = 640, 200
    ticks = nice(0.0, max((r.value for r in rows), default=1.0))
    step = min(72.0, width / max(1, len(rows)))
    parts = [grid(ticks, LEFT, step * len(rows), height, text)]
    for i, bar in enumerate(rows):
        tall = height * bar.value / ticks[-1]
        parts.append(
            Markup(
                '<g><title>{}: {}</title><rect class="{}" x="{}" y="{}" width="{}" height="{}"/>'
                '<rect class="clear" x="{}" y="0" width="{}" height="{}"/></g>'
            ).format(
                shown(bar.about or bar.label), text(bar.value),
                bar.kind, n(LEFT + step * (i + 0.08)), n(height - tall), n(0.84 * step), n(tall),
                n(LEFT + step * i), n(step), height,
            )
        )  # fmt: skip
        if step >= 40:
            parts.append(label(LEFT + step * (i + 0.5), height - tall - 5, text(bar.value), kind="value"))
    parts.append(labels_below([b.label for b in rows], LEFT + step / 2, step, height + 17))
    parts.append(label(LEFT + step * len(rows) / 2, height + 36, axis))
    return picture(parts, max(LEFT + step * len(rows), LEFT + 160) + 24, height + 62, about, top=-18)


def lines(
    places: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    text: Text,
    *,
    about: str,
    axis: str,
    log: bool = False,
) -> Markup:
    """Draw one line per series over the places; a place without a value leaves a gap.

    Up to eight series have colors and a key; of more, all are drawn faintly, and their mean in color.

    Args:
        places: Labels along the axis, such as layers.
        series: Values by name, one per place.
        text: How a value is written.
        about: What the picture shows.
        axis: What the places are.
        log: Whether the upright axis is logarithmic; values from 0 down are then left out.
    """
    width, height = 860, 220
    many = len(series) > LINE_COLORS
    drawn = [(name, "faint" if many else f"s{i}", row) for i, (name, row) in enumerate(series.items())]
    if many:
        drawn.append(("mean", "s0 mean", [mean(place) for place in zip(*series.values(), strict=True)]))
    usable = [v for _, _, row in drawn for v in row if v is not None and math.isfinite(v) and (v > 0 or not log)]
    ticks = log_ticks(usable) if log else nice(min(0.0, min(usable, default=0.0)), max(usable, default=1.0))
    step = width / max(1, len(places) - 1)
    parts = [grid(ticks, LEFT, width, height, text, log=log), labels_below(places, LEFT, step, height + 17)]
    for name, kind, row in drawn:
        strokes = _strokes([_height(v, ticks, height, log) for v in row], step, kind)
        told = "|".join(map(text, row))
        parts.append(Markup('<g data-n="{}" data-y="{}">{}</g>').format(shown(name), told, strokes))
    parts += [Markup('<line class="cross" x1="-9" x2="-9" y1="0" y2="{}"/>').format(height)]
    parts += [label(LEFT + width / 2, height + 36, axis)]
    told = json.dumps([f"{axis} {shown(p)}" for p in places], ensure_ascii=False)
    extra = Markup(' class="lines" data-x="{}" data-from="{}" data-step="{:.3f}"').format(told, LEFT, step)
    key = [("s0", "mean"), ("faint", "each")] if many else [(kind, name) for name, kind, _ in drawn]
    return _key(key) + picture(parts, LEFT + width + 24, height + 56, about, top=-12, extra=extra)


def scatter(points: Sequence[Point], *, x: tuple[str, Text], y: tuple[str, Text], about: str) -> Markup:
    """Draw labelled points; x is logarithmic where its values lie further apart than tenfold.

    Args:
        points: The points, at least one.
        x: Name of the level axis, and how its values are written.
        y: The same of the upright axis.
        about: What the picture shows.
    """
    width, height = 700, 300
    xs = [p.x for p in points]
    log = min(xs) > 0 and max(xs) > 10 * min(xs)
    across = log_ticks(xs) if log else nice(min(0.0, min(xs)), max(xs))
    up = nice(min(p.y for p in points), max(p.y for p in points))
    parts = [grid(up, LEFT, width, height, y[1])]
    for tick in across:
        px = LEFT + share_of(tick, across, log) * width
        parts.append(_upright("rule", px, 0, height) + label(px, height + 17, x[1](tick)))
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: -p.y):
        px, py = LEFT + share_of(point.x, across, log) * width, height * (1 - share_of(point.y, up, False))
        below = py + 4
        while any(abs(below - b) < 15 and abs(px - a) < 150 for a, b in taken):
            below += 15
        taken.append((px, below))
        name = short(point.label, NAME)
        fits = px + 9 + LETTER * len(name) < LEFT + width + 40
        side, anchor = (9, "start") if fits else (-9, "end")
        parts.append(
            Markup('<g><title>{}: {} {}, {} {}</title><circle class="{}" cx="{}" cy="{}" r="5"/>{}</g>').format(
                shown(point.label), x[0], x[1](point.x), y[0], y[1](point.y), point.kind, n(px), n(py),
                label(px + side, below, name, kind="value", anchor=anchor),
            )
        )  # fmt: skip
    parts += [label(LEFT + width / 2, height + 36, x[0]), label(4, -14, y[0], anchor="start")]
    return picture(parts, LEFT + width + 40, height + 76, about, top=-30)


def _room(names: Iterable[str]) -> float:
    """Return how far level bars stand from the left edge, to leave room for their names."""
    return 22 + LETTER * max((len(short(name, NAME)) for name in names), default=0)


def _name(left: float, name: str) -> Markup:
    return label(left - 10, 17.5, short(name, NAME), kind="name", anchor="end")


def _upright(kind: str, x: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="{}" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(kind, top, bottom, x=n(x))


def _key(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return the key of colors, where there is more than one."""
    if len(entries) < 2:
        return Markup("")
    spans = [Markup('<span><i class="{}"></i>{}</span>').format(kind, shown(name)) for kind, name in entries]
    return Markup('<div class="key">{}</div>').format(Markup("").join(spans))


def _height(value: float | None, ticks: Sequence[float], height: float, log: bool) -> float | None:
    if value is None or not math.isfinite(value) or (log and value <= 0):
        return None
    return height * (1 - share_of(value, ticks, log))


def _strokes(heights: Sequence[float | None], step: float, kind: str) -> Markup:
    """Return a line for each run of values; a value alone is a point."""
    runs: list[list[tuple[float, float]]] = [[]]
    for i, y in enumerate(heights):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((LEFT + step * i, y))
    strokes = []
    for run in filter(None, runs):
        points = " ".join(f"{n(x)},{n(y)}" for x, y in run)
        if len(run) > 1:
            strokes.append(Markup('<polyline class="{}" points="{}"/>').format(kind, points))
        else:
            strokes.append(
                Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>').format(kind, n(run[0][0]), n(run[0][1]))
            )
    return Markup("").join(strokes)
