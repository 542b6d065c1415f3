"""The commands behind `merge` and `plan`: one per method, and one for recipes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from weightsmith.chain import plan_steps
from weightsmith.cli.options import (
    INPUTS,
    MACHINE,
    PEER_EXACT,
    SHOWING,
    WRITING,
    machine_options,
    method_options,
    parse_parameters,
)
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.reporting import REPORT, page_of_merge, report, report_path
from weightsmith.cli.tables import counted, size
from weightsmith.dialect import Step, is_dialect, read_steps
from weightsmith.errors import ArgumentError, Gathered, nearest, shown
from weightsmith.merge import METHODS
from weightsmith.method import Method
from weightsmith.plan import Options, Plan, make_plan
from weightsmith.plan.headers import find_method
from weightsmith.plan.settings import known_parameters
from weightsmith.plan.slicing import Part
from weightsmith.recipe import Origin, Recipe
from weightsmith.recipe.origin import option_of
from weightsmith.recipe.text import read_recipe
from weightsmith.run import Result, check_target, execute, make_recipe, merge_steps


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
            do=nearest(name, self.list_commands(ctx)),
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
            mask=given.pop("mask"),
            dtype=given.pop("dtype"),
            tokenizer=given.pop("tokenizer"),
            shard_size=given.pop("shard_size"),
            origin=Origin("command"),
            **parameters,
        )
        return _run(recipe, Gathered(), given.pop("out"), given, dry_run)

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
        found = Gathered()
        if is_dialect(path):
            return _run_steps(read_steps(path, found), found, out, given, dry_run)
        if given.pop("peer_exact"):
            raise ArgumentError(f"recipe {shown(path)}", expected="one of mergekit's with --peer-exact", got="our own")
        recipe = read_recipe(path, known=known_parameters(METHODS), found=found)
        return _run(recipe, found, out, given, dry_run)

    return click.Command(
        path,
        params=[click.Argument(["out"], required=not dry_run), PEER_EXACT, *_rest(dry_run)],
        callback=run,
        help="Merge as the recipe file says: one of ours, or mergekit's.",
        epilog=f"\b\nExample:\n  weightsmith {verb} recipe.yaml OUT\n\nPython twin: weightsmith.merge('recipe.yaml', out=OUT)",
    )


def _rest(dry_run: bool) -> list[click.Option]:
    return [*MACHINE, *([] if dry_run else (*WRITING, REPORT)), *SHOWING]


def _run(recipe: Recipe, found: Gathered, out: str | None, given: dict[str, Any], dry_run: bool) -> int:
    options = machine_options(given)
    return _finish([make_plan(recipe, options, found)], out, given, dry_run, options, _execution(options))


def _run_steps(steps: Sequence[Step], found: Gathered, out: str | None, given: dict[str, Any], dry_run: bool) -> int:
    peer_exact, options = given.pop("peer_exact"), machine_options(given)

    def start(plan: Plan, out: Path, **writing: Any) -> Result:
        return merge_steps(steps, out, options, peer_exact=peer_exact, **writing)

    plans = plan_steps(steps, options, found, peer_exact=peer_exact)
    return _finish(plans, out, given, dry_run, options, start if len(steps) > 1 else _execution(options))


def _execution(options: Options) -> Callable[..., Result]:
    return partial(execute, force_base=options.force_base)


def _finish(
    plans: Sequence[Plan],
    out: str | None,
    given: dict[str, Any],
    dry_run: bool,
    options: Options,
    start: Callable[..., Result],
) -> int:
    """Show the plans, or start the merge and show its result; the last plan is the result's."""
    as_json, quiet, plan = given.pop("as_json"), given.pop("quiet"), plans[-1]
    page = report_path(given)
    if given.pop("dry_run", False) or dry_run:
        if out is not None:
            check_target(plan, Path(out), force=given.get("force", False))
        told = plan.summary() if len(plans) == 1 else [p.summary() for p in plans]
        click.echo(json.dumps(told, indent=2, ensure_ascii=False) if as_json else "\n".join(map(_plan_text, plans)))
        return 0
    for note in dict.fromkeys(note for p in plans for note in p.notes):
        click.echo(f"note: {shown(note)}", err=True)
    with shown_progress(quiet=quiet) as progress:
        result = start(plan, Path(str(out)), progress=progress, **given)
        first = plan.inputs[0].reference if len(plans) == 1 else None
        drawn = None if page is None else page_of_merge(result, first, options, progress)
    report(drawn, page)
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


def _layers_text(part: Part) -> str:
    """Return where the layers of a slice come from."""

    def span(start: int) -> str:
        return f"layer {start}" if part.count == 1 else f"layers {start} to {start + part.count - 1}"

    sources = [f"{span(start)} of input {i}" for i, start in zip(part.inputs, part.starts, strict=True)]
    return f"{span(part.first)} from {', '.join(sources)}"


def _copied_text(plan: Plan) -> list[str]:
    """Return the copied tensors with the reason; with slices, how many there are for each reason."""
    if plan.recipe.slices:
        return [f"    {counted(n, 'tensor')}: {reason}" for reason, n in Counter(w.reason for w in plan.copied).items()]
    more = [f"    ... and {len(plan.copied) - 20} more (--json lists all)"] if len(plan.copied) > 20 else []
    return [*(f"    {shown(w.name)}: {w.reason}" for w in plan.copied[:20]), *more]


def _varying_text(plan: Plan) -> list[str]:
    """Return a line per parameter that differs between tensors: its values, with the number of tensors that have each."""
    lines = []
    for name, by_tensor in plan.parameters[1].items():
        counts = Counter(by_tensor.values())
        values = [f"{_numbers(value)} in {counted(n, 'tensor')}" for value, n in list(counts.items())[:8]]
        more = f", and {len(counts) - 8} more values (--json lists all)" if len(counts) > 8 else ""
        lines.append(f"  {option_of(name)[2:]} by tensor: {', '.join(values)}{more}")
    return lines


def _vocabulary_text(plan: Plan) -> list[str]:
    """Return what becomes of tokens that differ between the models: how many by each rule, and the first 20."""
    found = plan.vocabulary
    if found is None:
        return []
    ruled = ", ".join(f"{n} {rule}" for rule, n in found.rules.items())
    return [
        f"  vocabulary {shown(found.source)}: {counted(found.tokens, 'token')} in {counted(found.rows[0], 'row')};"
        f" {counted(found.count, 'token')} not at one id" + (f" ({ruled})" if ruled else ""),
        *(
            f"    {shown(repr(d.token))}: {_place_text(d.ids, d.id)}; {d.rule} {shown(d.source)}".rstrip()
            for d in found.differences[:20]
        ),
        *([f"    ... and {found.count - 20} more (--json lists them)"] if found.count > 20 else []),
    ]


def _place_text(ids: Sequence[int | None], place: int | None) -> str:
    """Return a token's ids in the models and the output."""
    told = ["-" if i is None else str(i) for i in (*ids, place)]
    return f"{', '.join(told[:-1])} -> {told[-1]}"


def _numbers(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_numbers, value)) + ")"
    return f"{value:.4g}" if isinstance(value, float) else "default" if value is None else str(value)


def _plan_text(plan: Plan) -> str:
    """Return a plan for people: what, how much, and every tensor that is not simply merged."""
    summary = plan.summary()
    shared = {n: v for n, v in plan.parameters[0].items() if v is not None}
    rounding = plan.recipe.compute_dtype
    lines = [
        f"{plan.method.name}: {plan.method.summary}",
        "  " + ", ".join(f"{option_of(n)[2:]} {v}" for n, v in shared.items()) if shared else "",
        *_varying_text(plan),
        f"  inputs and every step are rounded to {rounding}" if rounding else "",
        *(f"  input {i}: {shown(c.reference)}, {counted(len(c.tensors), 'tensor')}" for i, c in enumerate(plan.inputs)),
        *(f"  {part.label}: {_layers_text(part)}" for part in plan.parts if part.label),
        f"  inside the mask {shown(plan.recipe.mask)} alone" if plan.mask is not None else "",
        f"  merged: {counted(len(plan.merged), 'tensor')}, {counted(summary['merged_elements'], 'weight')}",
        f"  copied: {counted(len(plan.copied), 'tensor')}",
        *_copied_text(plan),
        f"  dropped: {counted(len(plan.dropped), 'tensor')}",
        *(f"    {shown(d.name)} of input {d.model}: {d.reason}" for d in plan.dropped[:20]),
        *([f"    ... and {len(plan.dropped) - 20} more (--json lists all)"] if len(plan.dropped) > 20 else []),
        *_vocabulary_text(plan),
        f"  reads {size(plan.bytes_read)} in {counted(plan.passes, 'pass')}, writes {size(plan.bytes_written)}",
        f"  peak memory {size(plan.job.limits.peak_bytes)}, {counted(plan.job.limits.threads, 'thread')}",
        *(f"  note: {shown(note)}" for note in plan.notes),
    ]
    return "\n".join(line for line in lines if line)
