"""Measure what bundles keep: normalized accuracy against bits per weight, for every encoding, on the experts of `experts.py`.

    python bench/experts.py --data IMAGES --out EXPERTS
    python bench/bundles.py --data IMAGES --experts EXPERTS --json bundles.json
    python bench/bundle_table.py bundles.json --plot bundles.svg

Each setting packs all experts into one bundle, unpacks every task into an ordinary folder, and labels that task's test
images with it and the task's own head. What is searched (the lambda of TALL-masks, per task; that of merged models, one for
all) is searched on validation images. At fewer tasks than all, groups of neighbors are packed and merged, so that each task is
counted once at every number of tasks. The JSON file is written after each setting; a run that starts again measures what it
lacks. Ends with exit code 1 where something is not as it should be: see `faults`.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import weightsmith
from experts import TASKS, WEIGHTS, Split, accuracy, load_body, load_head, read_splits
from weightsmith.bundle.account import Account

MASK_LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
COUNTS = (2, 4, len(TASKS))
PLAIN = "tall_masks"  # the setting that budgeted bundles are compared with
HELD = 0.98  # normalized accuracy that TALL-masks have at most tasks
# Merged models: parameter and grid, searched at each number of tasks.
MERGES: dict[str, tuple[str, tuple[float, ...]]] = {
    "task_arithmetic": ("lambda_", (0.05, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75, 1.0)),
    "ties": ("lambda_", (0.15, 0.3, 0.6, 1.0, 1.4, 1.8)),
    "consensus": ("lambda_", (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)),
    "tsv_m": ("lambda_", (0.3, 0.6, 1.0, 1.4)),
}
# Encoding: what is set beside its defaults. One that is not named here is measured by its defaults.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "tall_masks": ({}, {"shared_dtype": "bfloat16"}, {"shared_dtype": "int8"}, {"merged": "ties"}),
    "emr": ({}, {"shared_dtype": "bfloat16"}, {"shared_dtype": "int8"}),
    "compeft": ({"density": 0.05}, {"density": 0.1}, {"density": 0.2}, {"density": 0.3}, {"density": 0.5}),
    "sparse": ({"density": 0.02}, {"density": 0.05}, {"density": 0.1}, {"density": 0.2}),
    "twin": ({"density": 0.1, "shared_dtype": "bfloat16"}, {"density": 0.1, "shared_dtype": "int8"}),
    "twin_svd": ({"rank": 8, "shared_dtype": "bfloat16"}, {"rank": 8, "shared_dtype": "int8"}),
    "low_rank": ({"rank": 4}, {"rank": 16}, {"rank": 32}, {"energy": 0.9}),
    "graft": ({}, {"energy": 0.7}),
    "rounded": ({"step": 0.25}, {"step": 0.5}, {"step": 1.0}),
}
BUDGETS = (0.25, 0.5, 1.0, 2.0, 3.0)  # bits per weight of each task, beside just below plain TALL-masks
Scores = dict[str, float]


class Session:
    """What all settings share: experts, heads, images, and the results so far."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.experts, self.scratch, self.json = options.experts, scratch, options.json
        self.base = options.experts / "base"
        self.names = [task.name for task in TASKS]
        self.heads = {name: load_head(options.experts, name) for name in self.names}
        self.splits: dict[str, dict[str, Split]] = {}
        for task in TASKS:
            found = read_splits(options.data, task)
            self.splits[task.name] = {
                "validation": found["validation"],
                "test": found["test"].first(options.examples),
            }
        self.results: dict[str, Any] = {"rows": {}, "trend": {}}
        if self.json.exists():
            self.results = json.loads(self.json.read_text(encoding="utf-8"))
        self.lambdas: dict[tuple[str, ...], list[float]] = {}

    def save(self) -> None:
        """Write the results so far."""
        partial = self.json.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.json)

    def models(self, names: Sequence[str]) -> dict[str, Path]:
        """Return the experts of some tasks."""
        return {name: self.experts / name for name in names}

    def score(self, folders: Mapping[str, Path], split: str) -> Scores:
        """Return each task's accuracy by the body in its folder."""
        return {
            name: accuracy(load_body(folder / WEIGHTS), self.heads[name], self.splits[name][split])
            for name, folder in folders.items()
        }

    def share(self, found: Scores, split: str) -> Scores:
        """Return accuracies as shares of the experts'."""
        return {name: value / self.results["experts"][split][name] for name, value in found.items()}

    def fresh(self, name: str) -> Path:
        """Return a place in the scratch folder with nothing there."""
        place = self.scratch / name
        shutil.rmtree(place, ignore_errors=True)
        return place


def mean(scores: Mapping[str, float]) -> float:
    """Return the mean over tasks."""
    return sum(scores.values()) / len(scores)


def packed(
    session: Session, names: Sequence[str], split: str, encoding: str | None, given: Mapping[str, Any]
) -> tuple[Scores, Account]:
    """Pack some experts, unpack them all, and return their accuracies and what the bundle stores."""
    bundle, out = session.fresh("bundle"), session.fresh("unpacked")
    done = weightsmith.pack(encoding, base=session.base, models=session.models(names), out=bundle, **given)
    folders = weightsmith.unpack(bundle, out).folders
    return session.score(folders, split), done.account


def mask_lambdas(session: Session, names: Sequence[str], merged: str) -> list[float]:
    """Return the lambda of each task that rebuilds it best on validation images, the smaller where equal."""
    known = session.lambdas.get((merged, *names))
    if known is None:
        tried = [
            packed(session, names, "validation", "tall_masks", {"merged": merged, "mask_lambda": [value]})[0]
            for value in MASK_LAMBDAS
        ]
        by_task = [[scores[name] for scores in tried] for name in names]
        known = [MASK_LAMBDAS[values.index(max(values))] for values in by_task]
        session.lambdas[merged, *names] = known
    return known


def merged_scores(session: Session, names: Sequence[str], method: str) -> dict[str, Any]:
    """Merge some experts into one model, with the parameter that is best on validation images."""
    parameter, grid = MERGES[method]
    models = session.models(names)

    def run(value: float, split: str) -> Scores:
        out = session.fresh("merged")
        given: dict[str, Any] = {parameter: value}
        weightsmith.merge(method, base=session.base, models=list(models.values()), out=out, **given)
        return session.score(dict.fromkeys(models, out), split)

    tried = [mean(session.share(run(value, "validation"), "validation")) for value in grid]
    best = grid[tried.index(max(tried))]
    return {"scores": run(best, "test"), "chosen": {parameter: best}}


def bits(account: Account, count: int) -> dict[str, float]:
    """Return bits per weight of each task: measured, by the card, and of a model by itself; the base is not counted.

    Measured is all that lies in the bundle for the tasks: shared part, pieces, manifests.
    """
    size = account.merged + account.frozen
    stored = account.shared_bytes + account.manifest_bytes
    stored += sum(pieces + manifest for pieces, manifest, _ in account.tasks.values())
    found = {"measured": 8 * stored / (count * size)}
    found["pieces"] = 8 * (account.shared_bytes + sum(p for p, _, _ in account.tasks.values())) / (count * size)
    if account.formula_bits is not None:
        found["card"] = (account.formula_bits - account.bits * size) / (count * size)
    return found


def bundle_row(session: Session, encoding: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one setting at all tasks."""
    names, row = session.names, dict[str, Any]()
    inputs = dict(given)
    if encoding == "tall_masks":
        inputs["mask_lambda"] = mask_lambdas(session, names, given.get("merged", "sum"))
        row["chosen"] = {"mask_lambda": inputs["mask_lambda"]}
    scores, account = packed(session, names, "test", encoding, inputs)
    row |= {"encoding": encoding or "chosen", "given": dict(given), "scores": scores, "bits": bits(account, len(names))}
    return row | {"share_of_models": account.bundle_bytes / account.individual_bytes}


def merged_row(session: Session, method: str) -> dict[str, Any]:
    """Measure one merged model for all tasks."""
    size = (session.base / WEIGHTS).stat().st_size
    numbers = sum(t.numel() for t in load_body(session.base / WEIGHTS).state_dict().values())
    measured = 8 * size / (numbers * len(session.names))
    found = merged_scores(session, session.names, method)
    return found | {
        "encoding": f"merge {method}",
        "given": {},
        "bits": {"measured": measured, "card": 32 / len(session.names)},
    }


def label(encoding: str | None, given: Mapping[str, Any]) -> str:
    """Return a setting's name."""
    words = [f"{name.replace('_', ' ')} {value}" for name, value in given.items()]
    return ", ".join([encoding or "chosen", *words])


def rows(session: Session) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, by name."""
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for encoding in weightsmith.encodings:
        for given in SETTINGS.get(encoding.name, ({},)):
            work[label(encoding.name, given)] = partial(bundle_row, session, encoding.name, given)
    for budget in BUDGETS:
        given = {"bits_per_weight": budget}
        work[label(None, given)] = partial(bundle_row, session, None, given)
    work["chosen, just below plain TALL-masks"] = partial(below_plain, session)
    for method in MERGES:
        work[f"merge {method}"] = partial(merged_row, session, method)
    return work


def below_plain(session: Session) -> dict[str, Any]:
    """Measure a bundle whose budget is nine tenths of what plain TALL-masks take."""
    room = 0.9 * session.results["rows"][PLAIN]["bits"]["pieces"]
    return bundle_row(session, None, {"bits_per_weight": round(room, 2)})


def trend(session: Session, count: int) -> dict[str, Any]:
    """Measure TALL-masks and every merged model at a number of tasks; at all tasks they are among the rows already."""
    if count == len(session.names):
        done = session.results["rows"]
        return {name: done[name if name == PLAIN else f"merge {name}"] for name in (PLAIN, *MERGES)}
    found: dict[str, Any] = {name: {"scores": {}, "chosen": {}} for name in (PLAIN, *MERGES)}
    for start in range(0, len(session.names), count):
        for name, row in trend_of_group(session, session.names[start : start + count]).items():
            found[name]["scores"] |= row["scores"]
            for parameter, value in row["chosen"].items():
                found[name]["chosen"].setdefault(parameter, []).extend(value if isinstance(value, list) else [value])
    return found


def trend_of_group(session: Session, names: Sequence[str]) -> dict[str, Any]:
    """Measure TALL-masks and every merged model on some tasks alone."""
    lambdas = mask_lambdas(session, names, "sum")
    scores, _ = packed(session, names, "test", PLAIN, {"mask_lambda": lambdas})
    found: dict[str, Any] = {PLAIN: {"scores": scores, "chosen": {"mask_lambda": lambdas}}}
    return found | {method: merged_scores(session, names, method) for method in MERGES}


def faults(results: Mapping[str, Any]) -> list[str]:
    """Return what is not as it should be.

    Lossless bundles rebuild each expert's accuracy; TALL-masks hold theirs, every merged model lies below them, and the best of
    the merged falls with the number of tasks; a budgeted bundle is smaller than plain TALL-masks and more accurate.
    """
    found, all_rows = [], results["rows"]
    if all_rows["lossless"]["scores"] != results["experts"]["test"]:
        found.append("lossless: other accuracies than the experts'")
    plain = all_rows[PLAIN]["normalized"]
    if plain < HELD:
        found.append(f"tall_masks: {plain:.4f} of the experts' accuracy at {COUNTS[-1]} tasks, {HELD} wanted")
    best = []
    for count in COUNTS:
        each = {name: row["normalized"] for name, row in results["trend"][str(count)].items()}
        masks = each.pop(PLAIN)
        best.append(max(each.values()))
        found += [f"merge {name}: not below TALL-masks at {count} tasks" for name, n in each.items() if n >= masks]
    if sorted(best, reverse=True) != best or len(set(best)) < len(best):
        found.append(f"the best merged model does not fall with the number of tasks: {best}")
    plain_bits = all_rows[PLAIN]["bits"]["measured"]
    better = [
        name
        for name, row in all_rows.items()
        if row["encoding"] == "chosen" and row["bits"]["measured"] < plain_bits and row["normalized"] > plain
    ]
    if not better:
        found.append("no budgeted bundle is smaller and more accurate than plain TALL-masks")
    return found


def measure(session: Session) -> None:
    """Measure what the results lack, and say what was found."""
    results = session.results
    if "experts" not in results:
        folders = session.models(session.names)
        results["experts"] = {split: session.score(folders, split) for split in ("validation", "test")}
        results["base"] = session.score(dict.fromkeys(folders, session.base), "test")
        results["examples"] = {name: len(split["test"].labels) for name, split in session.splits.items()}
        session.save()

    def finish(name: str, row: dict[str, Any]) -> dict[str, Any]:
        row["normalized"] = mean(session.share(row["scores"], "test"))
        told = f"{row['bits']['measured']:6.3f} bits, " if "bits" in row else ""
        print(f"{name}: {told}{row['normalized']:.4f} of the experts' accuracy", flush=True)
        return row

    for name, run in rows(session).items():
        if name not in results["rows"]:
            results["rows"][name] = finish(name, run())
            session.save()
    for count in COUNTS:
        if str(count) not in results["trend"]:
            each = {name: finish(f"{count} tasks, {name}", row) for name, row in trend(session, count).items()}
            results["trend"][str(count)] = each
            session.save()


def main(given: Sequence[str] | None = None) -> int:
    """Measure; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the image data sets")
    parser.add_argument("--experts", type=Path, required=True, help="folder that experts.py made")
    parser.add_argument("--json", type=Path, required=True, help="results; what it holds already is not measured again")
    parser.add_argument("--examples", type=int, default=0, help="test images per task at most; 0, the default: all")
    parser.add_argument("--threads", type=int, default=1, help="of torch, while images are labeled")
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="bundles-") as scratch:
        session = Session(options, Path(scratch))
        measure(session)
    wrong = faults(session.results)
    for fault in wrong:
        print(f"not as it should be: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
