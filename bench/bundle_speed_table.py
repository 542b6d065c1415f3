"""Turn what `bundle_speed.py` measured into tables, so that no number is typed by hand.

    python bench/bundle_speed_table.py speed.json

The tables go to standard output.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from table import middle, table

Row = list[str]
VERBS = ("pack", "unpack", "switch")


def line(what: str, found: dict[str, Any]) -> Row:
    """Return one command: bounds and weightsmith in seconds, the shares of the bounds, and peak memory."""
    ours = found["weightsmith"]
    more = found.get("anonymous_more", max(cost.get("anonymous", 0) for cost in ours))
    return [
        what,
        f"{middle(found['bound'], 'wall'):.2f}",
        f"{middle(ours, 'wall'):.2f}",
        f"{middle(ours, 'cpu'):.2f}",
        f"**{found['share']['wall']:.2f}**",
        f"{middle(found['bound_overlapped'], 'wall'):.2f}",
        f"{found['share_overlapped']['wall']:.2f}",
        f"{more / 1e6:.0f}",
    ]


def speeds(size: str, results: dict[str, Any]) -> str:
    """Return the table of one size."""
    head = ["", "bound, s", "weightsmith, s", "CPU, s", "share of the bound"]
    head += ["overlapped bound, s", "share of that", "anonymous, MB"]
    rows = [
        line(f"{verb} {encoding}", found[verb]) for encoding, found in results["encodings"].items() for verb in VERBS
    ]
    if results.get("localize"):
        rows.append(line("localize", results["localize"]))
    return f"{size}, {results['parameters']:,} parameters, three tasks:\n\n{table(head, rows)}"


def growth(entries: list[dict[str, Any]]) -> str:
    """Return peak memory by size and number of tasks."""
    rows = [
        [
            f"{entry['encoding']}, {entry['size']}",
            str(entry["tasks"]),
            f"{entry['pack']['anonymous'] / 1e6:.0f}",
            f"{entry['unpack']['anonymous'] / 1e6:.0f}",
        ]
        for entry in entries
    ]
    return table(["", "tasks", "packing, MB", "unpacking, MB"], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Write the tables of bundle speed.")
    parser.add_argument("json", type=Path)
    results = json.loads(parser.parse_args().json.read_text(encoding="utf-8"))
    parts = [speeds(size, found) for size, found in results["sizes"].items()]
    parts += [growth(results["growth"])] if results["growth"] else []
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
