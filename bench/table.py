"""Turn the measurements into the tables of `bench/README.md`, so that no number is typed by hand.

    python bench/table.py merge.json [scaling.json ...] [--into bench/README.md]

Without --into, the tables go to standard output; with it, they replace what stands between the two marker
comments of that file.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from table_matrices import matrices

BEGIN = "<!-- measurements: begin, written by bench/table.py -->"
END = "<!-- measurements: end -->"

# The most that a merge may take, as a multiple of the bound; below a billion parameters start-up dominates.
TARGET_PARAMETERS = 1_000_000_000
USUAL = 4
TARGETS = {
    "linear": 2,
    "task_arithmetic": 2,
    "slerp": 2,
    "lines": 2,
    "wise_ft": 2,
    "ties, scope model": 5,
}
# How many times as fast as mergekit a merge should at least be; None where nothing but copying takes time.
USUAL_TIMES = 10
TIMES = {
    "linear": None,
    "task_arithmetic": None,
    "slerp": None,
    "ties, scope tensor": 25,
    "passthrough": None,
}

Row = list[str]


def table(head: Row, rows: list[Row]) -> str:
    """Return a markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def middle(costs: list[dict[str, float]], part: str) -> float:
    """Return the median of one measure over the rounds."""
    return float(statistics.median(cost[part] for cost in costs))


def peak(costs: list[dict[str, float]], part: str) -> str:
    """Return the most that any round took of some memory, in megabytes."""
    return f"{max(cost[part] for cost in costs) / 1e6:.0f}"


def merges(results: dict[str, Any]) -> str:
    """Return the tables of one run of merge.py."""
    head = [
        "merge",
        "bound, s",
        "weightsmith, s",
        "CPU, s",
        "s per GB read",
        "ratio",
        "range",
        "target",
        "overlapped bound, s",
        "ratio to that",
        "anonymous, MB",
        "resident, MB",
    ]
    rows = []
    for name, entry in results["merges"].items():
        ours, ratio = entry["weightsmith"], entry["ratio"]
        rows.append(
            [
                name,
                f"{middle(entry['bound'], 'wall'):.2f}",
                f"{middle(ours, 'wall'):.2f}",
                f"{middle(ours, 'cpu'):.2f}",
                f"{middle(ours, 'wall') / sum(entry['input_bytes']) * 1e9:.2f}",
                f"**{ratio['wall']:.2f}**",
                f"{ratio['wall_least']:.2f} to {ratio['wall_most']:.2f}",
                f"{TARGETS.get(name, USUAL)}" if results["parameters"] >= TARGET_PARAMETERS else "",
                f"{middle(entry['bound_overlapped'], 'wall'):.2f}",
                f"{entry['ratio_overlapped']['wall']:.2f}",
                peak(ours, "anonymous"),
                peak(ours, "resident"),
            ]
        )
    count = f"{results['parameters'] / 1e6:,.0f} million parameters"
    title = f"### {results['size']}: {count}, rounds: {results['rounds']}"
    parts = [title, table(head, rows), mergekit(results), agreements(results), commands(results)]
    return "\n\n".join(part for part in parts if part)


def mergekit(results: dict[str, Any]) -> str:
    """Return the comparison with mergekit, or nothing where it was not run."""
    rows = []
    for name, entry in results["merges"].items():
        if entry.get("mergekit"):
            theirs, ours = entry["mergekit"], entry["weightsmith"]
            rows.append(
                [
                    name,
                    f"{middle(theirs, 'wall'):.1f}",
                    f"{middle(ours, 'wall'):.2f}",
                    f"**{entry['mergekit_ratio']:.1f}**",
                    times_wanted(name, results),
                    f"{middle(theirs, 'wall') / middle(entry['bound_overlapped'], 'wall'):.1f}",
                    f"{middle(theirs, 'cpu') / middle(ours, 'cpu'):.1f}",
                    peak(theirs, "anonymous"),
                    peak(ours, "anonymous"),
                ]
            )
    head = ["merge", "mergekit, s", "weightsmith, s", "times as fast", "target", "overlapped bound", "CPU ratio"]
    head += ["mergekit anonymous, MB", "weightsmith anonymous, MB"]
    return "Against mergekit, same inputs, same run:\n\n" + table(head, rows) if rows else ""


def times_wanted(name: str, results: dict[str, Any]) -> str:
    """Return the target against mergekit, if there is one at this size."""
    times = TIMES.get(name, USUAL_TIMES) if results["parameters"] >= TARGET_PARAMETERS else None
    return f"{times}" if times else ""


def agreements(results: dict[str, Any]) -> str:
    """Return how far results lie from the oracle's and from mergekit's."""
    rows = []
    for name, entry in results["merges"].items():
        for key, other in (("agreement", "oracle"), ("agreement_mergekit", "mergekit, float32")):
            found = entry.get(key)
            if found and "fault" in found:
                rows.append([name, other, "", "", "", "**does not agree**"])
            elif found:
                rows.append(
                    [
                        name,
                        other,
                        f"{found['entries'] / 1e6:.1f}",
                        f"{found['open_share']:.6f}",
                        f"{found['differing_share']:.6f}",
                        f"{found['beyond_one_unit']}",
                    ]
                )
    if not rows:
        return ""
    head = ["result of", "compared with", "entries, millions", "left open, share", "other rounding, share"]
    return "Results compared:\n\n" + table([*head, "more than one unit off"], rows)


def commands(results: dict[str, Any]) -> str:
    """Return the command line of each merge."""
    lines = [f"{entry['command']}" for entry in results["merges"].values()]
    return "The commands:\n\n```\n" + "\n".join(lines) + "\n```" if lines else ""


def scaling(results: dict[str, Any]) -> str:
    """Return the table of one run of scaling.py."""
    head = ["merge", "parameters, millions", "models", "bound, s", "weightsmith, s", "CPU, s", "ratio"]
    head += ["s per billion parameters and model read", "anonymous, MB"]
    rows = []
    for entry in results["scaling"]:
        ours = entry["weightsmith"]
        rows.append(
            [
                entry["method"],
                f"{entry['parameters'] / 1e6:,.0f}",
                f"{entry['models']}",
                f"{middle(entry['bound'], 'wall'):.2f}",
                f"{middle(ours, 'wall'):.2f}",
                f"{middle(ours, 'cpu'):.2f}",
                f"{entry['ratio']['wall']:.2f}",
                f"{middle(ours, 'wall') / entry['read'] / entry['parameters'] * 1e9:.2f}",
                peak(ours, "anonymous"),
            ]
        )
    return f"### Growth, rounds: {results['rounds']}\n\n" + table(head, rows)


def machine(results: dict[str, Any]) -> str:
    """Return one sentence on the machine."""
    found = results["machine"]
    return (
        f"Machine: {found['processor']}, {found['cores']} cores, "
        f"{found['memory_bytes'] / 2**30:.0f} GiB memory, "
        f"{found['system']}, Python {found['python']}."
    )


def tables(results: dict[str, Any]) -> str:
    """Return the tables of one run of merge.py, scaling.py or matrices.py."""
    if "matrices" in results:
        return matrices(results, table)
    return merges(results) if "merges" in results else scaling(results)


def main() -> None:
    """Read the files and write the tables."""
    parser = argparse.ArgumentParser(description="Write measurements as markdown tables.")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, help="file whose part between the markers is replaced")
    options = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.files]
    machines = list(dict.fromkeys(machine(run) for run in runs))
    parts = [*machines, *(tables(run) for run in runs)]
    text = "\n\n".join(parts)
    if options.into is None:
        print(text)
        return
    old = options.into.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise SystemExit(f"{options.into}: expected the two marker comments once each:\n{BEGIN}\n{END}")
    before, rest = old.split(BEGIN)
    options.into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
