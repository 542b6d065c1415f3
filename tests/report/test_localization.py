import re

import pytest

from weightsmith.report.localization import localization_page
from weightsmith.report.page import render

TITLES = [
    "How many tasks need a weight",
    "Where the masks are dense",
    "Task by task",
    "How far fine-tuning moved the weights",
    "What merging disturbs, and what a mask gives back",
    "Spectra",
    "Filters",
    "The causal check",
    "How lambda was chosen",
    "Do the models come from this base?",
    "Tensors",
    "How this was made",
]


def test_the_page_has_a_section_for_all_that_is_known(small):
    assert [s.title for s in localization_page(small).sections] == TITLES


def test_what_is_not_known_is_left_out(small):
    for name in ("spectra", "filters", "behavior", "choice"):
        small[name] = None
    small["matrices"]["conflict_trimmed"] = small["model"]["conflict_trimmed"] = small["trim"] = None
    page = localization_page(small)
    assert [s.title for s in page.sections] == [
        t for t in TITLES if t not in ("Spectra", "Filters", "The causal check", "How lambda was chosen")
    ]
    assert "trimming" not in render(page)


def test_overview_numbers(small):
    tiles = {tile.title: tile.value for tile in localization_page(small).tiles}
    whole = small["model"]
    assert tiles["Weights"] == "1 M"
    assert tiles["Catastrophic"] == f"{100 * whole['catastrophic']:.1f} %"
    assert tiles["Density"] == f"{50 * sum(whole['density']):.1f} %"
    assert tiles["Recovered"] == f"{sum(whole['recovered']) / 2:.3g}"


def test_the_map_of_agreement_holds_the_shares_of_each_layer(small):
    found = render(localization_page(small))
    told = re.search(r'data-m="share of the layer&#39;s weights needed by so many tasks".*? data-v="([^"]*)"', found)[1]
    rows = [row.split("|") for row in told.split(";")]
    counts = small["layers"][1]["agreement"]
    assert [row[1] for row in rows] == [f"{100 * counts[n] / sum(counts):.1f} %" for n in (2, 1, 0)]


def test_one_task_has_a_page_too(made):
    page = localization_page(made(1, ["digits"]))
    assert page.title == "Where one task lives in org/base"
    assert "<svg" in render(page)


def test_300_layers_and_30_tasks_stay_under_5_megabytes(made):
    found = made(300, [f"a-task-with-a-rather-long-name-{i:02d}" for i in range(30)])
    assert len(render(localization_page(found)).encode()) < 5e6


def test_numbers_that_do_not_exist_leave_gaps(small):
    """What is not a number is null in the plain data; a page must do with nothing but nulls."""

    def emptied(value):
        if isinstance(value, float):
            return None
        if isinstance(value, dict):
            return {
                k: v if k in ("lambdas", "lambda", "trim", "positions", "scores") else emptied(v)
                for k, v in value.items()
            }
        return [emptied(v) for v in value] if isinstance(value, list) else value

    found = render(localization_page(emptied(small)))
    assert re.search(r"\bnan\b|\bNone\b", found) is None


@pytest.mark.parametrize("by", ["magnitude", "given"])
def test_masks_made_otherwise(small, by):
    small |= {"by": by, "method": None, "merged": "/models/merged", "lambdas": None}
    assert f"Masks by {by} over the merged model merged" in localization_page(small).lead
