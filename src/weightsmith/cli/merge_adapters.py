"""`weightsmith merge-adapters --base BASE --adapter A1 --adapter A2 --out OUT`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.adapt.merging import WAYS, AdapterMerge, execute_adapters, plan_adapters
from weightsmith.arguments import Reals
from weightsmith.cli.extract_lora import show
from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, counted, grouped, size
from weightsmith.errors import shown
from weightsmith.recipe import DTYPES
from weightsmith.run import check_place

_MACHINE = ("memory", "threads", "follow_symlinks")
_OFFERED = offered(*_MACHINE, "force", "dry_run")
_SHORT = "Merge LoRA adapters of one base into one, exactly on their products."


@click.command(
    "merge-adapters",
    short_help=_SHORT,
    epilog="\b\nExample:\n  weightsmith merge-adapters --base BASE --adapter A1 --adapter A2 --coefficients 0.7,0.3 --out"
    " MERGED\n\nPython twin: weightsmith.merge_adapters([A1, A2], base=BASE, out=OUT)",
)
@click.option("--base", required=True, metavar="MODEL", help="What they were trained from; only headers are read.")
@click.option("--adapter", "adapters", required=True, multiple=True, metavar="FOLDER", help="Repeat, in order.")
@click.option("--coefficients", metavar="REALS", help="One per adapter, separated by commas. Default: 1 each.")
@click.option(
    "--by",
    type=click.Choice(WAYS),
    default="concat",
    show_default=True,
    help="concat: exact, the ranks add up; svd: cut to --rank or --energy, the residual reported.",
)
@click.option("--rank", type=click.IntRange(1), metavar="R", help="With svd: the largest rank of a weight.")
@click.option("--energy", type=float, metavar="SHARE", help="Or: keep this share of each weight's squared update.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Of the factors.")
@click.option("--out", required=True, metavar="OUT", help="The new folder.")
@followed_by(*_OFFERED, *SHOWING)
def command(
    out: str,
    adapters: tuple[str, ...],
    coefficients: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Merge adapters so that the merged update is the weighted sum of their updates, scale * B @ A each.

    Ranks, scales, rsLoRA, patterns and targets may differ; an adapter that leaves a weight as it is counts as zero there.
    Averaging the factors themselves would not do that.
    """
    options = machine_options({k: given.pop(k) for k in _MACHINE})
    numbers = None if coefficients is None else Reals().parse(coefficients)
    plan = plan_adapters(adapters, coefficients=numbers, options=options, **given)
    if dry_run:
        check_place(Path(out), (plan.base, *plan.inputs), plan.summary()["largest_bytes"], force=force)
        click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else _plan_text(plan))
        return 0
    with shown_progress(quiet=quiet) as progress:
        done = execute_adapters(plan, Path(out), force=force, progress=progress)
    show(done, as_json)
    return 0


def _plan_text(plan: AdapterMerge) -> str:
    summary, ranks = plan.summary(), plan.ranks
    cells = [
        (shown(t.name), t.kind, " + ".join(str(p.update.down.shape[0]) for p in plan.parts[t]), f"{rank}")
        for t, rank in ranks.items()
    ]
    lines = [
        f"{counted(len(plan.inputs), 'adapter')} of {shown(plan.base.reference)} by {plan.by}:"
        f" {counted(len(ranks), 'weight')}, at most {size(summary['largest_bytes'])};"
        f" peak memory {size(summary['peak_bytes'])}, {counted(summary['threads'], 'thread')}",
        *(f"  {x:g} x {shown(c.reference)}" for c, x in zip(plan.inputs, plan.coefficients, strict=True)),
        *(f"  saved as a whole: {shown(name)}" for name in plan.saved),
        *(f"  note: {shown(note)}" for note in plan.notes),
        *columns(("weight", "number", "stored", "ranks", "largest rank"), grouped(cells), left=(0, 2, 3)),
    ]
    return "\n".join(lines)
