"""`weightsmith inspect MODEL`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import click

from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, nearly_one, number, size
from weightsmith.errors import shown
from weightsmith.inspection import Inspection, Part, inspect

_OFFERED = offered("memory", "threads", "follow_symlinks")
_HEADER = ("part", "dtype", "parameters", "bytes", "norm")
_ALONE = (*_HEADER, "max", "zeros", "nan/inf")
_WITH_BASE = (*_HEADER, "task vector", "drift", "", "sparsity", "cosine")
_BAR = 16
_LISTED_NAMES = 10


@click.command(
    "inspect",
    short_help="Show a model's tensors by layer and kind, and what drifted from its base.",
    epilog="\b\nExample:\n  weightsmith inspect FINETUNED --base BASE\n\n"
    "Python twin: weightsmith.inspect(MODEL, base=BASE)",
)
@click.argument("model")
@click.option("--base", metavar="MODEL", help="What it was trained from: adds the task vector by layer and kind.")
@click.option("--tensors", is_flag=True, help="Show the whole tree: layers, their kinds, their tensors.")
@followed_by(*_OFFERED, *SHOWING)
def command(model: str, base: str | None, tensors: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Show parameters, bytes, dtypes and norms of MODEL: a file, a folder, MODEL+ADAPTER or a hub id.

    With a base: the length of the task vector MODEL - BASE, its drift, which is that length over the base's, its
    sparsity, which is the share of entries that are exactly 0, and the cosine between MODEL and BASE.
    """
    with shown_progress(quiet=quiet) as progress:
        result = inspect(model, base=base, options=machine_options(given), progress=progress)
    if as_json:
        click.echo(json.dumps(result.summary(), indent=2, allow_nan=False))
    else:
        click.echo("\n".join([*_head(result), *_tables(result, tensors)]))
    return 0


def _head(result: Inspection) -> Iterator[str]:
    total = result.tree
    yield (
        f"{shown(result.model)}: {total.parameters:,} parameters in {total.tensors} tensors, {size(total.nbytes)} in"
        f" {result.files} file{'s' if result.files != 1 else ''}, {', '.join(total.dtypes)}"
    )
    for key, value in result.config.items():
        yield f"{key}: {shown(', '.join(value) if isinstance(value, list) else value)}"
    if total.extent is not None and total.extent.nonfinite:
        yield f"NaN or infinite: {total.extent.nonfinite}; left out of the figures"
    if total.drift is not None:
        yield (
            f"base {shown(result.base)}: task vector {number(total.drift.norm_difference)},"
            f" drift {number(total.drift.relative)}, sparsity {number(total.sparsity)},"
            f" cosine {nearly_one(total.drift.cosine)}"
        )
    apart = [f"not compared with the base: '{shown(n)}', {why}" for n, why in result.not_compared.items()]
    for found in (apart, [f"only in the base: '{shown(n)}'" for n in result.only_base]):
        yield from found[:_LISTED_NAMES]
        if len(found) > _LISTED_NAMES:
            yield f"... and {len(found) - _LISTED_NAMES} more"
    yield from (f"note: {note}" for note in result.notes)


def _tables(result: Inspection, tensors: bool) -> Iterator[str]:
    header = _ALONE if result.base is None else _WITH_BASE
    left = (0, 1, *(i for i, title in enumerate(header) if not title))
    for parts, depth in ((result.layers, 2 if tensors else 0), (result.kinds, 0)):
        drifts = [p.drift.relative for p in parts if p.drift is not None]
        longest = max((d for d in drifts if math.isfinite(d)), default=0.0)
        rows = [
            (*_sizes(p, level), *(_extent(p) if result.base is None else _drift(p, longest if level == 0 else 0.0)))
            for p, level in _walk(parts, depth)
        ]
        if rows:
            yield ""
            yield from columns(header, rows, left)


def _walk(parts: tuple[Part, ...], depth: int, level: int = 0) -> Iterator[tuple[Part, int]]:
    """Yield parts and what they consist of, each with how deep it lies; a part with its only part's name once."""
    for part in parts:
        yield part, level
        if level < depth:
            inner = part.parts
            yield from _walk(inner[0].parts if [p.name for p in inner] == [part.name] else inner, depth, level + 1)


def _sizes(part: Part, level: int) -> tuple[str, ...]:
    shape = "" if part.shape is None else f" {list(part.shape)}"
    norm = None if part.extent is None else part.extent.norm
    name = "  " * level + shown(part.name) + shape
    return name, ", ".join(part.dtypes), f"{part.parameters:,}", size(part.nbytes), number(norm)


def _extent(part: Part) -> tuple[str, ...]:
    e = part.extent
    return ("-", "-", "-") if e is None else (number(e.max_magnitude), number(e.zero_fraction), str(e.nonfinite))


def _drift(part: Part, longest: float) -> tuple[str, ...]:
    d = part.drift
    if d is None:
        return "-", "-", "", "-", "-"
    bar = _bar(d.relative / longest) if longest else ""
    return number(d.norm_difference), number(d.relative), bar, number(part.sparsity), nearly_one(d.cosine)


def _bar(share: float) -> str:
    """Return a bar for a share of the longest; at least one block for what is not 0."""
    try:
        "█".encode(sys.stdout.encoding or "ascii")
        block = "█"
    except UnicodeEncodeError:
        block = "#"
    return block * (math.ceil(share * _BAR) if math.isfinite(share) else _BAR)
