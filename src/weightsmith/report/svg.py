"""What all pictures share: coordinates, axes, round numbers, the frame of a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from weightsmith.report.text import short

Text = Callable[[float | None], str]

LABEL = 22  # characters of a label, at most
CHARACTER = 7.2  # width of one
BROAD = 640.0  # wider pictures scroll in a narrow window, not to become too small to read


def n(value: float) -> str:
    """Write a coordinate with as few characters as place it.

    >>> n(12.04), n(0.26)
    ('12', '0.3')
    """
    return f"{value:.1f}".removesuffix(".0")


def text_width(text: str) -> float:
    """Guess a label's width."""
    return CHARACTER * len(short(text, LABEL))


def label(x: float, y: float, text: str, *, kind: str = "soft", anchor: str = "middle") -> Markup:
    """Return a text at a place; anchor is "start", "middle" or "end"."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, n(x), n(y), anchor, text)


def labels_below(labels: Sequence[str], first: float, step: float, y: float) -> Markup:
    """Write the labels of places `step` apart that have room: words at the ends first, then round numbers, other words."""
    room = (max((text_width(x) for x in labels if x.isdigit()), default=0.0) + 16) / step
    every = next(m * 10**p for p in range(9) for m in (1, 2, 5) if m * 10**p >= room)
    ranks = [1 if x.isdigit() else 0 if i in (0, len(labels) - 1) else 2 for i, x in enumerate(labels)]
    order = sorted(range(len(labels)), key=lambda i: ranks[i])
    drawn: dict[int, tuple[float, float]] = {}
    for i in order:
        if labels[i].isdigit() and int(labels[i]) % every:
            continue
        x, half = first + step * i, text_width(labels[i]) / 2 + 3
        if all(x + half <= left or right <= x - half for left, right in drawn.values()):
            drawn[i] = (x - half, x + half)
    return Markup("").join(label(first + step * i, y, short(labels[i], LABEL)) for i in sorted(drawn))


def nice(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers, evenly spaced, from at most low to at least high.

    >>> nice(0.0, 0.93), nice(-3.0, 11.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-5.0, 0.0, 5.0, 10.0, 15.0])
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * i:.12g}") for i in range(first, last + 1)]


def powers(values: Sequence[float]) -> list[float]:
    """Return powers of ten around the values, all above 0; at most seven.

    >>> powers([0.02, 30.0])
    [0.01, 0.1, 1.0, 10.0, 100.0]
    """
    low = math.floor(math.log10(min(values, default=1.0)) + 1e-9)
    high = max(low + 1, math.ceil(math.log10(max(values, default=1.0)) - 1e-9))
    stride = max(1, math.ceil((high - low) / 6))
    return [10.0**p for p in range(low, high + stride, stride)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return values to write along a logarithmic axis: powers of ten, and between few of them their double and fivefold.

    >>> log_ticks([0.2, 0.9])
    [0.1, 0.2, 0.5, 1.0]
    """
    found = powers(values)
    if len(found) > 3:
        return found
    return [*(float(f"{p * m:.12g}") for p in found[:-1] for m in (1, 2, 5)), found[-1]]


def share_of(value: float, ticks: Sequence[float], log: bool) -> float:
    """Return where a value lies between the first and the last tick, from 0 to 1."""
    if log:
        value, first, last = (math.log10(v) for v in (value, ticks[0], ticks[-1]))
        return (value - first) / (last - first)
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def grid(ticks: Sequence[float], left: float, width: float, height: float, text: Text, *, log: bool = False) -> Markup:
    """Draw the level lines of an upright axis, with their values."""
    found = []
    for tick in ticks:
        y = height - share_of(tick, ticks, log) * height
        line = Markup('<line class="rule" x1="{}" x2="{}" y1="{y}" y2="{y}"/>')
        found.append(line.format(n(left), n(left + width), y=n(y)) + label(left - 8, y + 4, text(tick), anchor="end"))
    return Markup("").join(found)


def picture(
    parts: Sequence[Markup],
    width: float,
    height: float,
    about: str,
    *,
    top: float = 0,
    extra: Markup | str = "",
    below: Markup | str = "",
) -> Markup:
    """Return the parts in a frame that is never drawn larger than this.

    Args:
        parts: What is drawn.
        width: Of the frame.
        height: Of the frame.
        about: What the picture shows, for those who cannot see it.
        top: The upper edge, from 0 or above it.
        extra: More attributes.
        below: What stands beneath the picture.
    """
    return Markup(
        '<figure class="wide{broad}"><svg width="{w}" height="{h}" viewBox="0 {top} {w} {h}" role="img"'
        ' aria-label="{about}"{extra}>{parts}</svg>{below}</figure>'
    ).format(
        w=n(width),
        h=n(height),
        top=n(top),
        about=about,
        extra=extra,
        broad=" broad" if width > BROAD else "",
        parts=Markup("").join(parts),
        below=below,
    )
