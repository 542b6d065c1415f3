"""The demo's results for people: a table for the terminal, and one self-contained page with plots."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoint.names import layer_of
from weightsmith.errors import shown
from weightsmith.merge import METHODS

if TYPE_CHECKING:
    import jinja2
    from rich.table import Table

KINDS = ("catastrophic", "selfish", "shared")  # needed by no task, by one, by several
REFERENCES = ("base", "experts")
OUTSIDE = "outside the layers"

# Measures of the bar charts in the page's units.
LEFT, ROW, BAR, WIDTH = 190, 26, 14, 520


def layer_counts(counts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Add up counts per tensor (index n: weights that n tasks need) to counts per layer and kind.

    >>> layer_counts({"h.0.w": [1, 2, 3, 4], "h.0.b": [0, 1, 0, 0]})["layers"]
    [{'layer': 'layer 0', 'catastrophic': 1, 'selfish': 3, 'shared': 7}]
    """
    layers: dict[int | None, list[int]] = {}
    for name, found in counts.items():
        old = layers.setdefault(layer_of(name), [0] * len(found))
        layers[layer_of(name)] = [a + b for a, b in zip(old, found, strict=True)]
    ordered = sorted(layers, key=lambda layer: -1 if layer is None else layer)
    rows = [(OUTSIDE if n is None else f"layer {n}", layers[n]) for n in ordered]
    histogram = [sum(column) for column in zip(*layers.values(), strict=True)]
    return {
        "layers": [{"layer": label, **_by_kind(row)} for label, row in rows],
        "total": _by_kind(histogram),
        "histogram": histogram,
    }


def _by_kind(counts: Sequence[int]) -> dict[str, int]:
    return dict(zip(KINDS, (counts[0], counts[1], sum(counts[2:])), strict=True))


def table(results: Mapping[str, Any]) -> Table:
    """Return the table of methods for a terminal: accuracy, normalized accuracy, bytes, seconds."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(
        title="Accuracy on held-out test digits",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    found.add_column("method", no_wrap=True)
    found.add_column("serves", no_wrap=True)
    for heading in ("accuracy", "normalized", "bytes", "seconds"):
        found.add_column(heading, justify="right", no_wrap=True)
    for row in results["methods"]:
        found.add_row(
            Text(shown(row["method"])),
            Text(shown(row["serves"])),
            _percent(row["mean_accuracy"]),
            _percent(row["normalized_accuracy"]),
            f"{row['bytes']:,}" + (" *" if row["bytes_are"] == "formula" else ""),
            "" if row["seconds"] is None else f"{row['seconds']:.2f}",
        )
    found.caption_justify = "left"
    found.caption = (
        "normalized: mean over tasks of accuracy / the expert's accuracy\n"
        "seconds: merging alone\n"
        "* by formula: base + one vector + one bit per weight and task"
    )
    return found


def page(results: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that loads nothing and runs no script."""
    summaries = {method.name: method.summary for method in METHODS}
    by_name = {row["method"]: row for row in results["methods"]}
    merged = [row for row in results["methods"] if row["method"] not in REFERENCES]
    return (
        _environment()
        .get_template("page")
        .render(
            r=results,
            tasks=[task["name"] for task in results["tasks"]],
            references=[by_name[name] for name in REFERENCES],
            merged=merged,
            single=_best(merged, "all tasks"),
            rebuilt=by_name.get("tall_masks"),
            bars=_bars(results["methods"]),
            stacks=_stacks(results["agreement"]),
            kinds=KINDS,
            summaries=summaries,
            heat=lambda share, task: _heat(share, by_name["experts"]["accuracy"][task]),
            chart={"left": LEFT, "row": ROW, "bar": BAR, "width": WIDTH},
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    source = files("weightsmith.demo").joinpath("page.html").read_text(encoding="utf-8")
    found = jinja2.Environment(
        loader=jinja2.DictLoader({"page": source}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "percent": _percent,
        "number": _number,
        "size": _size,
        "plain": shown,
        "command": _command,
    }
    found.filters.update(filters)
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(count: int) -> str:
    return f"{count:,}"


def _command(line: str) -> str:
    return " ".join(shown(word) for word in line.split(" "))


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _best(rows: Sequence[Mapping[str, Any]], serves: str) -> Mapping[str, Any] | None:
    fitting = [row for row in rows if row["serves"] == serves]
    return max(fitting, key=lambda row: row["normalized_accuracy"], default=None)


def _heat(share: float, expert: float) -> int:
    """Return how deep a cell's color is, 6 to 100: half the expert's accuracy is palest."""
    ratio = share / expert if expert > 0 else 1.0
    depth: float = min(1.0, max(0.0, 2 * ratio - 1)) ** 1.5
    return round(6 + 94 * depth)


def _bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Place one bar per method, the best first; the axis ends at the next tenth above the best."""
    ordered = sorted(rows, key=lambda row: -row["normalized_accuracy"])
    end = max(1.0, -(-max(row["normalized_accuracy"] for row in rows) * 10 // 1) / 10)
    bars = [
        {
            "label": row["method"],
            "serves": row["serves"],
            "value": row["normalized_accuracy"],
            "width": WIDTH * row["normalized_accuracy"] / end,
            "y": ROW * i,
            "kind": "reference" if row["method"] in REFERENCES else "one" if row["serves"] != "one task" else "per",
        }
        for i, row in enumerate(ordered)
    ]
    ticks = [{"x": WIDTH * tenth / 10 / end, "share": tenth / 10} for tenth in range(0, round(10 * end) + 1, 2)]
    return {"bars": bars, "ticks": ticks, "height": ROW * len(bars), "experts_x": WIDTH / end}


def _stacks(agreement: Mapping[str, Any]) -> dict[str, Any]:
    """Place one stacked bar per layer, and one for all layers together: shares of the layer's weights."""
    rows = [{"layer": "all weights", **agreement["total"]}, *agreement["layers"]]
    placed = []
    for i, row in enumerate(rows):
        size, x, parts = max(1, sum(row[kind] for kind in KINDS)), 0.0, []
        for kind in KINDS:
            share = row[kind] / size
            parts.append({"kind": kind, "share": share, "count": row[kind], "x": x, "width": WIDTH * share})
            x += WIDTH * share
        placed.append({"layer": row["layer"], "weights": size, "y": ROW * i, "parts": parts})
    return {"rows": placed, "height": ROW * len(rows)}
