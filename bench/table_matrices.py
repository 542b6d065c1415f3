"""The tables of `matrices.py`'s measurements."""

from collections.abc import Callable
from typing import Any

Row = list[str]
Table = Callable[[Row, list[Row]], str]


def middle(costs: list[dict[str, float]], part: str) -> float:
    """Return the median of one measure over the rounds."""
    found = sorted(cost[part] for cost in costs)
    half = len(found) // 2
    return found[half] if len(found) % 2 else (found[half - 1] + found[half]) / 2


def seconds(costs: list[dict[str, float]]) -> Row:
    """Return wall seconds and CPU seconds, empty where nothing was measured."""
    return [f"{middle(costs, part):.2f}" for part in ("wall", "cpu")] if costs else ["", ""]


def number(value: float | None, form: str) -> str:
    """Return a number in some form, or nothing."""
    return "" if value is None else f"{value:{form}}"


def compared(entries: dict[str, Any], table: Table) -> str:
    """Return the comparison on single tensors in memory."""
    head = ["method", "tensors", "one by one, s", "CPU, s", "side by side, s", "CPU, s", "FusionBench, s", "CPU, s"]
    head += ["times as fast", "target", "decompositions"]
    rows = []
    for name, entry in entries.items():
        fast, target = entry.get("times_as_fast"), entry["target"]
        costs = [cell for key in ("plain", "side_by_side", "fusionbench") for cell in seconds(entry[key])]
        last = [f"**{fast:.1f}**" if fast else "", number(target if fast else None, "g"), f"{entry['share']:.2f}"]
        rows.append([name, f"{entry['tensors']}", *costs, *last])
    return table(head, rows)


def agreements(entries: dict[str, Any], table: Table) -> str:
    """Return how far the results lie apart."""
    rows = []
    for name, entry in entries.items():
        found = entry["agreement"]
        if found:
            figures = [found["largest"], found["tolerance"], found["norm"], entry["float32"]["norm"]]
            rows.append([name, *(f"{figure:.0e}" for figure in figures)])
    head = ["result of", "float64: largest difference", "tolerance", "float64: norm", "float32: norm"]
    return table(head, rows) if rows else ""


def whole(entries: dict[str, Any], table: Table) -> str:
    """Return the whole commands, on a complete small model and on one layer."""
    head = ["method", "checkpoint", "models", "wall, s", "CPU, s", "cores busy", "s per GB read", "anonymous, MB"]
    head += ["planned, MB", "threads", "decompositions, share of CPU"]
    rows = []
    for name, entry in entries.items():
        for cost in [*entry.get("complete", []), entry["command"]]:
            rows.append([name, *command_cells(cost), share(entry, cost)])
    return table(head, rows)


def share(entry: dict[str, Any], cost: dict[str, Any]) -> str:
    """Return the share of decompositions where it was measured for this checkpoint."""
    profile = entry["profile"]
    return f"{profile['share']:.2f}" if profile["size"] == cost["size"] else ""


def command_cells(cost: dict[str, Any]) -> Row:
    """Return the cells of one whole command."""
    ours = cost["weightsmith"]
    wall, cpu = middle(ours, "wall"), middle(ours, "cpu")
    most = max(one["anonymous"] for one in ours)
    return [
        cost["size"],
        f"{cost['models']}",
        f"{wall:.2f}",
        f"{cpu:.2f}",
        f"{cpu / wall:.2f}",
        f"{wall / cost['input_bytes'] * 1e9:.1f}",
        f"{most / 1e6:.0f}",
        f"{cost['planned_bytes'] / 1e6:.0f}",
        f"{cost['threads']}",
    ]


def growths(entries: dict[str, Any], table: Table) -> str:
    """Return cost against the number of models and the size of the matrices."""
    head = ["method", "checkpoint", "models", "wall, s", "CPU, s", "cores busy", "s per GB read", "anonymous, MB"]
    head += ["planned, MB", "threads", "decompositions, share of CPU"]
    rows = []
    for name, entry in entries.items():
        for cost in entry.get("growth", []):
            told = "" if cost["size"] == entry["command"]["size"] else share(entry, cost)
            rows.append([name, *command_cells(cost), told])
    return table(head, rows) if rows else ""


def randomized(found: list[dict[str, Any]], table: Table) -> str:
    """Return the randomized form's error beside the stated one."""
    head = ["matrix", "rank", "error", "stated", "exact, s", "randomized, s"]
    rows = [
        [
            f"{e['rows']} by {e['columns']}",
            f"{e['rank']}",
            f"{e['randomized_error']:.3f}",
            f"{e['stated']:.3f}",
            f"{e['exact_seconds']:.2f}",
            f"{e['randomized_seconds']:.2f}",
        ]
        for e in found
    ]
    return table(head, rows) if rows else ""


def matrices(results: dict[str, Any], table: Table) -> str:
    """Return the tables of one run of matrices.py; `table` makes one from its head and rows."""
    entries = results["matrices"]
    commands = "\n".join(entry["command"]["command"] for entry in entries.values())
    parts = [
        (
            f"### Matrices: one layer of {results['size']}, threads: {results['threads']}, rounds: {results['rounds']}",
            "In memory, single tensors (one of each shape), against FusionBench 0.2.33 on the same tensors:",
        ),
        ("", compared(entries, table)),
        ("Results compared with FusionBench's:", agreements(entries, table)),
        ("Whole commands:", whole(entries, table)),
        ("Growth with the number of models and the size of the matrices:", growths(entries, table)),
        (
            "Error of the randomized form, in the spectral norm, in units of the largest singular value left out:",
            randomized(results.get("randomized", []), table),
        ),
        ("The commands:", f"```\n{commands}\n```"),
    ]
    return "\n\n".join(f"{title}\n\n{text}".strip() for title, text in parts if text)
