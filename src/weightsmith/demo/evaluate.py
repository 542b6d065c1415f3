"""Merging and measuring for the demo: every method runs through the command line, as a user would run it."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.demo.model import Shape, Weights, load, logits
from weightsmith.demo.tasks import Examples, imported
from weightsmith.errors import WeightsmithError
from weightsmith.plan.headers import find_method

WEIGHT_FILE = "model.safetensors"
TRIAL = "merged/.trial-{}"  # where the search for a method's knob puts its results
FOLDERS = ("checkpoints/", "merged/", "bundles/", "unpacked/")  # what paths in commands begin with


@dataclass(frozen=True)
class Trial:
    """How the demo runs a method.

    Attributes:
        method: The method's name.
        kind: "one" model from all experts; "pair" of the first two experts; "each" expert on its own;
            "rebuilt" expert t from what all share, by --task t.
        options: Fixed options.
        knob: The option searched on validation digits; "" where none is.
        grid: Its values; the best wins, the earlier where equal.
    """

    method: str
    kind: str = "one"
    options: tuple[str, ...] = ()
    knob: str = ""
    grid: tuple[float, ...] = ()


SUM_GRID = (0.05, 0.1, 0.15, 0.2, 0.3)
MEAN_GRID = (0.25, 0.5, 0.75, 1.0, 1.5)
SHORT_GRID = (0.5, 1.0)

TRIALS = (
    Trial("linear"),
    Trial("task_arithmetic", knob="--lambda", grid=SUM_GRID),
    Trial("slerp", "pair", ("--t", "0.5")),
    Trial("ties", options=("--density", "0.2"), knob="--lambda", grid=MEAN_GRID),
    Trial("dare", options=("--density", "0.5"), knob="--lambda", grid=SUM_GRID),
    Trial("dare_ties", options=("--density", "0.5"), knob="--lambda", grid=MEAN_GRID),
    Trial("breadcrumbs", options=("--density", "0.5"), knob="--lambda", grid=SUM_GRID),
    Trial("breadcrumbs_ties", options=("--density", "0.5"), knob="--lambda", grid=MEAN_GRID),
    Trial("wise_ft", "each", ("--lambda", "0.5")),
    Trial("lines", knob="--beta", grid=(0.0, 0.05, 0.1, 0.2, 0.3)),
    Trial("tall_masks", "rebuilt", knob="--mask-lambda", grid=(0.3, 0.4, 0.5)),
    Trial("consensus", options=("--mask-lambda", "0.4"), knob="--lambda", grid=(0.1, 0.2, 0.3, 0.4, 0.5)),
    Trial("magmax", knob="--lambda", grid=SHORT_GRID),
    Trial("emr", "rebuilt"),
    Trial("pcb", knob="--lambda", grid=SHORT_GRID),
    Trial("model_stock"),
    Trial("karcher"),
    Trial("lt_sft", options=("--density", "0.2")),
    Trial("flag", knob="--lambda", grid=SHORT_GRID),
    Trial("della", knob="--lambda", grid=(0.1, 0.2)),
    Trial("della_linear", knob="--lambda", grid=(0.1, 0.2)),
    Trial("nuslerp", "pair"),
    Trial("nuslerp_base", "pair"),
    Trial("nuslerp_columns", "pair"),
    Trial("nuslerp_columns_base", "pair"),
    Trial("multislerp"),
    Trial("multislerp_base"),
    Trial("nearswap", "each", ("--t", "0.01")),
    Trial("arcee_fusion", "each"),
    Trial("sce"),
    Trial("sparse_task_arithmetic", options=("--consensus", "true", "--normalize", "true")),
    Trial("ram"),
    Trial("ramplus"),
    Trial("tsv_m", knob="--lambda", grid=SHORT_GRID),
    Trial("iso_c", knob="--lambda", grid=SHORT_GRID),
    Trial("iso_cts", knob="--lambda", grid=SHORT_GRID),
    Trial("knots", knob="--lambda", grid=SHORT_GRID),
    Trial("wudi"),
    Trial("doge"),
    Trial("delta_svd", options=("--energy", "0.9"), knob="--lambda", grid=(0.1, 0.2)),
)
# No merge of the experts: they change depth, or need a model that the demo does not train.
LEFT_OUT = ("passthrough", "rebase", "robust_signatures")
SERVES = {
    "one": "all tasks",
    "pair": "two tasks",
    "each": "one task",
    "rebuilt": "one task",
}


@dataclass(frozen=True)
class Bench:
    """What measuring needs.

    Attributes:
        out: The demo's folder, with checkpoints/base and checkpoints/<task>.
        tasks: The tasks with their examples.
        heads: Task name to its frozen head.
        shape: The trunk's sizes.
        experts: Split to task name to the expert's accuracy.
        seed: For the methods that draw at random.
    """

    out: Path
    tasks: tuple[Examples, ...]
    heads: Mapping[str, Weights]
    shape: Shape
    experts: Mapping[str, Mapping[str, float]]
    seed: int


def accuracy(weights: Weights, head: Weights, shape: Shape, task: Examples, split: str) -> float:
    """Return the share of a split's examples that the model labels correctly."""
    torch = imported("torch")
    with torch.no_grad():
        found = logits(weights, head, torch.from_numpy(task.images[split]), shape).argmax(-1)
    return float((found.numpy() == task.labels[split]).mean())


def normalized(found: Mapping[str, float], experts: Mapping[str, float]) -> float:
    """Return the mean over the tasks found of accuracy / the expert's accuracy: 1 is as good as the experts.

    >>> normalized({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.9})
    0.75
    """
    return sum(a / experts[name] for name, a in found.items()) / len(found)


def run_command(arguments: Sequence[str]) -> str:
    """Run one `weightsmith ...` in this process; return what it prints, raise what it says where it fails."""
    from weightsmith.cli import main

    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = main(list(arguments))
    if code != 0:
        raise WeightsmithError(f"demo: weightsmith {' '.join(arguments[:2])} failed", got=said.getvalue().strip())
    return printed.getvalue()


def reference_rows(bench: Bench) -> list[dict[str, Any]]:
    """Return the rows of the base (zero-shot) and of the experts themselves."""
    base, _ = load(bench.out / "checkpoints" / "base")
    found = {e.task.name: accuracy(base, bench.heads[e.task.name], bench.shape, e, "test") for e in bench.tasks}
    size = (bench.out / "checkpoints" / "base" / WEIGHT_FILE).stat().st_size
    return [
        _row(bench, "base", SERVES["one"], found, size),
        _row(bench, "experts", SERVES["each"], bench.experts["test"], size * len(bench.tasks)),
    ]


def measure(bench: Bench, trial: Trial) -> list[dict[str, Any]]:
    """Search the knob, run the best value again under the clock, measure on test digits; return the table's row."""
    names = [e.task.name for e in bench.tasks]
    groups = {"one": [names], "pair": [names[:2]]}.get(trial.kind, [[name] for name in names])
    found: dict[str, float] = {}
    values: list[float] = []
    commands: list[str] = []
    seconds, size = 0.0, 0
    for group in groups:
        folder = f"merged/{trial.method}" + (f"/{group[0]}" if trial.kind in ("each", "rebuilt") else "")
        value = _search(bench, trial, group)
        began = time.perf_counter()
        arguments = _arguments(bench, trial, group, value, folder)
        run_command(absolute(bench.out, arguments))
        seconds += time.perf_counter() - began
        found |= accuracies(bench, folder, group, "test")
        size += (bench.out / folder / WEIGHT_FILE).stat().st_size
        values += [] if value is None else [value]
        commands.append("weightsmith " + " ".join(arguments))
    shutil.rmtree(bench.out / TRIAL.format(trial.method))
    row = _row(bench, trial.method, SERVES[trial.kind], found, size)
    row |= {"seconds": seconds, "knob": trial.knob[2:], "values": values, "tried": list(trial.grid)}
    row |= {"commands": commands}
    if trial.kind == "rebuilt":
        row |= {"bytes": shared_bytes(size // len(groups), len(groups)), "bytes_are": "formula"}
    return [row]


def shared_bytes(model_bytes: int, tasks: int) -> int:
    """Return what TALL-masks keeps: the base, one vector of the same size, and one bit per weight and task.

    >>> shared_bytes(400, 8)  # 100 weights of four bytes
    900
    """
    return 2 * model_bytes + -(-tasks * (model_bytes // 4) // 8)


def _search(bench: Bench, trial: Trial, group: Sequence[str]) -> float | None:
    """Return the knob's value with the best normalized accuracy on validation digits.

    Without a knob there is one run, its result thrown away: no method's time then holds a first-time compilation.
    """
    best, best_value = -1.0, None
    for value in trial.grid or (None,):
        folder = TRIAL.format(trial.method)
        run_command([*absolute(bench.out, _arguments(bench, trial, group, value, folder)), "--force"])
        if value is not None:
            score = normalized(accuracies(bench, folder, group, "validation"), bench.experts["validation"])
            if score > best:
                best, best_value = score, value
    return best_value


def _arguments(bench: Bench, trial: Trial, group: Sequence[str], value: float | None, folder: str) -> list[str]:
    """Return the command's words after `weightsmith`, with paths relative to the demo's folder."""
    names = [e.task.name for e in bench.tasks]
    found = ["merge", trial.method]
    method = find_method(trial.method)
    if method.has_base:
        found += ["--base", "checkpoints/base"]
    for name in names if trial.kind == "rebuilt" else group:
        found += ["--model", f"checkpoints/{name}"]
    found += trial.options
    if trial.kind == "rebuilt":
        found += ["--task", str(names.index(group[0]) + 1)]
    if value is not None:
        found += [trial.knob, f"{value:g}"]
    if "seed" in method.parameters:
        found += ["--seed", str(bench.seed)]
    return [*found, "--out", folder]


def absolute(out: Path, arguments: Sequence[str]) -> list[str]:
    """Put the demo's folder before the paths, and ask for silence."""
    return [*(str(out / word) if word.startswith(FOLDERS) else word for word in arguments), "--quiet"]


def accuracies(bench: Bench, folder: str | Path, group: Sequence[str], split: str) -> dict[str, float]:
    """Return the accuracy of the model in a folder, of the demo's or any other, on each of some tasks."""
    weights, shape = load(bench.out / folder)
    chosen = [e for e in bench.tasks if e.task.name in group]
    return {e.task.name: accuracy(weights, bench.heads[e.task.name], shape, e, split) for e in chosen}


def _row(bench: Bench, method: str, serves: str, found: Mapping[str, float], size: int) -> dict[str, Any]:
    return {
        "method": method,
        "serves": serves,
        "accuracy": {e.task.name: found.get(e.task.name) for e in bench.tasks},
        "mean_accuracy": sum(found.values()) / len(found),
        "normalized_accuracy": normalized(found, bench.experts["test"]),
        "bytes": size,
        "bytes_are": "files",
        "seconds": None,
        "knob": "",
        "values": [],
        "tried": [],
        "commands": [],
    }
