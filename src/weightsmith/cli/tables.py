"""Plain text for people: columns that line up, short numbers. The same on a terminal and in a pipe."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")  # of a layer or an expert, within a name


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return a header and rows as lines; the columns numbered in `left` line up left, all others right.

    >>> columns(("name", "size"), [("a", "10"), ("long", "5")])
    ['name  size', 'a       10', 'long     5']
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def grouped(rows: Sequence[tuple[str, ...]], most: int = 20) -> list[tuple[str, ...]]:
    """Return rows that differ in the numbers within their names alone as one, with how many there are, at most `most`.

    >>> grouped([("layers.0.up", "4"), ("layers.1.up", "4"), ("layers.1.down", "8")])
    [('layers.*.up', '2', '4'), ('layers.1.down', '1', '8')]
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in rows:
        found.setdefault((_NUMBER.sub("*", name), *cells), []).append(name)
    lines = [(key[0] if len(n) > 1 else n[0], f"{len(n):,}", *key[1:]) for key, n in found.items()]
    if len(lines) > most:
        rest = [""] * (len(lines[0]) - 2)
        left = sum(len(names) for names in [*found.values()][most:])
        lines[most:] = [("... (--json lists all)", f"{left:,}", *rest)]
    return lines


def number(value: float | None) -> str:
    """Return a number with four significant digits; "-" for none.

    >>> number(0.123456), number(None), number(float("inf"))
    ('0.1235', '-', 'inf')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def nearly_one(value: float | None) -> str:
    """Return a number near 1, such as a cosine, with seven places; "-" for none.

    >>> nearly_one(0.99999912)
    '0.9999991'
    """
    return "-" if value is None or math.isnan(value) else f"{value:.7f}"


def size(nbytes: int) -> str:
    """Return bytes in the largest fitting decimal unit.

    >>> size(16_060_522_496), size(12)
    ('16.1 GB', '12 B')
    """
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"


def counted(count: int, word: str) -> str:
    """Return a number with its word, in the plural where it is not one.

    >>> counted(1, "tensor"), counted(1200, "pass")
    ('1 tensor', '1,200 passes')
    """
    plural = word + ("es" if word.endswith("s") else "s")
    return f"{count:,} {word if count == 1 else plural}"
