"""`weightsmith extract-lora --base BASE --model MODEL --out OUT`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.adapt.extraction import VERB, Extraction, execute_extraction, plan_extraction
from weightsmith.adapt.publish import Adapter
from weightsmith.adapt.ranks import make_rule
from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import columns, counted, grouped, number, size
from weightsmith.errors import shown
from weightsmith.recipe import DTYPES
from weightsmith.run import check_place
from weightsmith.tensor.spectral import ALGORITHMS

_MACHINE = ("memory", "threads", "device", "follow_symlinks")
_OFFERED = offered(*_MACHINE, "force", "dry_run")
_SHOWN_ROWS, _SHOWN_NAMES = 20, 10
_SHORT = "Write what a finetuned model changed as a LoRA adapter that PEFT loads."


@click.command(
    "extract-lora",
    short_help=_SHORT,
    epilog="\b\nExample:\n  weightsmith extract-lora --base BASE --model FINETUNED --energy 0.9 --out ADAPTER\n\n"
    "Python twin: weightsmith.extract_lora(FINETUNED, base=BASE, energy=0.9, out=OUT)",
)
@click.option("--base", required=True, metavar="MODEL", help="What the model was trained from.")
@click.option("--model", required=True, metavar="MODEL", help="The finetuned model.")
@click.option("--out", required=True, metavar="OUT", help="The new folder.")
@click.option("--rank", type=click.IntRange(1), metavar="R", help="The same rank for all weights.")
@click.option("--energy", type=float, metavar="SHARE", help="Or: keep this share of each weight's squared change.")
@click.option("--budget", metavar="SIZE", help="Or: bytes of all factors, such as 200MB, spent where they count most.")
@click.option("--only", multiple=True, metavar="GLOB", help="Weights to extract. Default: no embeddings, heads, norms.")
@click.option("--save-rest", is_flag=True, help="Write what else changed as modules_to_save, where PEFT can load it.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Of the factors.")
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="exact",
    show_default=True,
    help="With --rank: randomized is faster and slightly off; the residual says by how much.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the randomized form.")
@followed_by(*_OFFERED, *SHOWING)
def command(
    out: str,
    rank: int | None,
    energy: float | None,
    budget: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Cut the difference of MODEL from BASE to low rank, weight by weight, and write it as an adapter.

    Give one of --rank, --energy and --budget. The result lists each weight's rank and relative residual, and every tensor
    that changed and that the adapter does not represent, with its norm. Names of modules are those of the base's tensors:
    load the adapter on the class of model that the base was saved from.
    """
    options = machine_options({k: given.pop(k) for k in _MACHINE})
    plan = plan_extraction(given.pop("model"), rule=make_rule(VERB, rank, energy, budget), options=options, **given)
    if dry_run:
        check_place(Path(out), (plan.base, plan.finetuned), plan.nbytes, force=force)
        click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else _plan_text(plan))
        return 0
    with shown_progress(quiet=quiet) as progress:
        done = execute_extraction(plan, Path(out), force=force, progress=progress)
    show(done, as_json)
    return 0


def show(done: Adapter, as_json: bool) -> None:
    """Print a written adapter: in all, by weight, and what it does not represent."""
    for note in done.notes:
        click.echo(f"note: {shown(note)}", err=True)
    click.echo(json.dumps(done.summary(), indent=2, ensure_ascii=False) if as_json else _text(done))


def _text(done: Adapter) -> str:
    kept = [r for r in done.rows if r.rank]
    lines = [
        f"{shown(done.out)}: factors of {counted(len(kept), 'weight')}, {size(done.bytes_written)}, {done.seconds:.1f} s;"
        f" relative residual in all {number(done.relative_residual)}",
    ]
    if done.saved:
        lines.append(f"{counted(len(done.saved), 'tensor')} saved as a whole, in modules_to_save")
    if done.left_out:
        lines.append(f"not represented: {counted(len(done.left_out), 'tensor')} that changed")
        lines += [f"  {shown(x.name)}, norm {number(x.norm)}: {x.reason}" for x in done.left_out[:_SHOWN_NAMES]]
        if len(done.left_out) > _SHOWN_NAMES:
            lines.append(f"  ... and {len(done.left_out) - _SHOWN_NAMES} more (--json lists all)")
    rows = sorted(done.rows, key=lambda r: -r.relative)
    cells = [(shown(r.name), f"{r.rank}", number(r.norm), number(r.relative)) for r in rows[:_SHOWN_ROWS]]
    lines += ["", *columns(("weight", "rank", "norm", "relative residual"), cells)]
    if len(rows) > _SHOWN_ROWS:
        lines.append(f"... and {len(rows) - _SHOWN_ROWS} more with smaller residuals (--json lists all)")
    return "\n".join(lines)


def _plan_text(plan: Extraction) -> str:
    ranks = [*plan.ranks.values()]
    most = "rank" if plan.rule.rank is not None else "largest rank"
    cells = grouped([(shown(t.name), t.kind, f"{t.shape}", f"{rank}") for t, rank in plan.ranks.items()], _SHOWN_ROWS)
    selection = plan.selection
    lines = [
        f"{shown(plan.finetuned.reference)} against {shown(plan.base.reference)}: factors of"
        f" {counted(len(ranks), 'weight')}, at most {size(plan.nbytes)};"
        f" peak memory {size(plan.job.limits.peak_bytes)}, {counted(plan.job.limits.threads, 'thread')}",
        f"  not among the targets: {counted(len(selection.others) + len(selection.blobs), 'tensor')}, of which"
        f" {counted(len([n for names in selection.savable.values() for n in names]), 'tensor')} can be saved as a whole",
        *(f"  cannot be compared: {shown(name)}: {why}" for name, why in selection.missing.items()),
        *(f"  note: {shown(note)}" for note in plan.notes),
        *columns(("weight", "number", "stored", "shape", most), cells, left=(0, 2, 3)),
    ]
    return "\n".join(lines)
