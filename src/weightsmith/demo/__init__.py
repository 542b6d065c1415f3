"""The demo: train a base and eight experts on handwritten digits, merge and pack them, measure, report."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.demo.evaluate import TRIALS, Bench, Trial, accuracies, accuracy, measure, reference_rows
from weightsmith.demo.model import save
from weightsmith.demo.page import LOCALIZED, bundle_table, layer_counts, page, table
from weightsmith.demo.storing import measure_bundles
from weightsmith.demo.tasks import PLAIN, SPLITS, TASKS, Task, examples, imported
from weightsmith.demo.train import Settings, finetune_all, pretrain, reproducible
from weightsmith.demo.workers import side_by_side
from weightsmith.errors import ArgumentError, shown

if TYPE_CHECKING:
    from weightsmith.demo.tasks import Examples

__all__ = ["bundle_table", "demo", "table"]

DEFAULT_OUT = "weightsmith-demo"
MASK_LAMBDA = 0.4
WRITTEN = ("bundles", "checkpoints", "merged", LOCALIZED, "report.html", "results.json")


def demo(
    out: str | Path | None = None,
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Train a base and one expert per task, merge and pack them by every method, measure each result, and report.

    Args:
        out: The new folder, ./weightsmith-demo by default; a failure leaves nothing of it. Holds
            checkpoints/base, checkpoints/<task>, merged/<method>, bundles/<encoding>, report.html, localize.html
            and results.json.
        seed: Decides the split of the digits, the training and the random methods. The same seed gives the same
            results on the same machine, apart from the seconds.
        progress: Called with one line of text per step.
        force: Replace an older demo; nothing else is ever removed.

    Returns:
        What results.json holds: methods and bundles with accuracies, bytes and seconds; weights per layer by the
        number of tasks that need them.

    Raises:
        ArgumentError: seed is negative, or out exists and may not be replaced.
        ResourceError: torch or scikit-learn is missing.

    The same on the command line: weightsmith demo OUT --seed 0
    """
    return _demo(Path(DEFAULT_OUT if out is None else out).resolve(), seed, progress, force, Settings(), TASKS, TRIALS)


def _demo(
    out: Path,
    seed: int,
    progress: Callable[[str], None] | None,
    force: bool,
    settings: Settings,
    tasks: Sequence[Task],
    trials: Sequence[Trial],
) -> dict[str, Any]:
    """Run the demo with less training, fewer tasks or fewer methods than `demo` has, for the tests."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentError("demo: seed", expected="a whole number from 0", got=repr(seed))
    imported("torch")
    _check_target(out, force)
    with _replacing(out):
        return _fill(out, seed, progress or _silent, settings, tasks, trials)


def _fill(
    out: Path,
    seed: int,
    say: Callable[[str], None],
    settings: Settings,
    tasks: Sequence[Task],
    trials: Sequence[Trial],
) -> dict[str, Any]:
    began = time.perf_counter()
    with reproducible():
        bench, trained = _train(out, seed, say, settings, tuple(tasks))
        say(f"merge by {len(trials)} methods, pack and unpack; what is done first is told first")
        jobs = [partial(measure_bundles, bench), *(partial(measure, bench, trial) for trial in trials)]
        bundles, *merged = side_by_side(jobs, lambda rows: _tell(rows, say))
        rows = [*reference_rows(bench), *(row for found in merged for row in found)]
        say("find the weights that no task, one task and several tasks need, and score them")
        _localize(bench)
    results = {
        "weightsmith_demo": 1,
        "weightsmith": version("weightsmith"),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("numpy", "torch")}},
        "seed": seed,
        "splits": SPLITS,
        "tasks": [{"name": t.name, "about": t.about, "classes": t.classes} for t in tasks],
        "trained": trained,
        "methods": rows,
        "bundles": bundles,
        "agreement": _agreement(out, tasks),
        "seconds": time.perf_counter() - began,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(results), encoding="utf-8")
    return results


def _train(
    out: Path, seed: int, say: Callable[[str], None], settings: Settings, tasks: tuple[Task, ...]
) -> tuple[Bench, dict[str, Any]]:
    """Train base and experts, write them as checkpoint folders, and measure the experts."""
    data, (plain,) = examples(seed, tasks), examples(seed, (PLAIN,))
    say("train the base on plain digits and a few examples of every task")
    began = time.perf_counter()
    base, heads = pretrain(plain, data, settings, seed)
    base_seconds = time.perf_counter() - began
    say(f"base trained in {base_seconds:.1f} s; train {len(tasks)} experts")
    began = time.perf_counter()
    experts = finetune_all(base, heads, data, settings, seed, lambda name: say(f"expert {name} trained"))
    experts_seconds = time.perf_counter() - began
    save(out / "checkpoints" / "base", base, None, settings.shape)
    for name, weights in experts.items():
        save(out / "checkpoints" / name, weights, heads[name], settings.shape)

    def measured(example: Examples, split: str) -> float:
        name = example.task.name
        return accuracy(experts[name], heads[name], settings.shape, example, split)

    found = {split: {e.task.name: measured(e, split) for e in data} for split in ("validation", "test")}
    trained = {
        "weights": sum(tensor.numel() for tensor in base.values()),
        "layers": settings.shape.layers,
        "base_images": settings.base_images,
        "base": {"seconds": base_seconds},
        "experts": {"seconds": experts_seconds},
    }
    return Bench(out, data, heads, settings.shape, found, seed), trained


def _tell(rows: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Say one line of each row of either table."""
    for row in rows:
        name = f"bundle {row['encoding']}" if "encoding" in row else row["method"]
        share = f"{name}: {100 * row['normalized_accuracy']:.1f} % of the experts' accuracy"
        if "encoding" in row:
            share += f" at {row['bits_per_weight']:.2f} bits per weight"
        elif row["knob"]:
            share += f", {row['knob']} chosen on validation"
        say(share)


def _localize(bench: Bench) -> None:
    """Write the page that says where the tasks lie, with the score of each task behind its mask."""
    from weightsmith.localization import localize
    from weightsmith.report import write_report

    def score(folder: Path, task: str) -> float:
        return accuracies(bench, folder, [task], "validation")[task]

    models = {e.task.name: bench.out / "checkpoints" / e.task.name for e in bench.tasks}
    base = bench.out / "checkpoints" / "base"
    found = localize(base, models, lambdas=MASK_LAMBDA, spectra=True, score=score)
    write_report(found, bench.out / LOCALIZED)


def _agreement(out: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    from weightsmith.agreement import agreement

    models = [out / "checkpoints" / task.name for task in tasks]
    counts = agreement(out / "checkpoints" / "base", models, mask_lambda=MASK_LAMBDA)
    return {"mask_lambda": MASK_LAMBDA, "tasks": len(tasks), **layer_counts(counts)}


def _check_target(out: Path, force: bool) -> None:
    """Refuse to write over anything but an older demo, and over that only with force."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    where = f"demo: {shown(out)}"
    if not _is_demo(out):
        raise ArgumentError(where, expected="a new folder", got="something that no demo wrote", do="Choose another")
    others = sorted(p.name for p in out.iterdir() if p.name not in WRITTEN)
    if others:
        raise ArgumentError(
            where, expected="a demo and nothing else", got=f"also {shown(others[0])}", do="Move it away"
        )
    if not force:
        raise ArgumentError(where, expected="a new folder", got="an older demo", do="Pass --force to replace it")


def _is_demo(out: Path) -> bool:
    try:
        found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("weightsmith_demo") == 1


@contextmanager
def _replacing(out: Path) -> Iterator[None]:
    """Keep an older demo aside until the new one is complete; on failure put it back and leave nothing new.

    The new one is written in its final place, because the records of its merges name their inputs.
    """
    aside = out.with_name(f".{out.name}.old-{os.getpid()}") if out.exists() else None
    if aside:
        out.rename(aside)
    try:
        out.mkdir(parents=True)
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        if aside:
            aside.rename(out)
        raise
    if aside:
        shutil.rmtree(aside)


def _silent(_: str) -> None:
    """Say nothing."""
