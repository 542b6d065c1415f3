"""`weightsmith demo [OUT]`. Not in cli/, since the demo itself runs the command line."""

from __future__ import annotations

import json
from pathlib import Path

import click

from weightsmith.demo import DEFAULT_OUT, bundle_table, demo, table


@click.command(
    "demo",
    short_help="Train, merge, pack and evaluate small models on handwritten digits.",
    epilog="\b\nExample:\n  weightsmith demo\n\nPython twin: weightsmith.demo(OUT)",
)
@click.argument("out", required=False)
@click.option("--seed", default=0, show_default=True, help="Same seed, same results.")
@click.option("--force", is_flag=True, help="Replace an older demo.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(out: str | None, seed: int, force: bool, as_json: bool, quiet: bool) -> None:
    """Train a small transformer and eight experts on scikit-learn's handwritten digits, merge them by every method
    and pack them into bundles through this command line, and measure every result on held-out digits.

    Writes checkpoints, merged models, bundles, report.html, localize.html and results.json to OUT (./weightsmith-demo).
    Takes about a minute and a half on two processors the first time, a minute later on.
    """
    results = demo(out, seed=seed, force=force, progress=None if quiet else lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(results, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    for part in (table(results), bundle_table(results)):
        console.print(part)
        console.print()
    click.echo(f"Pictures: {Path(out or DEFAULT_OUT) / 'report.html'}")
