"""Measure merges against the bound and against mergekit, and assert the results.

    python bench/merge.py --data FOLDER [--mergekit PATH/TO/mergekit-yaml] [--only ties,...] --json FILE

FOLDER is one that `bench/make_checkpoints.py` wrote. For each merge, the bound and weightsmith run in turn
as whole processes, with the inputs in the page cache; a first round is not counted. The figure that matters
is the ratio of the two in the same round. A result that differs from what `bench/oracle.py` says ends with
exit code 1.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import make_checkpoints
import measure
from measure import Cost
from work import SMALL, WORKS, Work, check

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


def run_bound(inputs: list[Path], output_bytes: list[int], out: Path) -> Cost:
    """Run the bound for these inputs and for output files of these sizes."""
    clear(out)
    written = ",".join(map(str, output_bytes))
    command = [sys.executable, "-I", "-S", str(BENCH / "bound.py"), "--out", str(out), "--bytes", written]
    cost = measure.run([*command, *map(str, inputs)])
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
        faults.append(str(fault))
        print(f"  WRONG: {fault}", file=sys.stderr)
        return {"fault": str(fault)}


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
    ours: list[Cost] = []
    peer: list[Cost] = []
    measure.touch(inputs)
    run_bound(inputs, written, scratch / "bound")
    for _ in range(options.rounds):
        bound.append(run_bound(inputs, written, scratch / "bound"))
        ours.append(run_weightsmith(arguments, out))
    if options.mergekit and work.peer:
        if options.parameters <= SMALL:
            run_mergekit(options.mergekit, work.recipe(data, exact=True), peer_out)
            entry["agreement_mergekit"] = agreement(work, data, out, faults, peer_out)
        for _ in range(options.mergekit_rounds):
            peer.append(run_mergekit(options.mergekit, work.recipe(data), peer_out))
        clear(peer_out)
        entry["mergekit"] = [cost.as_dict() for cost in peer]
        entry["mergekit_ratio"] = middle(peer, "wall") / middle(ours, "wall")
    clear(out)
    entry["bound"] = [cost.as_dict() for cost in bound]
    entry["weightsmith"] = [cost.as_dict() for cost in ours]
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


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Measure merges against the bound and against mergekit.")
    parser.add_argument("--data", type=Path, required=True, help="folder with base, ft1, ft2, ft3")
    parser.add_argument("--mergekit", type=Path, help="the program mergekit-yaml of its own environment")
    parser.add_argument("--mergekit-rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="methods to measure, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
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
    wanted = set(options.only.split(",")) if options.only else {work.method for work in WORKS}
    unknown = wanted - {work.method for work in WORKS}
    if unknown:
        raise SystemExit(f"--only: {', '.join(sorted(unknown))}: unknown; known: {[w.method for w in WORKS]}")
    faults: list[str] = []
    results: dict[str, object] = {
        "machine": measure.machine(),
        "size": options.size,
        "parameters": options.parameters,
        "rounds": options.rounds,
        "merges": {},
    }
    merges: dict[str, object] = {}
    results["merges"] = merges
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.scratch or options.data.parent))
    try:
        for work in WORKS:
            if work.method in wanted:
                merges[work.name] = measure_work(work, options, scratch, faults)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if faults:
        raise SystemExit("\n".join(["results that are not as they should be:", *faults]))


if __name__ == "__main__":
    main()
