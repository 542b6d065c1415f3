"""Bundles for the demo: all experts packed, unpacked again and measured, through the command line as a user would."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.demo.evaluate import Bench, absolute, accuracies, normalized, run_command

BUNDLES = "bundles"
UNPACKED = "unpacked"  # where tasks are rebuilt to be measured; removed afterwards
ENCODED = ("tall_masks", "compeft", "lossless")
PLAIN = "tall_masks"  # what the bundle with a budget is compared with
CHOSEN = "chosen"
SHARE = 0.75  # of the plain bundle's bytes beside the base: the budget


def measure_bundles(bench: Bench) -> list[dict[str, Any]]:
    """Pack the experts by each encoding and by a budget; return one row of the table for each bundle."""
    rows = [_measure(bench, name, [name]) for name in ENCODED]
    plain = rows[ENCODED.index(PLAIN)]
    rows.append(_measure(bench, CHOSEN, ["--budget", str(round(SHARE * plain["stored_bytes"]))]))
    shutil.rmtree(bench.out / UNPACKED)
    return rows


def better(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the bundle with a budget where it is smaller than the plain one and its tasks are better."""
    by_name = {row["encoding"]: row for row in rows}
    plain, chosen = by_name[PLAIN], by_name[CHOSEN]
    is_better = chosen["normalized_accuracy"] > plain["normalized_accuracy"]
    return chosen if is_better and chosen["stored_bytes"] < plain["stored_bytes"] else None


def _measure(bench: Bench, name: str, words: Sequence[str]) -> dict[str, Any]:
    """Pack and unpack twice, the second time under the clock, and measure every task on test digits."""
    names = [e.task.name for e in bench.tasks]
    bundle, folder = f"{BUNDLES}/{name}", f"{UNPACKED}/{name}"
    models = [word for task in names for word in ("--model", f"checkpoints/{task}")]
    pack = ["pack", *words, "--base", "checkpoints/base", *models, "--out", bundle]
    unpack = ["unpack", bundle, folder]
    for _ in range(2):  # the first run compiles
        told, pack_seconds = _timed(bench, [*pack, "--force", "--json"])
        _, unpack_seconds = _timed(bench, [*unpack, "--force"])
    storage = json.loads(told)["storage"]
    stored = storage["shared_bytes"] + sum(task["pieces_bytes"] for task in storage["tasks"].values())
    weights = storage["merged_numbers"] + storage["frozen_numbers"]
    found = {task: accuracies(bench, f"{folder}/{task}", [task], "test")[task] for task in names}
    return {
        "encoding": name,
        "accuracy": found,
        "mean_accuracy": sum(found.values()) / len(found),
        "normalized_accuracy": normalized(found, bench.experts["test"]),
        "bytes": storage["base_bytes"] + stored,
        "stored_bytes": stored,
        "bits_per_weight": 8 * stored / (weights * len(names)),
        "pack_seconds": pack_seconds,
        "unpack_seconds": unpack_seconds,
        "commands": ["weightsmith " + " ".join(line) for line in (pack, unpack)],
    }


def _timed(bench: Bench, arguments: Sequence[str]) -> tuple[str, float]:
    began = time.perf_counter()
    printed = run_command(absolute(bench.out, arguments))
    return printed, time.perf_counter() - began
