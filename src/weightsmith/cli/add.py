"""`weightsmith add BUNDLE --model TASK=MODEL`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.bundle.change import execute_add, plan_add
from weightsmith.bundle.planning import CHOSEN, find_encoding
from weightsmith.checkpoint.bundle import read_bundle
from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered, option_parameters
from weightsmith.cli.pack import MACHINE, MODEL, plan_text, show
from weightsmith.cli.progress import shown_progress
from weightsmith.errors import shown

_OFFERED = offered(*MACHINE, "dry_run")


@click.command(
    "add",
    params=[MODEL],
    short_help="Add tasks to a bundle.",
    epilog="\b\nExample:\n  weightsmith add BUNDLE --model math=A1 --set density=0.1\n\n"
    "Python twin: weightsmith.add(BUNDLE, {'math': A1}, density=0.1)",
)
@click.argument("bundle")
@click.option(
    "--encoding", metavar="NAME", help="The bundle's own by default; or one that shares nothing between tasks."
)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="A parameter of the encoding. Repeat.")
@followed_by(*_OFFERED, *SHOWING)
def command(
    bundle: str,
    encoding: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    models: tuple[str, ...],
    **given: Any,
) -> int:
    """Pack more models into BUNDLE, as its tasks were packed. Its other tasks and what they share stay as they are."""
    name = encoding or read_bundle(Path(bundle)).content["encoding"]
    parameters = {} if name == CHOSEN else option_parameters(find_encoding(name), settings, f"add {shown(name)}")
    found, plan = plan_add(bundle, models, encoding=encoding, options=machine_options(given), **parameters)
    if dry_run:
        click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else plan_text(plan))
        return 0
    with shown_progress(quiet=quiet) as progress:
        done = execute_add(found, plan, progress=progress)
    show(done, as_json)
    return 0
