"""Measure how time and memory grow with the number of models and of parameters.

    python bench/scaling.py --data FOLDER --sizes 15m,0.3b,1.1b --models 3,6,12 --json FILE

FOLDER/1.1b and so on are what `bench/make_checkpoints.py` writes; missing ones are made, and removed again
with --remove. More than three models are hard links to the first three, so that they cost no disk. Models
are counted at one size (--models-size), sizes at three models; a method that takes fewer, or whose models are chosen for it
(`work.py`), is measured with those. The bound runs in turn with weightsmith, on
the same inputs. A run that fails is noted and the others go on; FILE is written after each.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

import make_checkpoints
import measure
from measure import Cost
from merge import middle, ratios, run_bound, run_weightsmith, sizes, weights
from work import FINETUNED, WORKS

METHODS = {work.name: work for work in WORKS}
EXACTLY_THREE = ("robust_signatures",)
PER_MODEL = ("--coefficients", "--densities", "--epsilons")  # one value for each model


def link(folder: Path, copy: Path) -> Path:
    """Make a checkpoint folder of hard links."""
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        os.link(path, copy / path.name)
    return copy


def models_of(data: Path, count: int, scratch: Path) -> list[Path]:
    """Return `count` folders: the three fine-tunes, then links to them in turn."""
    made = [data / f"ft{number}" for number in (1, 2, 3)]
    copies = scratch / "models"
    shutil.rmtree(copies, ignore_errors=True)
    more = [link(made[number % 3], copies / f"ft{number + 1}") for number in range(3, count)]
    return [*made[:count], *more]


def measure_one(method: str, data: Path, count: int, options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Measure one method on one size with `count` models."""
    work = METHODS[method]
    models = models_of(data, count, scratch) if work.models == FINETUNED else [data / name for name in work.models]
    words = ["merge", work.method]
    folders = list(models)
    if work.base:
        words += ["--base", str(data / work.base)]
        folders.insert(0, data / work.base)
    for model in models:
        words += ["--model", str(model)]
    chosen = [*work.options, *options.extra]
    for option in PER_MODEL:
        if option in chosen:
            place = chosen.index(option) + 1
            chosen[place] = ",".join(islice(cycle(chosen[place].split(",")), len(models)))
    words += chosen
    inputs = weights(folders)
    measure.touch(inputs)
    run_weightsmith(words, scratch / "out")
    written = sizes(weights([scratch / "out"]))
    run_bound(inputs, written, scratch / "bound")
    bound: list[Cost] = []
    ours: list[Cost] = []
    for _ in range(options.rounds):
        bound.append(run_bound(inputs, written, scratch / "bound"))
        ours.append(run_weightsmith(words, scratch / "out"))
    shutil.rmtree(scratch / "out", ignore_errors=True)
    described = make_checkpoints.describe(data)
    entry: dict[str, object] = {
        "method": method,
        "command": " ".join(["weightsmith", "merge", work.method, "...", *chosen]),
        "size": described["size"],
        "parameters": described["parameters"],
        "models": len(models),
        "read": len(folders),
        "bound": [cost.as_dict() for cost in bound],
        "weightsmith": [cost.as_dict() for cost in ours],
        "ratio": ratios(ours, bound),
    }
    print(
        f"{method}, {described['size']}, {len(models)} models: "
        f"{middle(ours, 'wall'):.2f} s, {middle(ours, 'cpu'):.2f} s CPU, "
        f"{max(cost.anonymous for cost in ours) / 1e6:.0f} MB anonymous, "
        f"{ratios(ours, bound)['wall']:.2f} x the bound of {middle(bound, 'wall'):.2f} s",
        flush=True,
    )
    return entry


def measure_size(
    size: str, counts: list[int], options: argparse.Namespace, entries: list[dict[str, object]]
) -> list[str]:
    """Measure all methods at one size, making the checkpoints if need be; return what failed."""
    failures = []
    data = options.data / size
    absent = not data.exists()
    make_checkpoints.make(data, size, 3)
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.data))
    try:
        for method in options.methods:
            for count in counts if METHODS[method].models == FINETUNED and method not in EXACTLY_THREE else [3]:
                try:
                    entries.append(measure_one(method, data, count, options, scratch))
                except (Exception, SystemExit) as failure:  # the others go on
                    failures.append(f"{method}, {size}, {count} models: {failure}")
                    print(f"  FAILED: {failures[-1]}", file=sys.stderr, flush=True)
                if options.json:
                    results = {"machine": measure.machine(), "rounds": options.rounds, "scaling": entries}
                    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if absent and options.remove:
            shutil.rmtree(data)
    return failures


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description="Time and memory against the number of models and parameters.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds 15m, 1.1b, ...")
    parser.add_argument("--sizes", default="15m,0.3b,1.1b", help="sizes to measure with three models")
    parser.add_argument("--models", default="3,6,12", help="numbers of models to measure")
    parser.add_argument("--models-size", default="1.1b", help="the size at which models are counted")
    parser.add_argument("--methods", default=";".join(METHODS), help="methods, with semicolons between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remove", action="store_true", help="remove the checkpoints that this run made")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    parser.add_argument("extra", nargs="*", help="after --: further options for weightsmith merge")
    options = parser.parse_args()
    options.methods = options.methods.split(";")
    unknown = [method for method in options.methods if method not in METHODS]
    if unknown:
        raise SystemExit(f"--methods: {unknown}: unknown; known: {';'.join(METHODS)}")
    return options


def main() -> None:
    """Measure every size with three models, and one size with every number of models."""
    options = parse()
    sizes = [size for size in options.sizes.split(",") if size]
    counts = [int(count) for count in options.models.split(",") if count]
    if counts and options.models_size not in sizes:
        sizes.append(options.models_size)
    entries: list[dict[str, object]] = []
    failures: list[str] = []
    for size in sizes:
        here = sorted({3, *counts}) if size == options.models_size else [3]
        failures += measure_size(size, here, options, entries)
    if failures:
        raise SystemExit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    main()
