"""`weightsmith restore TARGET --from SOURCE --mask MASK --out OUT`."""

from __future__ import annotations

import json
from typing import Any

import click

from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import counted, size
from weightsmith.errors import shown
from weightsmith.localization.restoring import restore

_OFFERED = offered("memory", "threads", "follow_symlinks", "allow_nonfinite", "force", "dry_run")


@click.command(
    "restore",
    short_help="Put the weights of one model into another inside a mask.",
    epilog="\b\nExample:\n  weightsmith restore MERGED --from A1 --mask MASKS/A1 --out RESTORED\n\n"
    "Python twin: weightsmith.restore(MERGED, source=A1, mask=MASK, out=OUT)",
)
@click.argument("target")
@click.option(
    "--from", "source", required=True, metavar="SOURCE", help="The model to take weights from; the base ablates."
)
@click.option(
    "--mask", required=True, metavar="MASK", help="Which: BOOL tensors, as `weightsmith localize --masks` writes them."
)
@click.option("--out", required=True, metavar="OUT", help="The new folder.")
@click.option("--outside", is_flag=True, help="Take what lies outside the mask in place of what lies inside.")
@followed_by(*_OFFERED, *SHOWING)
def command(target: str, as_json: bool, quiet: bool, **given: Any) -> int:
    """Write TARGET with the stored bytes of SOURCE wherever MASK selects; all else stays as it is."""
    options = machine_options(given)
    with shown_progress(quiet=quiet) as progress:
        done = restore(target, options=options, progress=progress, **given)
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=2, ensure_ascii=False))
    elif done.out is None:
        click.echo(f"would write {size(done.bytes_written)}: {counted(done.tensors, 'tensor')} from both models")
    else:
        click.echo(
            f"{shown(done.out)}: {done.selected:,} of {done.elements:,} weights selected, in {counted(done.tensors, 'tensor')};"
            f" {size(done.bytes_written)} written"
        )
    return 0
