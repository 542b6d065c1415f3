"""The commands behind `merge` and `plan`: one per method, and one for recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from weightsmith.cli.options import (
    INPUTS,
    MACHINE,
    SHOWING,
    WRITING,
    machine_options,
    method_options,
    option_name,
    parse_parameters,
)
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.tables import counted, size
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.merge import METHODS
from weightsmith.method import Method
from weightsmith.plan import Plan, find_method, make_plan
from weightsmith.recipe import Recipe, read_recipe
from weightsmith.run import Result, check_target, execute, make_recipe


class MethodsGroup(click.Group):
    """A command per method; any other word is a recipe file."""

    def __init__(self, *, name: str, help: str, short_help: str, dry_run: bool) -> None:
        example = f"weightsmith {name} ties --base B --model A1 --model A2 --density 0.2 --out OUT"
        twin = (
            "weightsmith.make_plan(recipe)"
            if dry_run
            else 'weightsmith.merge("ties", base=B, models=[A1, A2], out=OUT)'
        )
        epilog = f"\b\nExample:\n  {example}\n  weightsmith {name} recipe.yaml OUT\n\nPython twin: {twin}"
        super().__init__(
            name=name,
            help=help,
            short_help=short_help,
            epilog=epilog,
            subcommand_metavar="METHOD|RECIPE [OPTIONS]...",
        )
        self.dry_run = dry_run

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the methods, and RECIPE."""
        return [m.name for m in METHODS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command of a method, or of a recipe file."""
        if name in self.list_commands(ctx):
            return _method_command(find_method(name), self.dry_run)
        if name.endswith((".yaml", ".yml")) or Path(name).exists():
            return _recipe_command(name, self.dry_run)
        raise ArgumentError(
            f"'{shown(name)}' is neither a method nor a recipe file",
            do=nearest(name, self.list_commands(ctx)).capitalize(),
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the methods with one line each."""
        with formatter.section("Methods"):
            formatter.write_dl([(m.name, m.summary) for m in METHODS])


def _method_command(method: Method, dry_run: bool) -> click.Command:
    verb = "plan" if dry_run else "merge"

    def run(**given: Any) -> int:
        parameters = parse_parameters(method, given)
        if not given["models"]:
            raise ArgumentError(f"{verb} {method.name}: no models", do="Pass --model MODEL, once per model")
        recipe = make_recipe(
            method.name,
            base=given.pop("base", None),
            models=given.pop("models"),
            coefficients=parameters.pop("coefficients", None),
            copy=given.pop("copy"),
            drop=given.pop("drop"),
            dtype=given.pop("dtype"),
            shard_size=given.pop("shard_size"),
            **parameters,
        )
        return _run(recipe, given.pop("out"), given, dry_run)

    out = click.Option(["--out"], metavar="OUT", required=not dry_run, help="The new folder.")
    inputs = [o for o in INPUTS if o.name != "base" or method.has_base]
    twin = f'weightsmith.merge("{method.name}", ..., out=OUT)' if not dry_run else "weightsmith.make_plan(recipe)"
    return click.Command(
        method.name,
        params=[*inputs, out, *method_options(method), *_rest(dry_run)],
        callback=run,
        help=f"{method.summary}\n\n{method.source} `weightsmith methods {method.name}` shows the equation.",
        epilog=f"\b\nExample:\n  {method.example.replace(' merge ', f' {verb} ', 1)}\n\nPython twin: {twin}",
    )


def _recipe_command(path: str, dry_run: bool) -> click.Command:
    verb = "plan" if dry_run else "merge"

    def run(out: str | None, **given: Any) -> int:
        known = {m.name: sorted(set(m.parameters) - {"coefficients"}) for m in METHODS}
        return _run(read_recipe(path, known=known), out, given, dry_run)

    return click.Command(
        path,
        params=[click.Argument(["out"], required=not dry_run), *_rest(dry_run)],
        callback=run,
        help="Merge as the recipe file says.",
        epilog=f"\b\nExample:\n  weightsmith {verb} recipe.yaml OUT\n\nPython twin: weightsmith.merge('recipe.yaml', out=OUT)",
    )


def _rest(dry_run: bool) -> list[click.Option]:
    return [*MACHINE, *([] if dry_run else WRITING), *SHOWING]


def _run(recipe: Recipe, out: str | None, given: dict[str, Any], dry_run: bool) -> int:
    as_json, quiet = given.pop("as_json"), given.pop("quiet")
    options = machine_options(given)
    dry_run = given.pop("dry_run", False) or dry_run
    plan = make_plan(recipe, options)
    if dry_run:
        if out is not None:
            check_target(plan, Path(out), force=given.get("force", False))
        click.echo(json.dumps(plan.summary(), indent=2, ensure_ascii=False) if as_json else _plan_text(plan))
        return 0
    for note in plan.notes:
        click.echo(f"note: {shown(note)}", err=True)
    with shown_progress(quiet=quiet) as progress:
        result = execute(plan, Path(str(out)), force_base=options.force_base, progress=progress, **given)
    click.echo(json.dumps(_result(result), indent=2, ensure_ascii=False) if as_json else _result_text(plan, result))
    return 0


def _result(result: Result) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "seconds": round(result.seconds, 3),
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "record": result.record,
    }


def _result_text(plan: Plan, result: Result) -> str:
    speed = (result.bytes_read + result.bytes_written) / max(result.seconds, 1e-9) / 1e9
    return (
        f"{shown(result.out)}: {counted(len(plan.merged), 'tensor')} merged by {plan.method.name}, {len(plan.copied)} copied,"
        f" {len(plan.dropped)} dropped; {size(result.bytes_written)} in {result.seconds:.1f} s ({speed:.1f} GB/s)"
    )


def _plan_text(plan: Plan) -> str:
    """Return a plan for people: what, how much, and every tensor that is not simply merged."""
    summary = plan.summary()
    shared = {n: v for n, v in (plan.merged[0].parameters or {}).items() if v is not None}
    lines = [
        f"{plan.method.name}: {plan.method.summary}",
        "  " + ", ".join(f"{option_name(n)[2:]} {v}" for n, v in shared.items()) if shared else "",
        *(f"  input {i}: {shown(c.reference)}, {counted(len(c.tensors), 'tensor')}" for i, c in enumerate(plan.inputs)),
        f"  merged: {counted(len(plan.merged), 'tensor')}, {counted(summary['merged_elements'], 'weight')}",
        f"  copied: {counted(len(plan.copied), 'tensor')}",
        *(f"    {shown(w.name)}: {w.reason}" for w in plan.copied[:20]),
        *([f"    ... and {len(plan.copied) - 20} more (--json lists all)"] if len(plan.copied) > 20 else []),
        f"  dropped: {counted(len(plan.dropped), 'tensor')}",
        *(f"    {shown(d.name)} of input {d.model}: {d.reason}" for d in plan.dropped[:20]),
        *([f"    ... and {len(plan.dropped) - 20} more (--json lists all)"] if len(plan.dropped) > 20 else []),
        f"  reads {size(plan.bytes_read)} in {counted(plan.passes, 'pass')}, writes {size(plan.bytes_written)}",
        f"  peak memory {size(plan.job.limits.peak_bytes)}, {counted(plan.job.limits.threads, 'thread')}",
        *(f"  note: {shown(note)}" for note in plan.notes),
    ]
    return "\n".join(line for line in lines if line)
