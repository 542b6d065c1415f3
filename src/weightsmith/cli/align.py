"""`weightsmith align REFERENCE MODEL... --groups GROUPS --out OUT...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.align.alignment import (
    MAX_SEED,
    MAX_SWEEPS,
    Alignment,
    AlignmentPlan,
    execute_alignment,
    plan_alignment,
)
from weightsmith.align.groups import read_groups
from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, counted, nearly_one, number, size
from weightsmith.errors import ArgumentError, shown

_OFFERED = offered("threads", "follow_symlinks", "force", "dry_run")
_HEADER = ("group", "units", "moved", "cosine before", "after")


@click.command(
    "align",
    short_help="Permute a model's hidden units to match a reference's; what it computes stays the same.",
    epilog="\b\nExample:\n  weightsmith align REFERENCE MODEL --groups groups.yaml --out ALIGNED\n\n"
    "Python twin: weightsmith.align(REFERENCE, MODEL, groups=GROUPS, out=OUT)",
)
@click.argument("reference")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--groups", required=True, metavar="FILE", help="Which axes move together, in YAML or JSON.")
@click.option(
    "--out", "outs", multiple=True, required=True, metavar="OUT", help="The new folder, one per MODEL in order."
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Of the order of groups.")
@click.option("--max-sweeps", type=click.IntRange(1), default=MAX_SWEEPS, show_default=True, help="Passes over groups.")
@click.option("--singular-values", is_flag=True, help="Also compare singular values before and after; slow.")
@followed_by(*_OFFERED, *SHOWING)
def command(
    reference: str,
    models: tuple[str, ...],
    groups: str,
    outs: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Align each MODEL to REFERENCE by weight matching, and write it; then merge them with `merge linear`.

    FILE maps groups to axes that move together: {groups: {hidden: [{tensor: fc1.weight, axis: 0}, {tensor: fc2.weight,
    axis: 1}]}}. weightsmith.permutation_groups(module, inputs) derives it from a PyTorch module, and
    weightsmith.write_groups writes it.
    """
    if len(outs) != len(models):
        raise ArgumentError("align: --out", expected=f"one per model, {len(models)}", got=str(len(outs)))
    if len({str(Path(o).absolute()) for o in outs}) < len(outs):
        raise ArgumentError("align: --out", expected="a folder of its own for each model", got="one folder twice")
    options = machine_options({"memory": "1GB", **{k: given.pop(k) for k in ("threads", "follow_symlinks")}})
    read = read_groups(groups)
    plans = [plan_alignment(reference, model, groups=read, options=options) for model in models]
    if dry_run:
        found = [plan.summary() for plan in plans]
        click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(map(_plan_text, plans)))
        return 0
    done = []
    with shown_progress(quiet=quiet) as progress:
        for plan, out in zip(plans, outs, strict=True):
            done.append(execute_alignment(plan, Path(out), options=options, progress=progress, **given))
    for note in dict.fromkeys(n for plan in plans for n in plan.notes):
        click.echo(f"note: {shown(note)}", err=True)
    if as_json:
        click.echo(json.dumps([a.summary() for a in done], indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join(map(_text, done)))
    return 0


def _plan_text(plan: AlignmentPlan) -> str:
    tensors = plan.summary()["tensors"]
    return (
        f"{shown(plan.model.reference)}: {counted(len(plan.groups), 'group')} of units over {counted(tensors, 'tensor')};"
        f" peak memory {size(plan.peak_bytes)}"
    )


def _text(done: Alignment) -> str:
    rows = [
        (shown(g.name), f"{g.units}", number(g.moved), nearly_one(g.cosine_before), nearly_one(g.cosine_after))
        for g in done.groups
    ]
    lines = [
        f"{shown(done.out)}: {counted(len(rows), 'group')} matched in {counted(done.sweeps, 'sweep')}, {done.seconds:.1f} s;"
        f" distance {number(done.before.norm_difference)} -> {number(done.after.norm_difference)},"
        f" cosine {nearly_one(done.before.cosine)} -> {nearly_one(done.after.cosine)}"
    ]
    if done.singular_deviation is not None:
        lines.append(f"singular values changed by at most {number(done.singular_deviation)} of the largest")
    return "\n".join([*lines, *columns(_HEADER, rows)])
