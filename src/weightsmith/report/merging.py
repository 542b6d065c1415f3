"""The page of a merge: its recipe, what went in and came out with digests, and how far the result moved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from weightsmith.compare import Comparison
from weightsmith.report.comparison import distance_sections, tensors_section
from weightsmith.report.files import input_files
from weightsmith.report.page import Page, Section, Tile, folded, words
from weightsmith.report.table import Column, table
from weightsmith.report.text import cosine, count, percent, place, short, size
from weightsmith.run import Result


def merge_page(result: Result, moved: Comparison | None = None) -> Page:
    """Return the page of a merge.

    Args:
        result: What `merge` returned.
        moved: The first input, which is the base where there is one, compared with the result.
    """
    record = result.record
    tensors, inputs = record["tensors"], record["inputs"]
    method = str(record["method"]).replace("_", " ")
    speed = (result.bytes_read + result.bytes_written) / max(result.seconds, 1e-9)
    tiles = [
        Tile("Inputs", count(len(inputs)), f"merged by {method}"),
        Tile("Merged", count(tensors["merged"]), "tensors"),
        Tile("Copied", count(len(tensors["copied"])), f"tensors; {count(len(tensors['dropped']))} dropped"),
        Tile("Written", size(result.bytes_written), f"{size(result.bytes_read)} read"),
        Tile("Time", f"{result.seconds:.1f} s", f"{size(speed)} in a second"),
    ]
    sections: list[Section] = []
    if moved is not None:
        share = percent(moved.total.relative)
        origin = short(place(moved.a), 40)
        tiles.append(Tile("Moved", share, f"of its length, from {origin}; cosine {cosine(moved.total.cosine)}"))
        about = f"How far the result lies from {moved.a}, as a share of its length."
        sections += [*distance_sections(moved.rows, about), tensors_section(moved.rows)]
    return Page(
        title=f"{short(result.out.name, 60)}, merged by {method}",
        lead=f"{count(len(inputs))} inputs made one model at {short(result.out, 120)}.",
        tiles=tuple(tiles),
        sections=(*sections, _recipe(record), _files(record), *_aside(tensors), *_notes(record)),
    )


def _recipe(record: Mapping[str, Any]) -> Section:
    text = str(record["recipe"])
    given = [(name, json.dumps(value)) for name, value in record["parameters"].items()]
    return Section(
        "Recipe",
        "The merge can be run again from this.",
        (Markup("<pre><code>{}</code></pre>").format(text), folded("Parameters in force", words(given))),
    )


def _files(record: Mapping[str, Any]) -> Section:
    written = [[f["file"], f["bytes"], f["sha256"]] for f in record["outputs"]]
    versions = [("weightsmith", record["weightsmith"]), *record["versions"].items()]
    return Section(
        "Files and digests",
        "",
        (
            input_files(record["inputs"]),
            table((Column("output"), Column("bytes", count), Column("SHA-256")), written),
            words([*versions, ("record", record["record_sha256"])]),
        ),
    )


def _aside(tensors: Mapping[str, Any]) -> Iterator[Section]:
    parts = []
    if tensors["copied"]:
        rows: Sequence[Sequence[object]] = [(t["name"], t["reason"]) for t in tensors["copied"]]
        parts.append(folded(f"{len(rows):,} copied", table((Column("tensor"), Column("why")), rows, sortable=True)))
    if tensors["dropped"]:
        rows = [(t["name"], t["reason"], t["model"]) for t in tensors["dropped"]]
        heads = (Column("tensor"), Column("why"), Column("input", count))
        parts.append(folded(f"{len(rows):,} dropped", table(heads, rows, sortable=True)))
    if parts:
        yield Section("Tensors that were not merged", "", tuple(parts))


def _notes(record: Mapping[str, Any]) -> Iterator[Section]:
    if record["notes"]:
        yield Section("Notes", "", tuple(Markup("<p>{}</p>").format(note) for note in record["notes"]))
