"""`weightsmith shrink MODEL --groups GROUPS --out OUT`."""

from __future__ import annotations

import json
from typing import Any

import click

from weightsmith.align.shrinking import Shrinking, shrink
from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, number
from weightsmith.errors import ArgumentError, shown

_OFFERED = offered("threads", "follow_symlinks", "force")
_HEADER = ("group", "units", "surviving", "share", "")


@click.command(
    "shrink",
    short_help="Merge a model's hidden units that are nearly alike into a narrower one.",
    epilog="\b\nExample:\n  weightsmith shrink MODEL --groups groups.yaml --beta 0.1 --out NARROWER\n\n"
    "Python twin: weightsmith.shrink(MODEL, groups=GROUPS, out=OUT)",
)
@click.argument("model")
@click.option(
    "--groups", required=True, metavar="FILE", help="Which axes move together; see `weightsmith align --help`."
)
@click.option("--out", metavar="OUT", help="The new folder.")
@click.option("--measure", is_flag=True, help="Only say how many units would survive.")
@click.option(
    "--beta",
    type=click.FloatRange(0),
    default=0.1,
    show_default=True,
    help="Merge while the closest units are this near, as a share of the largest squared distance; 0: exact copies.",
)
@click.option(
    "--max-ratio",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Largest share of a group's units merged away.",
)
@followed_by(*_OFFERED, *SHOWING)
def command(out: str | None, measure: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Merge units of one group that are nearly alike: incoming weights averaged, outgoing weights summed.

    The share of units that survive tells how redundant the network is. Groups listed as `counted` in FILE, such as a
    residual stream with its normalization, stay as they are.
    """
    if measure == (out is not None):
        raise ArgumentError("shrink", expected="either --out or --measure", got="both" if measure else "neither")
    options = machine_options({"memory": "1GB", **{k: given.pop(k) for k in ("threads", "follow_symlinks")}})
    with shown_progress(quiet=quiet) as progress:
        done = shrink(given.pop("model"), out=out, options=options, progress=progress, **given)
    for note in done.notes:
        click.echo(f"note: {shown(note)}", err=True)
    click.echo(json.dumps(done.summary(), indent=2, ensure_ascii=False) if as_json else _text(done))
    return 0


def _text(done: Shrinking) -> str:
    rows = [(shown(g.name), f"{g.units}", f"{g.surviving}", number(g.share), g.why) for g in done.groups]
    what = "measured" if done.out is None else shown(done.out)
    verb = "would remain" if done.out is None else "remain"
    first = f"{what}: {done.parameters_after:,} of {done.parameters_before:,} parameters {verb}"
    return "\n".join([first, *columns(_HEADER, rows, left=(0, 4))])
