"""The page of a localization: which weights which task needs, how tasks meet, and what merging costs them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from markupsafe import Markup

from weightsmith.report.charts import Bar, bars, columns, lines, stacks
from weightsmith.report.depth import Depth, mean
from weightsmith.report.files import input_files
from weightsmith.report.heat import Values, fit, flatten, heat_map, matrix
from weightsmith.report.page import Page, Section, Tile, folded, titled, words
from weightsmith.report.spectra import filters_section, spectra_section
from weightsmith.report.svg import Text
from weightsmith.report.table import Column, table
from weightsmith.report.text import MINUS, brief, cosine, count, figure, percent, place, short

KINDS = ("catastrophic", "selfish", "general")  # needed by no task, by one, by several
FEW_LAYERS = 40  # so many fit as bars
LEAST_COSINE = 0.1  # colors tell no smaller ones apart

_MATRICES: tuple[tuple[str, str, str, Text], ...] = (
    ("cosine", "Cosine", "cosine of the task vectors", cosine),
    ("jaccard", "Overlap of masks", "Jaccard overlap of the masks", percent),
    ("chance", "Overlap by chance", "Jaccard overlap of independent masks of the same densities", percent),
    ("overlap", "Overlap of the smaller mask", "share of the smaller mask that both hold", percent),
    ("conflict", "Sign conflict", "share of entries that both change, with unlike signs", percent),
    ("conflict_trimmed", "Sign conflict after trimming", "the same, between the largest entries of each", percent),
)  # fmt: skip


def localization_page(found: Mapping[str, Any]) -> Page:
    """Return the page of what `localize` found.

    Args:
        found: The plain data of a Localization, as `weightsmith localize --json` prints it.
    """
    tasks, depth = found["tasks"], Depth(found)
    sections = [
        _agreement(found, depth),
        _density(found, depth),
        _matrices(found),
        _drift(found, depth),
        _recovered(found, depth),
        *([spectra_section(found["spectra"], tasks, depth)] if found["spectra"] else []),
        *([filters_section(found["filters"])] if found["filters"] else []),
        *_behavior(found),
        _lineage(found),
        _tensors(found),
        _how(found),
    ]
    several = f"{len(tasks)} tasks live" if len(tasks) != 1 else "one task lives"
    return Page(
        title=f"Where {several} in {short(place(found['base']), 60)}",
        lead=f"Masks by {found['by'].replace('_', ' ')} over {_merged(found)}: one per task, of the weights it needs.",
        tiles=_tiles(found),
        sections=tuple(sections),
    )


def _tiles(found: Mapping[str, Any]) -> tuple[Tile, ...]:
    whole, tasks = found["model"], found["tasks"]
    conflict, trimmed = whole["conflict"]["pairwise"], whole["conflict_trimmed"]
    chance = percent(whole["chance_mean"])
    after = f"{percent(trimmed['pairwise'])} after trimming to {percent(found['trim'])}" if trimmed else ""
    return (
        Tile("Weights", brief(whole["elements"]), f"{count(whole['elements'])} in {count(whole['tensors'])} tensors"),
        Tile("Catastrophic", percent(whole["catastrophic"]), "of weights are needed by no task"),
        Tile("Selfish", percent(whole["selfish"]), "are needed by exactly one"),
        Tile("General", percent(whole["general"]), "are needed by two or more"),
        Tile("Density", percent(mean(whole["density"])), "of weights in a mask, mean over the tasks"),
        *(
            (
                Tile("Overlap", percent(whole["jaccard_mean"]), f"of two masks (Jaccard); by chance {chance}"),
                Tile("Cosine", cosine(whole["cosine_mean"]), "between two task vectors, mean"),
                Tile("Sign conflict", percent(conflict), f"between two tasks, where both changed; {after}".rstrip("; ")),
            )
            if len(tasks) > 1
            else ()
        ),
        Tile("Recovered", figure(mean(whole["recovered"])), "of a task vector's length, by its mask"),
    )  # fmt: skip


def _agreement(found: Mapping[str, Any], depth: Depth) -> Section:
    tasks, whole = found["tasks"], found["model"]
    size = max(1, sum(whole["agreement"]))
    upright = [
        Bar(
            str(n),
            number / size,
            KINDS[min(n, 2)],
            about=f"{count(number)} weights needed by {n} of {len(tasks)} tasks",
        )
        for n, number in enumerate(whole["agreement"])
    ]
    body = [_key(), columns(upright, percent, about="Histogram of agreement", axis="tasks that need the weight")]
    if len(depth.layers) <= FEW_LAYERS:
        rows = [("all weights", _by_kind(whole)), *((part["name"], _by_kind(part)) for part in depth.layers)]
        body.append(stacks(rows, percent, about="Shares of catastrophic, selfish and general weights by layer"))
    shares = [[_shares(part)[n] for part in depth.layers] for n in range(len(tasks), -1, -1)]
    labels = [str(n) for n in range(len(tasks), -1, -1)]
    measure = "share of the layer's weights needed by so many tasks"
    picture = heat_map(labels, depth.labels, shares, fit(flatten(shares), percent), measure=measure, row="needed by")
    body.append(titled("Number of tasks, by layer", picture))
    for kind, what in (("selfish", "exactly one task"), ("catastrophic", "no task")):
        values = depth.by_kind(itemgetter(kind))
        scale = fit(flatten(values), percent)
        picture = heat_map(depth.kinds, depth.labels, values, scale, measure=f"share of weights needed by {what}")
        body.append(titled(f"{kind.capitalize()} weights by layer and kind", picture))
    return Section(
        "How many tasks need a weight",
        "Catastrophic weights are needed by no task and only disturb, selfish ones serve one, general ones two or more.",
        tuple(body),
    )


def _density(found: Mapping[str, Any], depth: Depth) -> Section:
    values = depth.by_kind(lambda part: mean(part["density"]))
    by_task = [[part["density"][t] for part in depth.layers] for t in range(len(found["tasks"]))]
    scale = fit([*flatten(values), *flatten(by_task)], percent)
    first = heat_map(depth.kinds, depth.labels, values, scale, measure="share of weights in a mask, mean over tasks")
    second = heat_map(
        found["tasks"], depth.labels, by_task, scale, measure="share of weights in the task's mask", row="task"
    )
    whole = zip(found["tasks"], found["model"]["density"], strict=True)
    told = [Bar(name, share) for name, share in whole if share is not None]
    return Section(
        "Where the masks are dense",
        "The share of weights that a task's mask selects, by layer and kind, and by layer and task.",
        (
            titled("By layer and kind", first),
            titled("By layer and task", second),
            folded("By task, over the whole model", bars(told, percent, about="Density by task")),
        ),
    )


def _matrices(found: Mapping[str, Any]) -> Section:
    tasks, body = found["tasks"], []
    overlaps = [found["matrices"][name] for name in ("jaccard", "chance")]
    for name, title, measure, text in _MATRICES:
        values = found["matrices"].get(name)
        if values is None:
            continue
        values = _off_diagonal(values)
        alike = flatten([row for v in overlaps for row in _off_diagonal(v)])  # both on one scale, to be compared
        is_cosine = name == "cosine"
        scale = fit(
            alike if name in ("jaccard", "chance") else flatten(values),
            text,
            around_zero=is_cosine,
            least=LEAST_COSINE if is_cosine else 0.0,
        )
        body.append(titled(title, matrix(tasks, values, scale, measure=measure, numbers=_inside(text))))
    return Section("Task by task", "Each task beside each other, over the whole model.", tuple(body), side_by_side=True)


def _drift(found: Mapping[str, Any], depth: Depth) -> Section:
    tasks = found["tasks"]
    series = {name: [part["drift"][t] for part in depth.layers] for t, name in enumerate(tasks)}
    values = depth.by_kind(lambda part: mean(part["drift"]))
    picture = heat_map(
        depth.kinds, depth.labels, values, fit(flatten(values), percent), measure="drift, mean over tasks"
    )
    body = [
        lines(depth.labels, series, percent, about="Drift by depth", axis="layer"),
        titled("By layer and kind", picture),
    ]
    if len(tasks) > 1:
        body.insert(1, titled("By layer and task", _drift_by_task(series, depth)))
    return Section(
        "How far fine-tuning moved the weights",
        "Drift: the length of the task vector as a share of the base weights' length.",
        tuple(body),
    )


def _drift_by_task(series: Mapping[str, Sequence[float | None]], depth: Depth) -> Markup:
    values = list(series.values())
    return heat_map(list(series), depth.labels, values, fit(flatten(values), percent), measure="drift", row="task")


def _recovered(found: Mapping[str, Any], depth: Depth) -> Section:
    series = {
        "merged vector": [mean(part["distance"]) for part in depth.layers],
        "behind the mask": [mean(part["erased"]) for part in depth.layers],
    }
    whole = found["model"]
    rows = zip(
        found["tasks"], whole["distance"], whole["erased"], whole["recovered"], whole["cosine_merged"], strict=True
    )
    heads = (
        Column("task"),
        Column("wrong when merged", figure),
        Column("wrong behind the mask", figure),
        Column("recovered", figure),
        Column("cosine with the merged vector", cosine),
    )
    return Section(
        "What merging disturbs, and what a mask gives back",
        "Distance to the task vector, as a share of its length: of the merged vector, and of what the task's mask keeps of it."
        " The mean over the tasks.",
        (
            lines(depth.labels, series, figure, about="Distance by depth", axis="layer"),
            folded("By task, over the whole model", table(heads, list(rows))),
        ),
    )


def _behavior(found: Mapping[str, Any]) -> Iterator[Section]:
    if found["behavior"]:
        names = ("base", "finetuned", "merged", "masked", "interference", "erased")
        heads = [Column("task"), *(Column(n, figure) for n in names)]
        rows = [[row["task"], *(row[n] for n in names)] for row in found["behavior"]]
        yield Section(
            "The causal check",
            "Scores of the models themselves. Interference: what restoring the mask gives back over merging. Erased: what the"
            " finetuned model still has over the masked one.",
            (table(heads, rows),),
        )
    if found["choice"]:
        series = {row["task"]: dict(row["scores"]) for row in found["choice"]}
        places = sorted({value for scores in series.values() for value in scores})
        drawn = {task: [scores.get(value) for value in places] for task, scores in series.items()}
        chosen = [[row["task"], row["lambda"]] for row in found["choice"]]
        yield Section(
            "How lambda was chosen",
            "The score of each task by the lambda of its mask.",
            (
                lines([f"{v:g}" for v in places], drawn, figure, about="Score by lambda", axis="lambda"),
                folded("Chosen", table((Column("task"), Column("lambda", figure)), chosen)),
            ),
        )


def _lineage(found: Mapping[str, Any]) -> Section:
    heads = (
        Column("task"),
        Column("verdict"),
        Column("equal entries", percent),
        Column("cosine", cosine),
        Column("drift", percent),
        Column("cosine of the middle tensor", cosine),
    )
    names = ("task", "verdict", "equal", "cosine", "relative", "median_cosine")
    rows = [[row[name] for name in names] for row in found["lineage"]]
    return Section(
        "Do the models come from this base?", "Each model's weights beside the base's.", (table(heads, rows),)
    )


def _tensors(found: Mapping[str, Any]) -> Section:
    heads = (
        Column("tensor"),
        Column("shape"),
        Column("weights", count),
        Column("drift", percent, "length of the task vector over that of the base, mean over tasks"),
        Column("density", percent, "share in a mask, mean over tasks"),
        Column("catastrophic", percent, "needed by no task"),
        Column("selfish", percent, "needed by one task"),
        Column("overlap", percent, "Jaccard overlap of two masks, mean"),
        Column("conflict", percent, "sign conflict of two tasks, where both changed"),
        Column("recovered", figure, "share of a task vector's length that its mask gives back, mean over tasks"),
    )
    rows = [
        (
            part["name"],
            _shape(part["shape"]),
            part["elements"],
            mean(part["drift"]),
            mean(part["density"]),
            part["catastrophic"],
            part["selfish"],
            part["jaccard_mean"],
            part["conflict"]["pairwise"],
            mean(part["recovered"]),
        )
        for part in found["tensors"]
    ]
    about = "A click on a heading sorts. Values are means over the tasks."
    return Section("Tensors", about, (table(heads, rows, sortable=True),))


def _how(found: Mapping[str, Any]) -> Section:
    lambdas = found["lambdas"]
    items: list[tuple[str, object]] = [("base", found["base"])]
    items += [
        (task, model + (f" (lambda {lambdas[t]:g})" if lambdas else ""))
        for t, (task, model) in enumerate(zip(found["tasks"], found["models"], strict=True))
    ]
    items += [("masks by", found["by"]), ("merged vector", _merged(found))]
    items += [("parameters", json.dumps(found["parameters"], ensure_ascii=False))] if found["parameters"] else []
    body = [words(items), folded("Files and digests", input_files(found["inputs"]))]
    if found["not_compared"]:
        rows = list(found["not_compared"].items())
        body.append(folded(f"{len(rows)} tensors left out", table((Column("tensor"), Column("why")), rows)))
    notes = [Markup("<p>{}</p>").format(note) for note in found["notes"]]
    return Section("How this was made", "", (*body, *notes))


def _merged(found: Mapping[str, Any]) -> str:
    if found["merged"] is not None:
        return f"the merged model {short(place(found['merged']), 60)}"
    return f"the vector merged by {found['method']}" if found["method"] else "the task vectors themselves"


def _by_kind(part: Mapping[str, Any]) -> dict[str, int]:
    counts = part["agreement"]
    return dict(zip(KINDS, (counts[0], counts[1], sum(counts[2:])), strict=True))


def _shares(part: Mapping[str, Any]) -> list[float]:
    total = max(1, sum(part["agreement"]))
    return [number / total for number in part["agreement"]]


def _key() -> Markup:
    spans = [Markup('<span><i class="{k}"></i>{k}</span>').format(k=kind) for kind in KINDS]
    return Markup('<div class="key">{}</div>').format(Markup("").join(spans))


def _off_diagonal(values: Values) -> list[list[float | None]]:
    return [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(values)]


def _inside(text: Text) -> Text:
    """Return how a value is written inside a small cell: two places at most."""

    def write(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS) if text is cosine else f"{100 * value:.0f}"

    return write


def _shape(shape: Sequence[int] | None) -> str:
    return " × ".join(map(str, shape)) if shape else "–"
