"""Numbers as people read them, with their units."""

from __future__ import annotations

import math

from weightsmith.errors import shown

MINUS = "\N{MINUS SIGN}"


def percent(share: float | None) -> str:
    """Return a fraction as percent.

    >>> percent(0.1234), percent(0.00001), percent(None)
    ('12.3 %', '0.001 %', '–')
    """
    if share is None or not math.isfinite(share):
        return _missing(share)
    value = 100 * share
    text = f"{value:.1f} %" if value == 0 or abs(value) >= 0.05 else f"{value:.1g} %"
    return text.replace("-", MINUS, 1) if value < 0 else text


def count(number: float | None) -> str:
    """Return a whole number with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return "–" if number is None else f"{round(number):,}"


def brief(number: int) -> str:
    """Return a large whole number with three digits, in millions (M), billions (B) or trillions (T).

    >>> brief(15_447_296), brief(7_241_732_096), brief(9_999)
    ('15.4 M', '7.24 B', '9,999')
    """
    for size, word in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}"


def figure(value: float | None) -> str:
    """Return a number with three significant digits.

    >>> figure(0.012345), figure(-2.5), figure(123456.0), figure(float("inf"))
    ('0.0123', '−2.5', '1.23e+05', '∞')
    """
    if value is None or not math.isfinite(value):
        return _missing(value)
    return f"{value:.3g}".replace("-", MINUS, 1) if value < 0 else f"{value:.3g}"


def bits(value: float | None) -> str:
    """Return a number of bits with two places.

    >>> bits(1.0), bits(None)
    ('1.00', '–')
    """
    return "–" if value is None else f"{value:.2f}"


def cosine(value: float | None) -> str:
    """Return a number near 0 or 1 with as many places as tell it from 1.

    >>> cosine(0.25), cosine(0.99999912), cosine(1.0), cosine(-0.001)
    ('0.250', '0.9999991', '1.000', '−0.001')
    """
    if value is None or not math.isfinite(value):
        return _missing(value)
    near = 0.99 <= abs(value) < 1
    text = f"{abs(value):.7f}" if near else f"{abs(value):.3f}" if abs(value) >= 0.01 else f"{abs(value):.2g}"
    return f"{MINUS}{text}" if value < 0 else text


def size(nbytes: float | None) -> str:
    """Return bytes in the largest fitting decimal unit.

    >>> size(16_060_522_496), size(12), size(None)
    ('16.1 GB', '12 B', '–')
    """
    if nbytes is None:
        return "–"
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def short(text: object, length: int) -> str:
    """Return text fit for a picture's label: safe, and cut in its middle where it is longer.

    >>> short("model.layers.3.mlp", 9), short("ties", 9)
    ('mode….mlp', 'ties')
    """
    safe = shown(text)
    if len(safe) <= length:
        return safe
    tail = (length - 1) // 2
    return f"{safe[: length - 1 - tail]}…{safe[len(safe) - tail :]}"


def place(reference: str) -> str:
    """Return the last part of a path, and a hub id as it is.

    >>> place("/models/base/"), place("org/base")
    ('base', 'org/base')
    """
    if reference.startswith(("/", ".", "~")) or reference.count("/") > 1 or "\\" in reference:
        return reference.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return reference


def _missing(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else "∞" if value > 0 else f"{MINUS}∞"
