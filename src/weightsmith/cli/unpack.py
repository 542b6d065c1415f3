"""`weightsmith unpack BUNDLE#TASK OUT`."""

from __future__ import annotations

import json
from typing import Any

import click

from weightsmith.bundle.unpack import plan_unpack, unpack
from weightsmith.cli.options import SHOWING, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import counted, size
from weightsmith.errors import shown

_OFFERED = offered("memory", "threads", "follow_symlinks", "force", "dry_run")


@click.command(
    "unpack",
    params=[*_OFFERED, *SHOWING],
    short_help="Write tasks of a bundle as checkpoint folders.",
    epilog="\b\nExample:\n  weightsmith unpack BUNDLE#math OUT\n\nPython twin: weightsmith.unpack('BUNDLE#math', OUT)",
)
@click.argument("bundle", metavar="BUNDLE[#TASK]")
@click.argument("out")
def command(bundle: str, out: str, force: bool, dry_run: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Write one task of BUNDLE as the folder OUT; without #TASK all tasks, as folders in OUT."""
    options = machine_options(given)
    if dry_run:
        plans = plan_unpack(bundle, out, options=options, force=force)
        told = {task: {"out": str(place), **plan.summary()} for task, (plan, place) in plans.items()}
        lines = [
            f"{task}: {shown(place)}, {counted(len(plan.works), 'tensor')}, {size(plan.bytes_written)}"
            for task, (plan, place) in plans.items()
        ]
        click.echo(json.dumps(told, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
        return 0
    with shown_progress(quiet=quiet) as progress:
        done = unpack(bundle, out, options=options, force=force, progress=progress)
    if as_json:
        click.echo(json.dumps(done.summary(), indent=2, ensure_ascii=False))
    else:
        speed = done.bytes_written / max(done.seconds, 1e-9) / 1e9
        folders = ", ".join(shown(path) for path in done.folders.values())
        click.echo(f"{folders}: {size(done.bytes_written)} in {done.seconds:.1f} s ({speed:.1f} GB/s)")
    return 0
