import io
import re

import pytest
from rich.console import Console

from weightsmith.demo.page import bundle_table, layer_counts, page, table

HOSTILE = "<script>alert('x')</script>\"'&\x1b[31m"


def row(method, serves, accuracy, share, **others):
    return {
        "method": method,
        "serves": serves,
        "accuracy": accuracy,
        "mean_accuracy": share,
        "normalized_accuracy": share,
        "bytes": 1234567,
        "bytes_are": "files",
        "seconds": None,
        "knob": "",
        "values": [],
        "tried": [],
        "commands": [],
        **others,
    }


def stored(encoding, nbytes, share):
    return {
        "encoding": encoding,
        "mean_accuracy": share,
        "normalized_accuracy": share,
        "bytes": 100_000 + nbytes,
        "stored_bytes": nbytes,
        "bits_per_weight": nbytes / 10_000,
        "pack_seconds": 1.25,
        "unpack_seconds": 0.5,
        "commands": [f"weightsmith pack {encoding}"],
    }


def printed(results, of=table):
    console = Console(width=80, file=io.StringIO())
    console.print(of(results))
    return console.file.getvalue()


@pytest.fixture
def results():
    counts = {
        "model.layers.0.w": [1, 2, 3],
        "model.layers.11.w": [4, 0, 6],
        "model.layers.2.w": [0, 9, 0],
        "model.norm": [1, 1, 0],
    }
    return {
        "weightsmith": "0",
        "versions": {"python": "3"},
        "seed": 7,
        "splits": {"train": 3, "validation": 2, "test": 1},
        "tasks": [{"name": HOSTILE, "about": HOSTILE, "classes": 2}, {"name": "odd", "about": "odd?", "classes": 2}],
        "trained": {
            "weights": 27,
            "layers": 3,
            "base_images": 1,
            "base": {"seconds": 1.0},
            "experts": {"seconds": 2.0},
        },
        "methods": [
            row("base", "all tasks", {HOSTILE: 0.5, "odd": 0.25}, 0.375),
            row("experts", "one task", {HOSTILE: 1.0, "odd": 1.0}, 1.0),
            row(
                "ties",
                "all tasks",
                {HOSTILE: 0.75, "odd": None},
                0.75,
                seconds=0.125,
                knob="lambda",
                values=[0.5],
                commands=[f"weightsmith merge ties --model {HOSTILE}"],
            ),
            row("tall_masks", "one task", {HOSTILE: 1.0, "odd": 1.0}, 1.25, bytes_are="formula"),
        ],
        "bundles": [stored("tall_masks", 23_456, 0.97), stored("chosen", 12_345, 0.985)],
        "agreement": {"mask_lambda": 0.4, "tasks": 2, **layer_counts(counts)},
        "seconds": 3.0,
    }


def test_layers_in_numeric_order_after_what_lies_outside(results):
    layers = results["agreement"]["layers"]
    assert [found["layer"] for found in layers] == ["outside the layers", "layer 0", "layer 2", "layer 11"]
    assert layers[1] == {"layer": "layer 0", "catastrophic": 1, "selfish": 2, "shared": 3}
    assert results["agreement"]["total"] == {"catastrophic": 6, "selfish": 12, "shared": 9}
    assert results["agreement"]["histogram"] == [6, 12, 9]


def test_shared_counts_all_weights_of_two_tasks_and_more():
    assert layer_counts({"h.0.w": [1, 2, 3, 4]})["total"]["shared"] == 7


def test_hostile_names_are_escaped(results):
    found = page(results)
    assert found.count("<script") == 1
    assert "&lt;script&gt;" in found
    assert "\x1b" not in found


def test_the_page_loads_nothing_and_forbids_loading(results):
    found = page(results).replace(' href="localize.html"', "", 1)
    assert re.search(r"https?:|//[a-z]|url\(|@import|\ssrc=|\shref=", found) is None
    assert "Content-Security-Policy" in found
    assert "default-src 'none'" in found
    assert "unsafe" not in found


def test_the_page_holds_the_numbers(results):
    found = page(results)
    for text in ("75.0 %", "125.0 %", "1,234,567 *", "weightsmith demo --seed 7", "lambda 0.5", "0.12"):
        assert text in found
    assert found.count("<svg") == 3
    assert re.search(r'<td class="none">', found)


def test_the_page_says_that_a_bundle_is_better_only_where_it_is(results):
    assert "its tasks are better" in page(results)
    results["bundles"][1]["normalized_accuracy"] = 0.97
    assert "its tasks are better" not in page(results)
    results["bundles"][1] |= {"normalized_accuracy": 0.98, "stored_bytes": 23_456}
    assert "its tasks are better" not in page(results)


def test_bundles_in_a_terminal(results):
    text = printed(results, bundle_table)
    assert re.search(r"tall_masks +123,456 +2.35 +97.0 % +1.25 s +0.50 s", text)


def test_same_results_same_page(results):
    assert page(results) == page(results)


def test_the_table_for_a_terminal(results):
    text = printed(results)
    assert re.search(r"ties .* 75.0 % .* 75.0 % .* 1,234,567 .* 0.1", text)
    assert re.search(r"tall_masks .* 1,234,567 \*", text)


def test_markup_in_names_is_not_interpreted(results):
    results["methods"][0]["method"] = "[red]base[/red]"
    assert "[red]base[/red]" in printed(results)
