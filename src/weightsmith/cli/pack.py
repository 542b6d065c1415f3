"""`weightsmith pack ENCODING --base BASE --model TASK=MODEL ... --out BUNDLE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.bundle.account import Account
from weightsmith.bundle.choosing import plan_choice
from weightsmith.bundle.pack import Packed, check_bundle_place, execute_pack
from weightsmith.bundle.planning import SHARED_DTYPES, PackPlan, find_encoding, plan_pack
from weightsmith.cli.options import SHOWING, machine_options, method_options, offered, parse_parameters
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.reporting import REPORT, report, report_path
from weightsmith.cli.tables import columns, counted, number, size
from weightsmith.compress import ENCODINGS
from weightsmith.encoding import Encoding
from weightsmith.errors import shown

MACHINE = ("memory", "threads", "follow_symlinks", "allow_nonfinite", "force_base")
_OFFERED = (*MACHINE, "force", "dry_run")
MODEL = click.Option(
    ["--model", "models"],
    metavar="TASK=MODEL",
    multiple=True,
    help="A model and what its task is called; by default as its folder. Repeat.",
)
_INPUTS = (
    click.Option(["--base"], metavar="MODEL", required=True, help="What all models were trained from."),
    MODEL,
    click.Option(["--out"], metavar="BUNDLE", required=True, help="The new folder."),
    click.Option(["--exact"], metavar="GLOB", multiple=True, help="Store these tensors without loss."),
    click.Option(["--copy-base"], is_flag=True, help="Copy the base's weights into the bundle."),
)
_CHOOSING = (
    click.Option(["--base"], metavar="MODEL", help="What all models were trained from."),
    *_INPUTS[1:2],
    click.Option(["--out"], metavar="BUNDLE", help="The new folder."),
    click.Option(["--budget"], metavar="SIZE", help="Bytes of all tasks' parts, such as 1.5GB."),
    click.Option(["--bits-per-weight"], type=float, metavar="BITS", help="The same, for each number of each task."),
    click.Option(
        ["--min-fidelity"],
        type=float,
        metavar="SHARE",
        help="Or the smallest bundle in which no task loses more than 1 - SHARE of its squared change.",
    ),
    *_INPUTS[3:],
)
_SHARED = click.Option(
    ["--shared-dtype"],
    type=click.Choice(list(SHARED_DTYPES)),
    default="float32",
    show_default=True,
    help="Of what all tasks share; int8 has a scale per row.",
)


_VECTOR = click.Option(
    ["--vector"],
    metavar="MODEL",
    help="A merged model, by any method: what it changed of the base is what all tasks share.",
)


class _Encodings(click.Group):
    """A command per encoding."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the encodings."""
        return [e.name for e in ENCODINGS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """Return the command of an encoding."""
        return _command(find_encoding(name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the encodings with one line each."""
        with formatter.section("Encodings"):
            formatter.write_dl([(e.name, e.summary) for e in ENCODINGS])


def _command(encoding: Encoding) -> click.Command:
    def run(out: str, force: bool, dry_run: bool, as_json: bool, quiet: bool, **given: Any) -> int:
        page, parameters = report_path(given), parse_parameters(encoding, given)
        options = machine_options({k: given.pop(k) for k in MACHINE})
        plan = plan_pack(encoding.name, options=options, **given, **parameters)
        if dry_run:
            check_bundle_place(plan, Path(out), force=force)
            click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else plan_text(plan))
            return 0
        with shown_progress(quiet=quiet) as progress:
            done = execute_pack(plan, Path(out), force=force, progress=progress)
        report(done, page)
        show(done, as_json)
        return 0

    shared = [_SHARED, _VECTOR] if encoding.has_vector else []
    return click.Command(
        encoding.name,
        params=[*_INPUTS, *shared, *method_options(encoding), *offered(*_OFFERED), REPORT, *SHOWING],
        callback=run,
        help=f"{encoding.summary}\n\n{encoding.source}",
        epilog=f"\b\nExample:\n  {encoding.example}\n\nPython twin:"
        f' weightsmith.pack("{encoding.name}", base=B, models={{"math": A1}}, out=OUT)',
    )


def _choose(ctx: click.Context, **given: Any) -> int:
    """Run `pack` without an encoding: choose one for each tensor."""
    if ctx.invoked_subcommand is not None:
        return 0
    out, force, dry_run = given.pop("out"), given.pop("force"), given.pop("dry_run")
    as_json, quiet, page = given.pop("as_json"), given.pop("quiet"), report_path(given)
    missing = [name for name, value in (("--base", given["base"]), ("--out", out)) if not value]
    if missing:
        raise click.UsageError(f"Missing option '{missing[0]}', or the name of an encoding.", ctx)
    options = machine_options({k: given.pop(k) for k in MACHINE})
    with shown_progress(quiet=quiet) as progress:
        plan = plan_choice(options=options, progress=progress, **given)
        if dry_run:
            check_bundle_place(plan, Path(out), force=force)
        else:
            done = execute_pack(plan, Path(out), force=force, progress=progress)
    if not dry_run:
        report(done, page)
        show(done, as_json)
    else:
        click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else plan_text(plan))
    return 0


command = _Encodings(
    "pack",
    callback=click.pass_context(_choose),
    invoke_without_command=True,
    params=[*_CHOOSING, *offered(*_OFFERED), REPORT, *SHOWING],
    short_help="Pack many finetuned models of one base into one bundle.",
    help="Store what each model changed of the base, by an encoding. Without one each tensor gets its own, by --budget,"
    " --bits-per-weight or --min-fidelity. A task opens everywhere as BUNDLE#TASK.",
    epilog="\b\nExample:\n  weightsmith pack compeft --base B --model math=A1 --model code=A2 --density 0.1 --out BUNDLE\n"
    "  weightsmith pack --budget 1.5GB --base B --model math=A1 --model code=A2 --out BUNDLE\n\n"
    'Python twin: weightsmith.pack("compeft", base=B, models={"math": A1, "code": A2}, out=BUNDLE)',
    subcommand_metavar="[ENCODING [OPTIONS]...]",
)


def show(done: Packed, as_json: bool) -> None:
    """Print what was packed, and what the bundle stores."""
    for note in done.notes:
        click.echo(f"note: {shown(note)}", err=True)
    if as_json:
        click.echo(json.dumps(done.summary(), indent=2, ensure_ascii=False))
        return
    click.echo(f"{shown(done.out)}: {counted(len(done.tasks), 'task')} packed in {done.seconds:.1f} s")
    click.echo("\n".join(account_text(done.account)))


def account_text(account: Account) -> list[str]:
    """Return what a bundle stores, for people."""
    each = account.bits_per_weight
    rows = [(t, size(p), number(each[t]), size(m), size(b)) for t, (p, m, b) in account.tasks.items()]
    ratio = account.individual_bytes / max(1, account.bundle_bytes)
    lines = columns(("task", "pieces", "bits per weight", "manifest", "config and tokenizer"), rows)
    lines += [f"task {task} is damaged: {shown(why)}" for task, why in account.damaged.items()]
    lines += [
        f"base {size(account.base_bytes)}, shared part {size(account.shared_bytes)}, in all {size(account.bundle_bytes)};"
        f" the models by themselves {size(account.individual_bytes)}, {ratio:.2f} times as much",
    ]
    if account.formula_bits is not None:
        lines.append(
            f"by the formula: {number(account.formula_bits / 8e9)} GB for {account.merged:,} numbers that are encoded and"
            f" {account.frozen:,} that are not, of {account.bits} bits; by themselves"
            f" {number(account.formula_individual_bits / 8e9)} GB"
        )
    return lines


def plan_text(plan: PackPlan) -> str:
    """Return a plan for people."""
    found = plan.summary()
    given = ", ".join(f"{n} {v}" for n, v in found["parameters"].items() if v is not None)
    lines = [f"{found['encoding']}: {given}".rstrip(": "), f"  base: {shown(found['base'])}"]
    for task, told in found["tasks"].items():
        exact = told["stored_without_loss"]
        lines.append(
            f"  {task}: {shown(told['model'])}: {counted(told['encoded'], 'tensor')} encoded,"
            f" {told['encoded_elements']:,} numbers; {len(exact)} stored without loss"
        )
    lines.append(f"  at most about {size(found['bytes_at_most'])}; peak memory {size(found['peak_memory_bytes'])}")
    return "\n".join([*lines, *(f"  note: {shown(note)}" for note in plan.notes)])
