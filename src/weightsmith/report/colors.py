"""Color scales whose steps look equally far apart, for a light and a dark page."""

from __future__ import annotations

import functools
import math

STEPS = 17

# Lightness, chroma and hue (degrees) in OKLCH at the stops of a scale, evenly spaced; ends stand out from the page.
_Stops = tuple[tuple[float, float, float], ...]
_SEQUENTIAL: dict[str, _Stops] = {
    "light": ((0.965, 0.025, 100.0), (0.80, 0.105, 165.0), (0.58, 0.115, 235.0), (0.32, 0.115, 275.0)),
    "dark": ((0.30, 0.05, 275.0), (0.48, 0.11, 245.0), (0.70, 0.12, 185.0), (0.94, 0.11, 105.0)),
}
_DIVERGING: dict[str, _Stops] = {
    "light": ((0.45, 0.15, 40.0), (0.72, 0.12, 55.0), (0.965, 0.005, 90.0), (0.70, 0.10, 250.0), (0.42, 0.15, 262.0)),
    "dark": ((0.82, 0.13, 55.0), (0.56, 0.12, 45.0), (0.30, 0.005, 90.0), (0.52, 0.12, 255.0), (0.80, 0.10, 240.0)),
}
_INKS = ("#11110c", "#ffffff")  # text upon a color
_LINES = {"light": 0.56, "dark": 0.76}
_LINE_HUES = (255.0, 50.0, 165.0, 345.0, 95.0, 300.0, 215.0, 20.0)


def from_oklch(lightness: float, chroma: float, hue: float) -> str:
    """Return a color as #rrggbb, its chroma lowered until a screen can show it (Ottosson's OKLab).

    >>> from_oklch(1.0, 0.0, 0.0), from_oklch(0.62796, 0.25768, 29.23)
    ('#ffffff', '#ff0000')
    """
    for step in range(100):
        channels = _linear(lightness, chroma * (1 - step / 100), math.radians(hue))
        if all(-1e-3 <= c <= 1 + 1e-3 for c in channels):
            break
    return "#" + "".join(f"{round(255 * _encoded(min(1.0, max(0.0, c)))):02x}" for c in channels)


def _linear(lightness: float, chroma: float, angle: float) -> tuple[float, float, float]:
    a, b = chroma * math.cos(angle), chroma * math.sin(angle)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    brief = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * brief,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * brief,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * brief,
    )


def _encoded(channel: float) -> float:
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055


def _scale(stops: _Stops) -> list[str]:
    found = []
    for step in range(STEPS):
        place = step / (STEPS - 1) * (len(stops) - 1)
        at = min(int(place), len(stops) - 2)
        first, second = (_rectangular(*stop) for stop in stops[at : at + 2])
        lightness, a, b = (x + (y - x) * (place - at) for x, y in zip(first, second, strict=True))
        found.append(from_oklch(lightness, math.hypot(a, b), math.degrees(math.atan2(b, a))))
    return found


def _rectangular(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    angle = math.radians(hue)
    return lightness, chroma * math.cos(angle), chroma * math.sin(angle)


def scales(theme: str) -> dict[str, str]:
    """Return the colors of a theme ("light" or "dark"): c0 to c16 for amounts, d0 to d16 around zero, s0 to s7 for lines.

    Beside each of the first two, such as c3, stands tc3: the color of text upon it.
    """
    steps = {f"c{i}": color for i, color in enumerate(_scale(_SEQUENTIAL[theme]))}
    steps |= {f"d{i}": color for i, color in enumerate(_scale(_DIVERGING[theme]))}
    lines = {
        f"s{i}": from_oklch(_LINES[theme] + (0.05 if i % 2 else -0.05), 0.15, hue) for i, hue in enumerate(_LINE_HUES)
    }
    return {
        **steps,
        **{f"t{name}": max(_INKS, key=lambda ink: contrast(ink, color)) for name, color in steps.items()},
        **lines,
    }


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colors, 1 to 21, as the Web Content Accessibility Guidelines define it.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    bright, dim = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@functools.cache
def style_rules() -> str:
    """Return the rules that give every class its color in both themes; paper is light."""
    light, dark = (";".join(f"--{n}:{c}" for n, c in scales(theme).items()) for theme in ("light", "dark"))
    rules = [
        f".{kind}{i}{{fill:var(--{kind}{i});background-color:var(--{kind}{i})}}"
        f".t{kind}{i}{{fill:var(--t{kind}{i})}}td.{kind}{i}{{color:var(--t{kind}{i})}}"
        for kind in "cd"
        for i in range(STEPS)
    ]
    rules += [
        f"polyline.s{i}{{stroke:var(--s{i})}}.key i.s{i}{{background:var(--s{i})}}circle.s{i},rect.s{i}{{fill:var(--s{i})}}"
        for i in range(len(_LINE_HUES))
    ]
    themes = (
        f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n@media print{{:root{{{light}}}}}\n"
    )
    return themes + "\n".join(rules)


def step_of(value: float, low: float, high: float) -> int:
    """Return the step of a value on a scale from low to high.

    >>> step_of(0.0, 0.0, 1.0), step_of(0.5, 0.0, 1.0), step_of(7.0, 0.0, 1.0)
    (0, 8, 16)
    """
    if high <= low:
        return (STEPS - 1) // 2
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return min(STEPS - 1, int(share * STEPS))
