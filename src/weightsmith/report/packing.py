"""The page of a bundle: what it stores, where the bytes go, and what accuracy they keep."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from weightsmith.checkpoint.bundle import WEIGHTS, read_bundle, read_part, read_pieces
from weightsmith.report.charts import Bar, Point, bars, scatter
from weightsmith.report.depth import depth_of
from weightsmith.report.heat import fit, flatten, heat_map
from weightsmith.report.page import Page, Section, Tile, folded, titled, words
from weightsmith.report.table import Column, table
from weightsmith.report.text import bits, count, percent, place, short, size

# Of one tensor of one task: its name, shape, forms, bytes of its pieces.
Stored = tuple[str, tuple[int, ...], tuple[str, ...], int]


def packing_page(
    summary: Mapping[str, Any],
    content: Mapping[str, Any],
    tensors: Mapping[str, Sequence[Stored]],
    scores: Sequence[tuple[str, float, float]] = (),
) -> Page:
    """Return the page of a bundle.

    Args:
        summary: The plain data of what `pack` returned.
        content: What bundle.json says.
        tensors: Task to what it stores of each tensor, as `stored_tensors` reads it.
        scores: Where accuracy is known: a name, bytes in all, and normalized accuracy, of this bundle and of others.
    """
    storage = summary["storage"]
    tasks = storage["tasks"]
    mean = math.fsum(t["bits_per_weight"] for t in tasks.values()) / max(1, len(tasks))
    name = place(str(summary["out"]))
    return Page(
        title=f"{short(name, 60)}: {len(tasks)} {'tasks' if len(tasks) != 1 else 'task'} in one bundle",
        lead=f"Packed by {content['encoding']} from {content['base']['reference']}, in {summary['seconds']:.1f} s.",
        tiles=(
            Tile("Bundle", size(storage["bundle_bytes"]), "with its base, from which every task is rebuilt"),
            Tile("Separate models", size(storage["individual_bytes"]), f"{storage['ratio']:.2f} times the bundle"),
            Tile("Per task", f"{bits(mean)} bits", "for each weight, mean over the tasks"),
            Tile("Shared", size(storage["shared_bytes"]), "by all tasks, beside the base"),
            Tile("Base", size(storage["base_bytes"]), "copied" if content["base"]["copied"] else "by reference"),
            *_formula(storage),
        ),
        sections=(
            _storage(storage),
            *_scores(scores),
            *_depth(tensors),
            _tensors(tensors),
            _digests(content, storage, summary["notes"]),
        ),
    )


def stored_tensors(bundle: str | Path) -> dict[str, list[Stored]]:
    """Return task to what the bundle stores of each tensor; from headers and manifests alone."""
    opened, found = read_bundle(Path(bundle)), {}
    for task in opened.tasks:
        pieces = read_pieces(opened.place(task) / WEIGHTS, opened.place(task))
        nbytes: dict[str, int] = {}
        for key, entry in pieces.items():
            name = key.rpartition("/")[0]
            nbytes[name] = nbytes.get(name, 0) + entry.nbytes
        found[task] = [
            (t["name"], tuple(t["shape"]), tuple(term["form"] for term in t["terms"]), nbytes.get(t["name"], 0))
            for t in read_part(opened, task)["tensors"]
        ]
    return found


def _formula(storage: Mapping[str, Any]) -> Iterator[Tile]:
    if storage["formula_bits"] is not None:
        told = storage["formula_bits"] / 8
        share = storage["bundle_bytes"] / max(1, told)
        yield Tile("By the formula", size(told), f"the bundle is {percent(share)} of it")


def _storage(storage: Mapping[str, Any]) -> Section:
    tasks = storage["tasks"]
    total = [
        Bar("models by themselves", storage["individual_bytes"], "reference"),
        Bar("this bundle", storage["bundle_bytes"]),
        *([Bar("by the formula", storage["formula_bits"] / 8, "reference")] if storage["formula_bits"] else []),
        Bar("its base", storage["base_bytes"], "per"),
        Bar("its shared part", storage["shared_bytes"], "per"),
        Bar("its tasks", sum(_task_bytes(t) for t in tasks.values()), "per"),
    ]
    each = [Bar(name, t["bits_per_weight"], about=f"{name}, {size(_task_bytes(t))}") for name, t in tasks.items()]
    about = "Bits of each task's own pieces for each weight of the model"
    return Section(
        "Where the bytes go",
        "Measured on disk, beside the models by themselves.",
        (
            bars(total, size, about="Bytes of the bundle and its parts, and of the models"),
            titled("Bits for each weight, by task", bars(each, bits, about=about)),
        ),
    )


def _task_bytes(task: Mapping[str, Any]) -> int:
    return int(task["pieces_bytes"] + task["manifest_bytes"] + task["beside_bytes"])


def _scores(scores: Sequence[tuple[str, float, float]]) -> Iterator[Section]:
    if scores:
        points = [Point(nbytes, accuracy, name, f"s{i % 8}") for i, (name, nbytes, accuracy) in enumerate(scores)]
        picture = scatter(
            points, x=("bytes", size), y=("normalized accuracy", percent), about="Storage against accuracy"
        )
        about = "Accuracy as a share of the individual models', against bytes in all. Up and to the left is better."
        yield Section("Storage against accuracy", about, (picture,))


def _depth(tensors: Mapping[str, Sequence[Stored]]) -> Iterator[Section]:
    """Yield the section on bits for each weight by layer, kind and task; none where nothing is stored."""
    named = [(name, (8 * nbytes, math.prod(shape))) for rows in tensors.values() for name, shape, _, nbytes in rows]
    if not any(stored for _, (stored, _) in named):
        return
    depth = depth_of(named, _sum)
    by_kind = depth.by_kind(lambda cell: _rate(cell["value"]))
    by_task = []
    for rows in tensors.values():
        own = depth_of([(n, (8 * nbytes, math.prod(shape))) for n, shape, _, nbytes in rows], _sum)
        rates = {part["name"]: _rate(part["value"]) for part in own.layers}
        by_task.append([rates.get(part["name"]) for part in depth.layers])
    scale = fit([*flatten(by_kind), *flatten(by_task)], bits)
    measure = "bits for each weight"
    yield Section(
        "Bits by depth",
        "Bits that a task's own pieces take for each weight, by layer and kind (mean over the tasks), and by layer and task.",
        (
            titled("By layer and kind", heat_map(depth.kinds, depth.labels, by_kind, scale, measure=measure)),
            titled(
                "By layer and task", heat_map(list(tensors), depth.labels, by_task, scale, measure=measure, row="task")
            ),
        ),
    )


def _sum(found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(stored for stored, _ in found), sum(weights for _, weights in found)


def _rate(found: tuple[int, int]) -> float | None:
    return found[0] / found[1] if found[1] else None


def _tensors(tensors: Mapping[str, Sequence[Stored]]) -> Section:
    """Return the table of tensors, added up over the tasks."""
    held: dict[str, list[Stored]] = {}
    for rows in tensors.values():
        for row in rows:
            held.setdefault(row[0], []).append(row)
    listed = []
    for name, found in held.items():
        forms = dict.fromkeys(" + ".join(row[2]) or "as in the base" for row in found)
        weights = sum(math.prod(row[1]) for row in found)
        nbytes = [row[3] for row in found]
        shape = " × ".join(map(str, found[0][1])) or "–"
        listed.append(
            (
                name,
                shape,
                ", ".join(forms),
                len(found),
                sum(nbytes),
                8 * sum(nbytes) / max(1, weights),
                min(nbytes),
                max(nbytes),
            )
        )
    heads = (
        Column("tensor"),
        Column("shape"),
        Column("stored as"),
        Column("tasks", count),
        Column("bytes", count, "of all tasks together"),
        Column("bits per weight", bits, "mean over the tasks"),
        Column("smallest", count, "bytes in the task where it is smallest"),
        Column("largest", count, "bytes in the task where it is largest"),
    )
    return Section("Tensors", "A click on a heading sorts.", (table(heads, listed, sortable=True),))


def _digests(content: Mapping[str, Any], storage: Mapping[str, Any], notes: Sequence[str]) -> Section:
    base = content["base"]
    made = [("encoding", content["encoding"]), ("base", base["reference"]), ("weightsmith", content["weightsmith"])]
    made += [("parameters", json.dumps(content["parameters"]))] if content["parameters"] else []
    made += [("stored without loss", ", ".join(content["exact"]))] if content["exact"] else []
    files = [[f["file"], f["bytes"], f["header_sha256"]] for f in base["files"]]
    tasks = [[t["name"], t["folder"], t["part"]["sha256"]] for t in content["tasks"]]
    damaged = [Markup("<p>{}: {}</p>").format(task, why) for task, why in storage["damaged"].items()]
    return Section(
        "Recipe and digests",
        "",
        (
            words(made),
            folded(
                "The base's files",
                table((Column("file"), Column("bytes", count), Column("SHA-256 of the header")), files),
            ),
            folded("Tasks", table((Column("task"), Column("folder"), Column("SHA-256 of part.json")), tasks)),
            *damaged,
            *(Markup("<p>{}</p>").format(note) for note in notes),
        ),
    )
