"""Turn what `bundles.py` measured into tables and a plot, so that no number is typed by hand.

    python bench/bundle_table.py bundles.json [--plot bundles.svg]

The tables go to standard output. In the plot a line joins the settings of one encoding; hovering shows which.
"""

import argparse
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from table import table

LEFT, TOP, WIDTH, HEIGHT = 60, 20, 780, 420
COLORS = {
    "chosen": "#c4261d", "tall_masks": "#1b4fd8", "emr": "#1f8a3a", "compeft": "#d97706", "bitdelta": "#7c6a00",
    "sparse": "#0e8a8a", "twin": "#b83280", "twin_svd": "#e07bb5", "low_rank": "#6d3fc0", "tsv_c": "#9a7bdc",
    "rmm": "#4a2a8a", "graft": "#8a4b1f", "rounded": "#4c7a00", "lossless": "#333333", "merge": "#8a8a8a",
}  # fmt: skip
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.axis{stroke:#bbb}.back{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.axis{stroke:#555}.back{fill:#111}}"
)
Row = dict[str, Any]


def percent(value: float) -> str:
    """Return a share as percent."""
    return f"{100 * value:.1f} %"


def chosen(row: Row) -> str:
    """Return what was searched on validation images."""
    found = []
    for name, value in row.get("chosen", {}).items():
        values = value if isinstance(value, list) else [value]
        found.append(f"{name.strip('_').replace('_', ' ')} {' '.join(f'{v:g}' for v in values)}")
    return ", ".join(found)


def experts_table(results: Row) -> str:
    """Return the tasks: test images, accuracy of the base below the task's head, and of the expert."""
    lines = [
        [name, f"{results['examples'][name]:,}", percent(results["base"][name]), percent(expert)]
        for name, expert in results["experts"]["test"].items()
    ]
    return table(["task", "test images", "base", "expert"], lines)


def settings_table(results: Row) -> str:
    """Return every setting, the most accurate first."""
    experts = results["experts"]["test"]
    lines = []
    for name, row in sorted(results["rows"].items(), key=lambda item: -item[1]["normalized"]):
        worst = min(row["scores"], key=lambda task: row["scores"][task] / experts[task])
        bits, share = row["bits"], row.get("share_of_models")
        lines.append(
            [
                name,
                percent(row["normalized"]),
                f"{percent(row['scores'][worst] / experts[worst])} ({worst})",
                f"{bits['measured']:.2f}",
                f"{bits['card']:.2f}" if "card" in bits else "",
                percent(share) if share else "",
            ]
        )
    head = [
        "setting",
        "normalized accuracy",
        "worst task",
        "bits per weight",
        "by the card",
        "bundle and base, of the models",
    ]
    return table(head, lines)


def trend_table(results: Row) -> str:
    """Return normalized accuracy by number of tasks, all tasks in groups of so many, with what was searched in each group."""
    names = list(next(iter(results["trend"].values())))
    lines = []
    for count, each in results["trend"].items():
        cells = [
            f"{percent(each[n]['normalized'])}" + (f" ({chosen(each[n])})" if n != "tall_masks" else "") for n in names
        ]
        lines.append([count, *cells])
    return table(["tasks", *(n if n == "tall_masks" else f"merge {n}" for n in names)], lines)


def lambdas_table(results: Row) -> str:
    """Return the lambda of TALL-masks by task and number of tasks."""
    names = list(results["experts"]["test"])
    lines = []
    for count, each in results["trend"].items():
        values = [f"{v:g}" for v in each["tall_masks"]["chosen"]["mask_lambda"]]
        lines.append([count, *values])
    return table(["tasks", *names], lines)


def color(row: Row) -> str:
    """Return a setting's color."""
    return COLORS[row["encoding"].split()[0]]


def plot(results: Row) -> str:
    """Return the settings as a picture: bits per weight, on a logarithmic axis, against normalized accuracy."""
    rows = results["rows"]
    found = {name: (row["bits"]["measured"], row["normalized"]) for name, row in rows.items()}
    low = math.floor(math.log2(min(x for x, _ in found.values())))
    high = math.ceil(math.log2(max(x for x, _ in found.values())))
    least = math.floor(20 * min(y for _, y in found.values())) / 20
    most = max(1.0, max(y for _, y in found.values())) + 0.02

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log2(x) - low) / (high - low), (y - least) / (most - least)
        return LEFT + across * WIDTH, TOP + (1 - up) * HEIGHT

    parts = []
    for power in range(low, high + 1):
        x, _ = place(2.0**power, least)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + HEIGHT}"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{2.0**power:g}</text>')
    for step in range(round(20 * least), math.floor(20 * most) + 1, 1 if most - least < 0.4 else 2):
        _, y = place(1.0, step / 20)
        parts.append(f'<line class="axis" x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + WIDTH}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{5 * step} %</text>')
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, at in found.items():
        lines.setdefault(rows[name]["encoding"], []).append(at)
    for encoding, points in lines.items():
        if len(points) > 1:
            path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in sorted(points))
            parts.append(f'<polyline fill="none" stroke="{color({"encoding": encoding})}" points="{path}"/>')
    for name, at in found.items():
        x, y = place(*at)
        told = escape(f"{name}: {at[0]:.2f} bits per weight, {percent(at[1])}")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color(rows[name])}"><title>{told}</title></circle>'
        )
    families = list(dict.fromkeys(row["encoding"].split()[0] for row in rows.values()))
    for i, family in enumerate(families):
        x, y = LEFT + WIDTH + 24, TOP + 8 + 20 * i
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{COLORS[family]}"/>')
        parts.append(
            f'<text x="{x + 10}" y="{y + 4}">{escape("one merged model" if family == "merge" else family)}</text>'
        )
    bottom = TOP + HEIGHT + 40
    parts.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{bottom}" text-anchor="middle">bits per weight and task, the base aside</text>'
    )
    width, height = LEFT + WIDTH + 170, bottom + 16
    about = "normalized accuracy against bits per weight and task"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{about}">\n'
        f'<style>{STYLE}</style>\n<rect class="back" width="{width}" height="{height:.0f}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    """Print the tables and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path, help="what bundles.py wrote")
    parser.add_argument("--plot", type=Path, help="write the plot there")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    parts = (experts_table, settings_table, *((trend_table, lambdas_table) if results["trend"] else ()))
    print("\n\n".join(part(results) for part in parts))
    if options.plot:
        options.plot.write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
