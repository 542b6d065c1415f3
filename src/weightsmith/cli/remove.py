"""`weightsmith remove BUNDLE TASK`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from weightsmith.bundle.change import remove
from weightsmith.checkpoint.bundle import read_bundle
from weightsmith.cli.options import SHOWING, offered
from weightsmith.cli.tables import size
from weightsmith.errors import shown


@click.command(
    "remove",
    params=[*offered("dry_run"), *SHOWING],
    short_help="Remove a task from a bundle.",
    epilog="\b\nExample:\n  weightsmith remove BUNDLE math\n\nPython twin: weightsmith.remove(BUNDLE, 'math')",
)
@click.argument("bundle")
@click.argument("task")
def command(bundle: str, task: str, dry_run: bool, as_json: bool, quiet: bool) -> int:
    """Remove TASK from BUNDLE; the other tasks stay as they are."""
    if dry_run:
        place = read_bundle(Path(bundle)).place(task)
        click.echo(
            json.dumps({"bundle": bundle, "task": task, "folder": str(place)})
            if as_json
            else f"would remove {shown(place)}"
        )
        return 0
    done = remove(bundle, task)
    click.echo(
        json.dumps(done.summary(), indent=2, ensure_ascii=False)
        if as_json
        else f"{shown(done.bundle)}: task {done.task} removed, {size(done.nbytes)}"
    )
    return 0
