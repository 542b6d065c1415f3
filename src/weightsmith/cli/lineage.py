"""`weightsmith lineage A B`."""

from __future__ import annotations

import json
from typing import Any

import click

from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, nearly_one, number
from weightsmith.errors import shown
from weightsmith.localization.lineage import lineage

_OFFERED = offered("memory", "threads", "follow_symlinks")
_HEADER = ("tensor", "weights", "equal", "cosine", "relative")


@click.command(
    "lineage",
    short_help="Say whether one model was trained from another.",
    epilog="\b\nExample:\n  weightsmith lineage BASE MODEL\n\nPython twin: weightsmith.lineage(BASE, MODEL)",
)
@click.argument("first")
@click.argument("second")
@click.option(
    "--top", type=click.IntRange(0), default=10, show_default=True, help="Show so many tensors, the least alike first."
)
@followed_by(*_OFFERED, *SHOWING)
def command(first: str, second: str, top: int, as_json: bool, quiet: bool, **given: Any) -> int:
    """Tell from the weights alone whether FIRST and SECOND come from one another, with the numbers that say so.

    Matrices of models trained from different starts are nearly orthogonal. Which of two came first the weights do not tell.
    """
    with shown_progress(quiet=quiet) as progress:
        found = lineage(first, second, options=machine_options(given), progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return 0
    click.echo(
        f"{found.verdict}: median cosine of matrices {nearly_one(found.median_cosine)},"
        f" of all weights {nearly_one(found.cosine)}; {found.equal:.4f} equal; relative distance {number(found.relative)};"
        f" {len(found.apart)} tensors not in both"
    )
    least = sorted(found.tensors, key=lambda t: (t.cosine is not None, t.cosine or 0.0, t.name))[:top]
    rows = [
        (shown(t.name), f"{t.elements:,}", f"{t.equal / t.elements:.4f}", nearly_one(t.cosine), number(t.relative))
        for t in least
    ]
    if rows:
        click.echo("\n".join(columns(_HEADER, rows)))
    return 0
