"""The demo's results for people: tables for the terminal, and one self-contained page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from weightsmith.checkpoint.names import layer_of
from weightsmith.demo.storing import better
from weightsmith.errors import shown
from weightsmith.merge import METHODS
from weightsmith.report.charts import Bar, Point, bars, scatter, stacks
from weightsmith.report.colors import step_of
from weightsmith.report.page import render_template
from weightsmith.report.text import percent, size

if TYPE_CHECKING:
    from rich.table import Table

KINDS = ("catastrophic", "selfish", "shared")  # needed by no task, by one, by several
REFERENCES = ("base", "experts")
OUTSIDE = "outside the layers"
LOCALIZED = "localize.html"  # the other page, beside this one


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
    from rich.text import Text

    found = _columns(
        "Accuracy on held-out test digits", ("method", "serves"), ("accuracy", "normalized", "bytes", "seconds")
    )
    for row in results["methods"]:
        found.add_row(
            Text(shown(row["method"])),
            Text(shown(row["serves"])),
            percent(row["mean_accuracy"]),
            percent(row["normalized_accuracy"]),
            f"{row['bytes']:,}" + (" *" if row["bytes_are"] == "formula" else ""),
            "" if row["seconds"] is None else f"{row['seconds']:.2f}",
        )
    found.caption = (
        "normalized: mean over tasks of accuracy / the expert's accuracy\n"
        "seconds: merging alone, two methods at a time\n"
        "* by formula: base + one vector + one bit per weight and task"
    )
    return found


def bundle_table(results: Mapping[str, Any]) -> Table:
    """Return the table of bundles for a terminal: bytes, bits per weight, normalized accuracy, seconds."""
    from rich.text import Text

    headings = ("bytes", "bits per weight", "normalized", "packed", "unpacked")
    found = _columns("All experts in one bundle, unpacked again", ("encoding",), headings)
    for row in results["bundles"]:
        found.add_row(
            Text(shown(row["encoding"])),
            f"{row['bytes']:,}",
            f"{row['bits_per_weight']:.2f}",
            percent(row["normalized_accuracy"]),
            f"{row['pack_seconds']:.2f} s",
            f"{row['unpack_seconds']:.2f} s",
        )
    found.caption = (
        "bytes: weights with the base, without manifests\n"
        "bits per weight: of each task, beside the base\n"
        "chosen: an encoding for each tensor, within three quarters of tall_masks' bytes"
    )
    return found


def _columns(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Return an empty table for a terminal, 80 columns wide at most where the cells are those of the demo."""
    from rich import box
    from rich.table import Table

    found = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for heading in left:
        found.add_column(heading, no_wrap=True)
    for heading in right:
        found.add_column(heading, justify="right", no_wrap=True)
    return found


def page(results: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that loads nothing, and runs no script but its own."""
    by_name = {row["method"]: row for row in results["methods"]}
    merged = [row for row in results["methods"] if row["method"] not in REFERENCES]
    layers = [{"layer": "all weights", **results["agreement"]["total"]}, *results["agreement"]["layers"]]
    single = _best(merged, "all tasks")
    rows = [*merged, *results["bundles"]]
    return render_template(
        "weightsmith.demo",
        "page.html",
        {
            "r": results,
            "tasks": [task["name"] for task in results["tasks"]],
            "references": [by_name[name] for name in REFERENCES],
            "merged": merged,
            "single": single,
            "rebuilt": by_name.get("tall_masks"),
            "better": better(results["bundles"]),
            "plain": results["bundles"][0],
            "localized": LOCALIZED,
            "storage_picture": _storage(results, single),
            "accuracy_picture": _bars(results["methods"]),
            "agreement_picture": stacks(
                [(row["layer"], {kind: row[kind] for kind in KINDS}) for row in layers],
                percent,
                about="Shares of catastrophic, selfish and shared weights by layer, as in the table below",
            ),
            "layers": [{**row, "weights": sum(row[kind] for kind in KINDS)} for row in layers],
            "kinds": KINDS,
            "summaries": {method.name: method.summary for method in METHODS},
            "commands": [_command(command) for row in rows for command in row["commands"]],
            "heat": lambda share, task: _heat(share, by_name["experts"]["accuracy"][task]),
        },
    )


def _command(line: str) -> str:
    return " ".join(shown(word) for word in line.split(" "))


def _best(rows: Sequence[Mapping[str, Any]], serves: str) -> Mapping[str, Any] | None:
    fitting = [row for row in rows if row["serves"] == serves]
    return max(fitting, key=lambda row: row["normalized_accuracy"], default=None)


def _heat(share: float, expert: float) -> int:
    """Return a cell's step on the scale of colors: half the expert's accuracy is palest."""
    ratio = share / expert if expert > 0 else 1.0
    return step_of(max(0.0, 2 * ratio - 1) ** 1.5, 0.0, 1.0)


def _storage(results: Mapping[str, Any], single: Mapping[str, Any] | None) -> Markup:
    """Draw accuracy against bytes: every bundle, base and experts, and the best single model."""
    references = [row for row in results["methods"] if row["method"] in REFERENCES]
    points = [Point(row["bytes"], row["normalized_accuracy"], row["method"], "faint") for row in references]
    if single:
        points.append(Point(single["bytes"], single["normalized_accuracy"], single["method"], "s1"))
    points += [Point(row["bytes"], row["normalized_accuracy"], row["encoding"]) for row in results["bundles"]]
    about = "Normalized accuracy against bytes in all, as in the table below"
    return scatter(points, x=("bytes", size), y=("normalized accuracy", percent), about=about)


def _bars(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw one bar per method, the best first."""
    ordered = sorted(rows, key=lambda row: -row["normalized_accuracy"])
    found = [
        Bar(
            row["method"],
            row["normalized_accuracy"],
            "reference" if row["method"] in REFERENCES else "one" if row["serves"] != "one task" else "per",
            note="on two tasks" if row["serves"] == "two tasks" else "",
            about=f"{row['method']}, each model serving {row['serves']}",
        )
        for row in ordered
    ]
    return bars(found, percent, about="Normalized accuracy of every method, as in the table below", goal=(1.0, ""))
