"""The table of `bench/README.md` that says how the results of mergekit's recipes compare; written by `peer_parity.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN = "<!-- parity: begin, written by bench/peer_parity.py -->"
END = "<!-- parity: end -->"
COMMAND = "python bench/peer_parity.py --data FOLDER --mergekit PATH/bin/mergekit-yaml --into bench/README.md"

Result = dict[str, Any]


def put_into(path: Path, results: list[Result], version: str) -> None:
    """Replace what stands between the markers of a file."""
    old = path.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise SystemExit(f"{path}: expected the two marker comments once each:\n{BEGIN}\n{END}")
    before, rest = old.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{text_of(results, version)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def text_of(results: list[Result], version: str) -> str:
    """Return totals, the table, and the command."""
    methods = dict.fromkeys(r["method"] for r in results)
    head = ["method", "recipes", "as mergekit", "entries tied", "beyond", "entries beyond", "largest", "from float64"]
    lines = ["| " + " | ".join([*head, "why"]) + " |", "|---|" + "---:|" * (len(head) - 1) + "---|"]
    for method in sorted(methods):
        lines += rows_of(method, [r for r in results if r["method"] == method])
    return "\n\n".join([totals(results, version), "\n".join(lines), f"```\n{COMMAND}\n```"])


def rows_of(method: str, results: list[Result]) -> list[str]:
    """Return the rows of one method: its recipes, with the first reason for differences; others below."""
    good, bad = ([r for r in results if r["passed"] == passed] for passed in (True, False))
    reasons = list(dict.fromkeys(reason(r) for r in bad)) or [""]
    tied = sum(r["tied"] for r in results)
    first = [f"`{method}`", str(len(results)), str(len(good)), str(tied or "")]
    if results[0]["random"]:
        first[2] += ", by distribution"
    rows = []
    for why in reasons:
        group = [r for r in bad if reason(r) == why]
        rows.append("| " + " | ".join([*first, *differences(group), why]) + " |")
        first = [""] * 4
    return rows


def differences(group: list[Result]) -> list[str]:
    """Return how many recipes differ, in how many entries, by how much, and how far both are from float64."""
    if not group:
        return [""] * 4
    share = sum(r["over_one"] for r in group) / max(sum(r["elements"] for r in group), 1)
    far = [r["far"] for r in group if r["far"]]
    spans = [span([f[side] for f in far]) for side in (0, 1)] if far else []
    told = f"{spans[0]}; here {spans[1]}" if far else ""
    return [str(len(group)), f"{share:.2%}", f"{max(r['relative'] for r in group):.0e}", told]


def span(values: list[float]) -> str:
    """Return the least and the largest, once where they are written alike."""
    return " to ".join(dict.fromkeys([f"{min(values):.1e}", f"{max(values):.1e}"]))


def reason(result: Result) -> str:
    """Return why a recipe differs; what went wrong where that is not known."""
    if result["excused"]:
        return str(result["known"])
    return "**unexplained**" + (f": {result['error'].splitlines()[0][:100]}" if result["error"] else "")


def totals(results: list[Result], version: str) -> str:
    """Return a paragraph of totals."""
    good = [r for r in results if r["passed"]]
    random = sum(r["random"] for r in good)
    excused = sum(r["excused"] and not r["passed"] for r in results)
    wide = [r["far"] for r in results if r["excused"] and not r["passed"] and r["far"]]
    nearer = sum(here < there for there, here in wide)
    return (
        f"mergekit {version}, {len(results)} recipes: {len(good)} as mergekit (of these {random} random ones by distribution), "
        f"{excused} beyond one unit in the last place for a known reason, {len(results) - len(good) - excused} unexplained. Of "
        f"the {excused}, {len(wide)} are computed in float32; {nearer} of these are nearer to mergekit's own result in float64 "
        f"than mergekit's in float32 is. Tensors missing here: {sum(len(r['only_peer']) for r in results)}; dropped by "
        f"mergekit and kept here: {sum(len(r['only_ours']) for r in results)}."
    )
