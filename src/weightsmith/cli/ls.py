"""`weightsmith ls BUNDLE`."""

from __future__ import annotations

import json

import click

from weightsmith.bundle.resident import Bundle
from weightsmith.cli.options import SHOWING
from weightsmith.cli.pack import account_text
from weightsmith.errors import shown


@click.command(
    "ls",
    params=[SHOWING[0]],
    short_help="List the tasks of a bundle, and what it stores.",
    epilog="\b\nExample:\n  weightsmith ls BUNDLE\n\nPython twin: weightsmith.Bundle(BUNDLE).account()",
)
@click.argument("bundle")
def command(bundle: str, as_json: bool) -> int:
    """List the tasks of BUNDLE with their bytes, beside the formula and the models by themselves."""
    found = Bundle(bundle)
    account = found.account()
    if as_json:
        told = {"bundle": bundle, "tasks": list(found.tasks), "storage": account.summary()}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join([f"{shown(bundle)}: {len(found.tasks)} tasks", *account_text(account)]))
    return 0
