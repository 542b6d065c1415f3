"""`weightsmith compare A B`."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.reporting import REPORT, report, report_path
from weightsmith.cli.tables import columns, nearly_one, number
from weightsmith.compare import Comparison, Row, compare
from weightsmith.errors import shown

_OFFERED = offered("memory", "threads", "follow_symlinks")
_HEADER = ("tensor", "dtype", "relative", "max", "mean", "norm A", "norm B", "cosine", "differing", "nan/inf A, B")
_LISTED_NAMES = 10


@click.command(
    "compare",
    short_help="Compare two models tensor by tensor.",
    epilog="\b\nExample:\n  weightsmith compare MERGED BASE+ADAPTER --top 5\n\nPython twin: weightsmith.compare(A, B)",
)
@click.argument("a")
@click.argument("b")
@click.option("--top", type=click.IntRange(0), default=20, show_default=True, help="Show so many tensors that differ.")
@followed_by(*_OFFERED, REPORT, *SHOWING)
def command(a: str, b: str, top: int, as_json: bool, quiet: bool, **given: Any) -> int:
    """Compare names, shapes, dtypes and values of A and B: files, folders, MODEL+ADAPTER or hub ids.

    Tensors that differ are listed with the largest relative difference |a - b| / |a| first. NaN of the same bits count
    as equal; dtypes that are not computed with are compared byte for byte.

    Exit code 0 where the two are identical, 1 where anything differs.
    """
    page = report_path(given)
    with shown_progress(quiet=quiet) as progress:
        result = compare(a, b, options=machine_options(given), progress=progress)
    report(result, page)
    if as_json:
        click.echo(json.dumps(result.summary(), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_text(result, top)))
    return int(result.differs)


def _text(result: Comparison, top: int) -> list[str]:
    total = result.total
    lines = [result.verdict()]
    if total.differing:
        lines.append(
            f"in all: {total.differing} of {total.elements} numbers differ;"
            f" max {number(total.max_difference)}, mean {number(total.mean_difference)},"
            f" relative {number(total.relative)}, cosine {nearly_one(total.cosine)}"
        )
    if total.nonfinite_a or total.nonfinite_b:
        lines.append(f"NaN or infinite: {total.nonfinite_a} in A, {total.nonfinite_b} in B; left out of the figures")
    for side, names in (("A", result.only_a), ("B", result.only_b)):
        lines += [f"only in {side}: {shown(n)}" for n in names[:_LISTED_NAMES]]
        if len(names) > _LISTED_NAMES:
            lines.append(f"only in {side}: ... and {len(names) - _LISTED_NAMES} more")
    lines += [f"note: {note}" for note in result.notes]
    rows = sorted((r for r in result.rows if not r.is_identical), key=_order)
    if rows and top:
        lines += ["", *columns(_HEADER, [_cells(r) for r in rows[:top]], left=(0, 1))]
    if len(rows) > top:
        lines.append(f"... and {len(rows) - top} more; --top {len(rows)} shows all")
    return lines


def _order(row: Row) -> tuple[Any, ...]:
    """Return what rows are sorted by: other shapes, then the largest relative difference, then the most bytes."""
    relative = 0.0 if row.distance is None else row.distance.relative
    relative = math.inf if math.isnan(relative) else relative
    return not row.has_other_shape, -relative, -(row.differing_bytes or 0), row.name


def _cells(row: Row) -> tuple[str, ...]:
    dtype = " | ".join(dict.fromkeys(row.dtypes))
    if row.has_other_shape:
        a, b = (str(list(s)) for s in row.shapes)
        return shown(row.name), dtype, *["-"] * 6, f"shapes {a} | {b}", "-"
    d = row.distance
    if d is None:
        told = "not compared" if row.differing_bytes is None else f"{row.differing_bytes} bytes"
        return shown(row.name), dtype, *["-"] * 6, told, "-"
    figures = (d.relative, d.max_difference, d.mean_difference, d.norm_a, d.norm_b)
    wrong = f"{d.nonfinite_a}, {d.nonfinite_b}" if d.nonfinite_a or d.nonfinite_b else "-"
    return shown(row.name), dtype, *map(number, figures), nearly_one(d.cosine), str(d.differing), wrong
