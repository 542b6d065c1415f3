"""`weightsmith localize --base B --model A1 --model A2`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import click

from weightsmith.cli.options import SHOWING, followed_by, machine_options, offered
from weightsmith.cli.progress import shown_progress
from weightsmith.cli.reporting import REPORT, report, report_path
from weightsmith.cli.tables import columns, counted, number, size
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.localization.analysis import execute
from weightsmith.localization.part import Part
from weightsmith.localization.request import DEFAULT_LAMBDA, DEFAULT_TRIM, TALL, WAYS, Request, prepare
from weightsmith.localization.result import Localization
from weightsmith.localize import LOCALIZERS
from weightsmith.method import Method
from weightsmith.plan.headers import find_method

_OFFERED = offered("memory", "threads", "follow_symlinks", "allow_nonfinite", "force", "dry_run")
_PARTS = ("part", "weights", "none", "one", "general", "density", "drift", "cosine", "conflict", "distance", "erased")
_TASKS = ("task", "lambda", "density", "norm", "drift", "distance", "erased", "lineage")


@click.command(
    "localize",
    short_help="Say where tasks lie in the weights, and how they clash.",
    epilog="\b\nExample:\n  weightsmith localize --base B --model A1 --model A2 --masks MASKS\n\n"
    "Python twin: weightsmith.localize(B, [A1, A2], masks=MASKS)",
)
@click.option("--base", required=True, metavar="MODEL", help="What all models were trained from.")
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="TASK=MODEL",
    help="A model and what its task is called; by default as its folder. Repeat, in order.",
)
@click.option("--copy", multiple=True, metavar="GLOB", help="Leave out these tensors.")
@click.option("--drop", multiple=True, metavar="GLOB", help="Leave out these tensors, which the base lacks.")
@click.option("--by", type=click.Choice(WAYS), default=TALL, show_default=True, help="What makes the masks.")
@click.option(
    "--selection", multiple=True, metavar="KEY=VALUE", help="A parameter of --by, such as density=0.1; repeat."
)
@click.option(
    "--statistics", multiple=True, metavar="MODEL", help="For fisher and sensitivity: statistics, once per model."
)
@click.option("--mask", "given", multiple=True, metavar="MASK", help="Stored masks, once per model, in place of --by.")
@click.option(
    "--method",
    default="task_arithmetic",
    show_default=True,
    metavar="METHOD",
    help="The elementwise merge whose vector is masked.",
)
@click.option("--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="A parameter of --method; repeat.")
@click.option("--merged", metavar="MODEL", help="A merged model, in place of --method.")
@click.option(
    "--lambda",
    "lambdas",
    metavar="NUMBERS",
    help=f"For tall_masks: one number, or one per task.  [default: {DEFAULT_LAMBDA}]",
)
@click.option("--validation", metavar="FILE", help="Choose lambdas by known scores: JSON of {task: {lambda: score}}.")
@click.option(
    "--trim",
    type=float,
    default=DEFAULT_TRIM,
    show_default=True,
    help="Density at which sign conflicts are counted again; 0: not.",
)
@click.option("--spectra", is_flag=True, help="Look at whole matrices too: singular values, alignment, filters. Slow.")
@click.option("--masks", metavar="OUT", help="Write the masks there, one folder per task.")
@click.option(
    "--top", type=click.IntRange(0), default=0, show_default=True, help="Show so many tensors that drifted most."
)
@followed_by(*_OFFERED, REPORT, *SHOWING)
def command(top: int, as_json: bool, quiet: bool, dry_run: bool, **given: Any) -> int:
    """Find which weights each task needs, and how tasks agree, overlap and clash.

    TALL-masks say which entries of one merged vector each task needs. Entries that no mask selects are catastrophic (none), those
    of one mask selfish (one), the others general. distance is how far the merged vector lies from a task's own, as a share of its
    length; erased what remains of that behind the task's mask.
    """
    page, options = report_path(given), machine_options(given)
    method = find_method(given["method"])
    given["parameters"] = _parsed(given["parameters"], method)
    chosen = next((m for m in LOCALIZERS if m.name == given["by"]), None)
    given["selection"] = _parsed(given["selection"], chosen)
    given["lambdas"] = _numbers(given["lambdas"])
    given["trim"] = given["trim"] or None
    request = prepare(given.pop("base"), given.pop("models"), options=options, **given)
    if dry_run:
        found = request.summary()
        click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(_plan(request)))
        return 0
    with shown_progress(quiet=quiet) as progress:
        result = execute(request, progress=progress)
    report(result, page)
    for note in result.notes:
        click.echo(f"note: {shown(note)}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_text(result, top)))
    return 0


def _parsed(pairs: Sequence[str], method: Method | None) -> dict[str, Any]:
    """Return KEY=VALUE words as parameters, parsed by their kinds."""
    found: dict[str, Any] = {}
    known = {} if method is None else {n.rstrip("_").replace("_", "-"): p for n, p in method.parameters.items()}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        parameter = known.get(key.replace("_", "-"))
        if not equals:
            raise ArgumentError("localize: parameter", expected="KEY=VALUE", got=f"'{shown(pair)}'")
        if parameter is None:
            raise ArgumentError(f"localize: unknown parameter '{shown(key)}'", do=nearest(key, known))
        found[parameter.name] = parameter.kind.parse(value)
    return found


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        got = f"'{shown(text)}'"
        raise ArgumentError("localize: --lambda", expected="numbers, separated by commas", got=got) from None


def _plan(request: Request) -> Iterator[str]:
    found = request.summary()
    what = found["method"] or "a merged model"
    yield f"localize by {found['by']} on {what}: {counted(len(request.tasks), 'task')}, {counted(found['tensors'], 'tensor')}"
    yield f"  {found['elements']:,} weights; {size(found['bytes_read_per_pass'])} read in each pass"
    for task, reference in zip(request.tasks, found["inputs"][1:], strict=False):
        yield f"  {task}: {shown(reference)}"
    for name, reason in [*found["not_compared"].items()][:20]:
        yield f"  left out: {shown(name)}: {reason}"
    if request.out is not None:
        yield f"  masks: {size(request.mask_bytes)} to {shown(request.out)}"
    yield f"  peak memory {size(found['peak_memory_bytes'])}"


def _text(result: Localization, top: int) -> Iterator[str]:
    whole = result.model
    figures = whole.summary()
    vector = result.method or f"merged model {shown(result.merged)}"
    yield (
        f"{whole.elements:,} weights in {counted(whole.tensors, 'tensor')}, {counted(len(result.tasks), 'task')};"
        f" masks by {result.by} on {vector}"
    )
    yield (
        f"catastrophic {figures['catastrophic']:.4f}, selfish {figures['selfish']:.4f}, general {figures['general']:.4f};"
        f" mean overlap of masks {number(figures['jaccard_mean'])} (by chance {number(figures['chance_mean'])})"
    )
    signs = [f"{number(figures['conflict']['any'])} of the weights"]
    if figures["conflict_trimmed"] is not None:
        signs.append(f"{number(figures['conflict_trimmed']['any'])} once trimmed to {result.trim:g}")
    yield f"signs clash in {', '.join(signs)}; mean cosine of task vectors {number(figures['cosine_mean'])}"
    if result.masks is not None:
        yield f"masks: {shown(result.masks)}"
    yield ""
    yield from columns(_TASKS, _task_rows(result, figures), left=(0, 7))
    for parts in (result.layers, result.kinds):
        yield ""
        yield from columns(_PARTS, [_cells(p) for p in parts])
    drifted = sorted(result.tensors, key=lambda p: (-_mean(p.summary()["drift"]), p.name))[:top]
    if drifted:
        yield ""
        yield from columns(_PARTS, [_cells(p) for p in drifted])


def _task_rows(result: Localization, figures: dict[str, Any]) -> list[tuple[str, ...]]:
    lineage = result.lineage()
    rows = []
    for i, task in enumerate(result.tasks):
        lambda_ = "-" if result.lambdas is None else f"{result.lambdas[i]:g}"
        numbers = [number(figures[key][i]) for key in ("density", "norm", "drift", "distance", "erased")]
        rows.append((task, lambda_, *numbers, lineage[i]["verdict"]))
    return rows


def _cells(part: Part) -> tuple[str, ...]:
    found = part.summary()
    shares = [number(found[key]) for key in ("catastrophic", "selfish", "general")]
    means = [number(_mean(found[key])) for key in ("density", "drift")]
    rest = [number(found["cosine_mean"]), number(found["conflict"]["any"])]
    errors = [number(_mean(found[key])) for key in ("distance", "erased")]
    return (shown(part.name), f"{part.elements:,}", *shares, *means, *rest, *errors)


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else 0.0
