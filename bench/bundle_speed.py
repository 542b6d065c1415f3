"""Measure packing, unpacking and switching tasks, and localize, against the bound, and assert the results.

    python bench/bundle_speed.py --data DATA [--sizes 1.1b] [--only tall_masks,...] [--growth 0.3b:3,1.1b:3,1.1b:6] --json FILE

DATA holds 15m, 0.3b, 1.1b as `bench/make_checkpoints.py` writes them. For each encoding three models are packed, one is
unpacked, and a model in memory is switched to it. The bound of a command is `bench/bound.py`: as a whole process it reads the
same files and writes and syncs as many bytes, with nothing in between: one after the other, or all at once (overlapped).
Unpacking reads base, shared part and the task's part,
and writes the model; packing reads all models and writes the bundle; localize reads all models. Of the switch, which writes
nothing to the disk, the bound is a copy of the model's bytes and reading both parts, see `bundle_switch.py`. Bound and
weightsmith run in turn, files in the page cache. The figure that matters is the share of the bound: its time over ours in the
same round. --growth packs and unpacks at other sizes and numbers of tasks, for peak memory alone; tasks beyond three are
hard links. What fails is noted, the others go on, and the exit code is 1. FILE is written after each.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import bundle_oracle
import make_checkpoints
import measure
from measure import Cost
from merge import clear, note, run_bound, run_weightsmith, sizes, weights
from scaling import models_of

BENCH = Path(__file__).parent
ENCODINGS = tuple(bundle_oracle.ORACLES)
# The share of the bound that unpacking and switching should reach at least: for masks and ternary vectors, and without loss.
GOALS = {"tall_masks": 0.5, "emr": 0.5, "compeft": 0.5, "lossless": 0.2}
GROWING = ("tall_masks", "compeft", "lossless")
TASK = 2  # of the three that are packed, the one that is unpacked, from 1


def shares(ours: Sequence[Mapping[str, float]], bound: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return bound / ours, the median over the rounds."""
    return {
        part: statistics.median(b[part] / max(o[part], 1e-9) for o, b in zip(ours, bound, strict=True))
        for part in ("wall", "cpu")
    }


class Rounds:
    """The costs of a command, and of its bound in the same rounds, plain and overlapped."""

    def __init__(self, inputs: Sequence[Path], written: Sequence[int], scratch: Path):
        self.inputs, self.written, self.scratch = list(inputs), list(written), scratch
        self.ours: list[Cost] = []
        self.plain: list[Cost] = []
        self.overlapped: list[Cost] = []

    def add(self, action: Callable[[], Cost]) -> None:
        """Run the bound both ways, and then the command."""
        self.overlapped.append(run_bound(self.inputs, self.written, self.scratch, overlap=True))
        self.plain.append(run_bound(self.inputs, self.written, self.scratch))
        self.ours.append(action())

    def entry(self) -> dict[str, Any]:
        """Return the measurements for the JSON file."""
        return compared(*([cost.as_dict() for cost in costs] for costs in (self.ours, self.plain, self.overlapped)))


def compared(
    ours: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]], overlapped: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Return costs and what share of each bound's speed was reached."""
    return {
        "weightsmith": ours,
        "bound": plain,
        "bound_overlapped": overlapped,
        "share": shares(ours, plain),
        "share_overlapped": shares(ours, overlapped),
    }


def arguments(base: Path, models: Sequence[Path]) -> list[str]:
    """Return the inputs of a command line; tasks are called after the folders."""
    return ["--base", str(base), *(word for model in models for word in ("--model", f"{model.name}={model}"))]


def part_of(bundle: Path, task: str) -> Path:
    """Return the folder of a task."""
    for path in bundle.glob("tasks/*/part.json"):
        if json.loads(path.read_text(encoding="utf-8"))["task"] == task:
            return path.parent
    raise ValueError(f"{bundle} has no task {task}")


def scales_of(folder: Path) -> dict[str, float]:
    """Return the scales that a task states, by tensor."""
    part = json.loads((folder / "part.json").read_text(encoding="utf-8"))
    return {t["name"]: m["settings"]["scale"] for t in part["tensors"] for m in t["terms"] if "scale" in m["settings"]}


def measure_pack(encoding: str, data: Path, models: Sequence[Path], bundle: Path, rounds: int) -> dict[str, Any]:
    """Measure packing; the last bundle stays."""
    base = data / "base"
    inputs = weights([base, *models])
    words = ["pack", encoding, *arguments(base, models)]
    measure.touch(inputs)
    run_weightsmith(words, bundle)
    written = sizes([p for p in sorted(bundle.rglob("*")) if p.is_file()])
    found = Rounds(inputs, written, bundle.parent / "bound")
    for _ in range(rounds):
        found.add(lambda: run_weightsmith(words, bundle))
    return {**found.entry(), "bundle_bytes": sum(written)}


def measure_unpack(encoding: str, data: Path, bundle: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Measure unpacking one task and compare it with its oracle; the folder stays."""
    task = f"ft{TASK}"
    folder = part_of(bundle, task)
    inputs = [*weights([data / "base"]), *weights([bundle / "shared"]), folder / "part.safetensors"]
    words = ["unpack", f"{bundle}#{task}", str(out), "--quiet"]
    measure.touch(inputs)

    def unpack() -> Cost:
        clear(out)
        return measure.run([sys.executable, "-m", "weightsmith", *words])

    unpack()
    names = [f"ft{n}" for n in (1, 2, 3)]
    checked = bundle_oracle.check(encoding, data, names, TASK - 1, scales_of(folder), out)
    found = Rounds(inputs, sizes(weights([out])), out.parent / "bound")
    for _ in range(rounds):
        found.add(unpack)
    return {**found.entry(), "part_bytes": sizes(inputs[-1:])[0], "entries_checked": checked}


def measure_switch(data: Path, bundle: Path, unpacked: Path, rounds: int) -> dict[str, Any]:
    """Measure switching a model in memory."""
    found = bundle.parent / "switch.json"
    words = [str(bundle), "ft1", f"ft{TASK}", "--base", str(data / "base"), "--expect", str(unpacked)]
    program = [sys.executable, str(BENCH / "bundle_switch.py"), *words, "--rounds", str(rounds), "--json", str(found)]
    cost = measure.run(program)
    times = json.loads(found.read_text(encoding="utf-8"))
    costs = compared(times["weightsmith"], times["bound"], times["bound_overlapped"])
    return {**costs, "anonymous_more": cost.anonymous - times["anonymous_before"]}


def measure_encoding(encoding: str, data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Measure one encoding at one size."""
    models = [data / f"ft{n}" for n in (1, 2, 3)]
    bundle, out = scratch / "bundle", scratch / "out"
    results = {
        "pack": measure_pack(encoding, data, models, bundle, rounds),
        "unpack": measure_unpack(encoding, data, bundle, out, rounds),
        "switch": measure_switch(data, bundle, out, rounds),
    }
    for verb, found in results.items():
        say(f"{encoding}, {data.name}, {verb}", found)
    return results


def measure_localize(data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Measure localize, whose bound writes nothing."""
    models = [data / f"ft{n}" for n in (1, 2, 3)]
    inputs = weights([data / "base", *models])
    words = [sys.executable, "-m", "weightsmith", "localize", *arguments(data / "base", models), "--json", "--quiet"]
    measure.touch(inputs)
    measure.run(words)
    costs = Rounds(inputs, [0], scratch / "bound")
    for _ in range(rounds):
        costs.add(lambda: measure.run(words))
    found = costs.entry()
    say(f"localize, {data.name}", found)
    return found


def measure_growth(encoding: str, data: Path, tasks: int, scratch: Path) -> dict[str, Any]:
    """Measure peak memory with a number of tasks."""
    models = models_of(data, tasks, scratch)
    bundle, out = scratch / "bundle", scratch / "out"
    packed = run_weightsmith(["pack", encoding, *arguments(data / "base", models)], bundle)
    clear(out)
    unpacked = measure.run([sys.executable, "-m", "weightsmith", "unpack", f"{bundle}#ft{TASK}", str(out), "--quiet"])
    print(
        f"{encoding}, {data.name}, {tasks} tasks: anonymous {packed.anonymous / 1e6:.0f} MB packing, "
        f"{unpacked.anonymous / 1e6:.0f} MB unpacking",
        flush=True,
    )
    return {
        "encoding": encoding,
        "size": data.name,
        "tasks": tasks,
        "pack": packed.as_dict(),
        "unpack": unpacked.as_dict(),
    }


def say(what: str, found: Mapping[str, Any]) -> None:
    """Print one line."""
    ours, bound = (
        {part: statistics.median(cost[part] for cost in found[who]) for part in ("wall", "cpu")}
        for who in ("weightsmith", "bound")
    )
    more = found.get("anonymous_more", max(cost.get("anonymous", 0) for cost in found["weightsmith"]))
    print(
        f"{what}: {found['share']['wall']:.2f} of the bound's speed, {found['share_overlapped']['wall']:.2f} overlapped; "
        f"{ours['wall']:.2f} s, {ours['cpu']:.2f} s CPU; bound {bound['wall']:.2f} s, {bound['cpu']:.2f} s CPU; "
        f"{more / 1e6:.0f} MB anonymous",
        flush=True,
    )


def goals_missed(size: str, results: Mapping[str, Any]) -> list[str]:
    """Return which goals were not reached; start-up counts too much in small models."""
    return [
        f"{encoding}, {size}, {verb}: {found[verb]['share']['wall']:.2f} of the bound's speed, wanted {GOALS[encoding]}"
        for encoding, found in results.items()
        if encoding in GOALS
        for verb in ("unpack", "switch")
        if found[verb]["share"]["wall"] < GOALS[encoding]
    ]


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Measure bundles and localize against the bound.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds 15m, 0.3b, 1.1b")
    parser.add_argument("--sizes", default="1.1b", help="sizes to measure, with commas between; '' for none")
    parser.add_argument("--only", default=",".join((*ENCODINGS, "localize")), help="encodings, and localize")
    parser.add_argument("--growth", default="", help="SIZE:TASKS, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where outputs go; by default beside the data")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print it and write it down."""
    options = parse()
    faults: list[str] = []
    results: dict[str, Any] = {"machine": measure.machine(), "rounds": options.rounds, "sizes": {}, "growth": []}
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.scratch or options.data))

    def attempt(what: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        found = None
        try:
            found = action()
        except (Exception, SystemExit) as failure:  # the others go on
            note(f"{what}: {type(failure).__name__}: {failure}", faults)
        for name in os.listdir(scratch):
            if name != "models":
                clear(scratch / name)
        return found

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    try:
        for size in filter(None, options.sizes.split(",")):
            data = options.data / size
            here = results["sizes"].setdefault(size, {"parameters": make_checkpoints.describe(data)["parameters"]})
            here["encodings"] = encodings = {}
            for name in options.only.split(","):
                if name == "localize":
                    here[name] = attempt(name, partial(measure_localize, data, scratch, options.rounds))
                    continue
                found = attempt(name, partial(measure_encoding, name, data, scratch, options.rounds))
                encodings.update({name: found} if found else {})
                save()
            if here["parameters"] >= 1_000_000_000:
                faults += goals_missed(size, encodings)
        for pair in filter(None, options.growth.split(",")):
            size, _, tasks = pair.partition(":")
            for name in GROWING:
                found = attempt(
                    f"{name}, {pair}", partial(measure_growth, name, options.data / size, int(tasks), scratch)
                )
                results["growth"] += [found] if found else []
                save()
        save()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if faults:
        raise SystemExit("\n".join(["not as it should be:", *faults]))


if __name__ == "__main__":
    main()
