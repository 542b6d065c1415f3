"""`weightsmith merge-experts MODEL --experts G --out OUT`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.align.experts import GATE_UP, LAYOUTS, ExpertMerge, ExpertPlan, execute_experts, plan_experts
from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, counted, number, size
from weightsmith.errors import shown

_OFFERED = offered("threads", "follow_symlinks", "force", "dry_run")


@click.command(
    "merge-experts",
    short_help="Merge the experts inside a mixture-of-experts model in groups.",
    epilog="\b\nExample:\n  weightsmith merge-experts MODEL --experts 4 --frequencies used.json --out FEWER\n\n"
    "Python twin: weightsmith.merge_experts(MODEL, experts=4, out=OUT)",
)
@click.argument("model")
@click.option("--out", required=True, metavar="OUT", help="The new folder.")
@click.option(
    "--experts", required=True, type=click.IntRange(1), metavar="G", help="Experts left per layer, on the average."
)
@click.option("--frequencies", metavar="FILE", help="How often each expert was used: {layer: [E numbers]}.")
@click.option(
    "--similarity", metavar="FILE", help="How alike experts are: {layer: table (E, E)}. Default: router rows."
)
@click.option("--per-layer", is_flag=True, help="Leave exactly G in each layer.")
@click.option("--no-align", is_flag=True, help="Merge hidden units as they stand, for comparison.")
@click.option(
    "--gate-up", type=click.Choice(GATE_UP), help="How gate and up lie where one tensor holds both: halves, or in turn."
)
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True, help="See above.")
@followed_by(*_OFFERED, *SHOWING)
def command(out: str, dry_run: bool, no_align: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Merge each mixture's experts around those used most: units matched, weights averaged by use (M-SMoE).

    FILE is JSON or safetensors; a layer is named by what precedes `experts` in its tensors, or by its number.

    \b
    Layouts:
      same      each expert holds its group's weights; exact, loads as before, saves no bytes
      compact   merged experts, whole router, a map in experts.json; exact, needs a reader of the map
      dominant  merged experts with their dominant router rows; loads as before, routing approximate
    """
    options = machine_options({"memory": "1GB", **{k: given.pop(k) for k in ("threads", "follow_symlinks")}})
    force = given.pop("force")
    plan = plan_experts(given.pop("model"), align=not no_align, options=options, **given)
    if dry_run:
        click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else _plan_text(plan))
        return 0
    with shown_progress(quiet=quiet) as progress:
        done = execute_experts(plan, Path(out), options=options, force=force, progress=progress)
    for note in done.notes:
        click.echo(f"note: {shown(note)}", err=True)
    click.echo(json.dumps(done.summary(), indent=2, ensure_ascii=False) if as_json else _text(done))
    return 0


def _plan_text(plan: ExpertPlan) -> str:
    rows = [
        (
            shown(layer.name), f"{layer.experts}", f"{kept}", f"{layer.units or '-'}",
            "stacked" if layer.kinds[0].is_stacked else "one by one", size(layer.nbytes),
        )
        for layer, kept in zip(plan.layers, plan.kept, strict=True)
    ]  # fmt: skip
    last = f"{counted(len(rows), 'layer')}; {size(plan.bytes_written)} to write; peak memory {size(plan.peak_bytes)}"
    notes = [f"note: {shown(note)}" for note in plan.notes]
    header = ("layer", "experts", "kept", "units", "stored", "bytes")
    return "\n".join([*columns(header, rows, left=(0, 4)), last, *notes])


def _text(done: ExpertMerge) -> str:
    rows = []
    for group in done.groups:
        found = group.summary()
        together = " ".join("+".join(map(str, members)) for members in found["groups"])
        rows.append(
            (
                shown(group.layer.name),
                f"{found['experts']}",
                f"{found['kept']}",
                number(found.get("units_moved")),
                together,
            )
        )
    head = f"{shown(done.out)}: experts of {counted(len(rows), 'layer')} merged in {done.seconds:.1f} s"
    header = ("layer", "experts", "kept", "units moved", "groups, dominant first")
    return "\n".join([head, *columns(header, rows, left=(0, 4))])
