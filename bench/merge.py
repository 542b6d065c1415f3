"""Measure merges against the bound and against mergekit, and assert the results.

    python bench/merge.py --data FOLDER [--mergekit PATH/TO/mergekit-yaml] [--only ties,...] --json FILE [--missing]

FOLDER is one that `bench/make_checkpoints.py` wrote. For each merge, the bound and weightsmith run in turn
as whole processes, with the inputs in the page cache; a first round is not counted. The figure that matters
is the ratio of the two in the same round. A merge that fails, or whose result differs from what the oracles
say, is noted; the others go on, and the exit code is 1. FILE is written after every merge.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import make_checkpoints
import measure
from check import SMALL, check
from measure import Cost
from work import WORKS, Work

BENCH = Path(__file__).parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
MERGEKIT_FLAGS = ["--quiet", "--no-write-model-card", "--no-copy-tokenizer"]


def weights(folders: list[Path]) -> list[Path]:
    """Return the weight files of checkpoints."""
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def clear(folder: Path) -> None:
    """Remove a run's output and let the disk come to rest before the next run."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def sizes(paths: list[Path]) -> list[int]:
    """Return the sizes of files in bytes."""
    return [path.stat().st_size for path in paths]


def run_bound(inputs: list[Path], output_bytes: list[int], out: Path, *, overlap: bool = False) -> Cost:
    """Run the bound for these inputs and for output files of these sizes."""
    clear(out)
    written = ",".join(map(str, output_bytes))
    command = [sys.executable, "-I", "-S", str(BENCH / "bound.py"), "--out", str(out), "--bytes", written]
    cost = measure.run([*command, *(["--overlap"] if overlap else []), *map(str, inputs)])
    clear(out)
    return cost


def run_weightsmith(arguments: list[str], out: Path) -> Cost:
    """Run weightsmith; its output stays until the next run."""
    clear(out)
    return measure.run([sys.executable, "-m", "weightsmith", *arguments, "--out", str(out), "--quiet"])


def run_mergekit(program: Path, recipe: str, out: Path) -> Cost:
    """Run mergekit; its output stays until the next run."""
    clear(out)
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
        file.write(recipe)
        file.flush()
        return measure.run([str(program), file.name, str(out), *MERGEKIT_FLAGS], OFFLINE)


def agreement(work: Work, data: Path, result: Path, faults: list[str], peer: Path | None = None) -> object:
    """Check a result; note a disagreement instead of ending the whole measurement."""
    try:
        return check(work, data, result, peer)
    except ValueError as fault:
        note(str(fault), faults)
        return {"fault": str(fault)}


def note(fault: str, faults: list[str]) -> None:
    """Show what went wrong and keep it, without what a program printed before its last line, for the end."""
    lines = fault.splitlines()
    faults.append(fault if len(lines) == 1 else f"{lines[0].partition(': ')[0]}: failed: {lines[-1]}")
    print(f"  WRONG: {fault}", file=sys.stderr, flush=True)


def middle(costs: list[Cost], part: str) -> float:
    """Return the median of one measure."""
    return float(statistics.median(getattr(cost, part) for cost in costs))


def ratios(first: list[Cost], second: list[Cost]) -> dict[str, float]:
    """Return first / second, round by round: the median, and the least and the most of the wall time."""
    wall = [a.wall / b.wall for a, b in zip(first, second, strict=True)]
    cpu = [a.cpu / b.cpu for a, b in zip(first, second, strict=True)]
    return {
        "wall": statistics.median(wall),
        "wall_least": min(wall),
        "wall_most": max(wall),
        "wall_of_best": min(cost.wall for cost in first) / min(cost.wall for cost in second),
        "cpu": statistics.median(cpu),
    }


def measure_work(work: Work, options: argparse.Namespace, scratch: Path, faults: list[str]) -> dict[str, object]:
    """Measure one merge and return its entry of the JSON file."""
    data: Path = options.data
    out, peer_out = scratch / "out", scratch / "peer"
    inputs = weights([data / folder for folder in work.inputs()])
    arguments = work.arguments(data) + options.extra
    measure.touch(inputs)
    run_weightsmith(arguments, out)
    written = sizes(weights([out]))
    entry: dict[str, object] = {
        "command": " ".join(["weightsmith", *work.arguments(None), *options.extra, "--out", "out", "--quiet"]),
        "input_bytes": sizes(inputs),
        "output_bytes": written,
        "agreement": agreement(work, data, out, faults),
    }
    bound: list[Cost] = []
    overlapped: list[Cost] = []
    ours: list[Cost] = []
    peer: list[Cost] = []
    measure.touch(inputs)
    run_bound(inputs, written, scratch / "bound")
    began = time.monotonic()
    for _ in range(options.rounds):
        overlapped.append(run_bound(inputs, written, scratch / "bound", overlap=True))
        bound.append(run_bound(inputs, written, scratch / "bound"))
        ours.append(run_weightsmith(arguments, out))
        if time.monotonic() - began > options.round_seconds:
            break
    if options.mergekit and work.peer and work.method not in options.mergekit_skip:
        try:
            if options.parameters <= SMALL and work.comparable:
                run_mergekit(options.mergekit, work.recipe(data, exact=True), peer_out)
                entry["agreement_mergekit"] = agreement(work, data, out, faults, peer_out)
            for _ in range(options.mergekit_rounds):
                peer.append(run_mergekit(options.mergekit, work.recipe(data), peer_out))
            entry["mergekit"] = [cost.as_dict() for cost in peer]
            entry["mergekit_ratio"] = middle(peer, "wall") / middle(ours, "wall")
        except SystemExit as failure:
            note(f"{work.name}: mergekit: {failure}", faults)
        clear(peer_out)
    clear(out)
    entry["bound"] = [cost.as_dict() for cost in bound]
    entry["bound_overlapped"] = [cost.as_dict() for cost in overlapped]
    entry["weightsmith"] = [cost.as_dict() for cost in ours]
    entry["ratio_overlapped"] = ratios(ours, overlapped)
    entry["ratio"] = ratios(ours, bound)
    report(work, ours, bound, peer, entry)
    return entry


def report(work: Work, ours: list[Cost], bound: list[Cost], peer: list[Cost], entry: dict[str, object]) -> None:
    """Print one line per program."""
    ratio = ratios(ours, bound)
    spread = f"{ratio['wall_least']:.2f} to {ratio['wall_most']:.2f}"
    print(f"{work.name}: {ratio['wall']:.2f} x the bound ({spread})")
    for title, costs in (("bound", bound), ("weightsmith", ours), ("mergekit", peer)):
        if costs:
            print(
                f"  {title:12} {middle(costs, 'wall'):8.2f} s {middle(costs, 'cpu'):8.2f} s CPU "
                f"{max(cost.resident for cost in costs) / 1e6:8.0f} MB resident "
                f"{max(cost.anonymous for cost in costs) / 1e6:8.0f} MB anonymous"
            )
    for key in ("agreement", "agreement_mergekit"):
        if key in entry:
            print(f"  {key}: {entry[key]}")
    sys.stdout.flush()


def names(words: str) -> list[str]:
    """Read methods with commas between."""
    given = words.split(",")
    known = {work.method for work in WORKS}
    if not known.issuperset(given):
        unknown = ", ".join(name for name in given if name not in known)
        raise argparse.ArgumentTypeError(f"{unknown}: unknown; known: {', '.join(sorted(known))}")
    return given


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Measure merges against the bound and against mergekit.")
    parser.add_argument("--data", type=Path, required=True, help="folder with base, ft1, ft2, ft3")
    parser.add_argument("--mergekit", type=Path, help="the program mergekit-yaml of its own environment")
    parser.add_argument("--mergekit-rounds", type=int, default=1)
    parser.add_argument("--mergekit-skip", type=names, default=[], help="methods that mergekit does not run")
    parser.add_argument("--only", type=names, default=[], help="methods to measure, with commas between")
    parser.add_argument("--missing", action="store_true", help="keep what FILE holds, and measure the rest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-seconds", type=float, default=math.inf, help="start no further round after so long")
    parser.add_argument("--scratch", type=Path, help="where outputs go; by default beside the data")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    parser.add_argument("extra", nargs="*", help="after --: further options for weightsmith merge")
    options = parser.parse_args()
    header = make_checkpoints.describe(options.data)
    options.size, options.parameters = header["size"], header["parameters"]
    return options


def main() -> None:
    """Measure what was asked for, print it and write it down."""
    options = parse()
    faults: list[str] = []
    merges: dict[str, object] = {}
    if options.missing and options.json and options.json.exists():
        merges = json.loads(options.json.read_text(encoding="utf-8"))["merges"]
    results: dict[str, object] = {
        "machine": measure.machine(),
        "size": options.size,
        "parameters": options.parameters,
        "rounds": options.rounds,
        "merges": merges,
    }
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.scratch or options.data.parent))
    try:
        for work in WORKS:
            if work.name in merges or (options.only and work.method not in options.only):
                continue
            try:
                merges[work.name] = measure_work(work, options, scratch, faults)
            except (Exception, SystemExit) as failure:  # the others go on
                note(f"{work.name}: {type(failure).__name__}: {failure}", faults)
            if options.json:
                results["merges"] = {other.name: merges[other.name] for other in WORKS if other.name in merges}
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if faults:
        raise SystemExit("\n".join(["not as it should be:", *faults]))


if __name__ == "__main__":
    main()
