import html
import re

import pytest

from weightsmith.report.packing import packing_page
from weightsmith.report.page import render


@pytest.fixture
def packed():
    task = {"pieces_bytes": 100, "manifest_bytes": 20, "beside_bytes": 5, "bits_per_weight": 0.5}
    storage = {
        "bundle_bytes": 2000, "base_bytes": 1500, "shared_bytes": 200, "manifest_bytes": 50, "tasks": {"a": task, "b": task},
        "individual_bytes": 4000, "ratio": 2.0, "merged_numbers": 1600, "frozen_numbers": 0, "bits_of_a_number": 16,
        "formula_bits": 8000.0, "formula_individual_bits": 32000.0, "damaged": {"c": "cut short"},
    }  # fmt: skip
    content = {
        "weightsmith": "0.1", "encoding": "tall_masks", "parameters": {"lambda_": 0.4}, "exact": [],
        "base": {"reference": "/models/base", "copied": False, "files": [{"file": "m", "bytes": 1500, "header_sha256": "ab"}]},
        "tasks": [{"name": n, "folder": f"0001-{n}", "part": {"sha256": "cd" + n}} for n in "ab"],
    }  # fmt: skip
    tensors = {
        "a": [("model.layers.0.mlp.w", (10, 80), ("mask",), 100), ("model.norm.w", (8,), (), 0)],
        "b": [("model.layers.0.mlp.w", (10, 80), ("mask",), 50), ("model.norm.w", (8,), ("dense",), 16)],
    }
    return {"out": "/bundles/all", "seconds": 1.0, "storage": storage, "notes": ["a note"]}, content, tensors


def test_overview(packed):
    page = packing_page(*packed)
    tiles = {tile.title: tile.value for tile in page.tiles}
    assert page.title == "all: 2 tasks in one bundle"
    assert tiles["Bundle"] == "2.0 kB"
    assert tiles["Per task"] == "0.50 bits"
    assert tiles["By the formula"] == "1.0 kB"


def test_bits_are_counted_by_layer_kind_and_task(packed):
    found = render(packing_page(*packed))
    maps = [
        html.unescape(m).split(";") for m in re.findall(r'data-m="bits for each weight"[^>]*? data-v="([^"]*)"', found)
    ]
    assert maps[0] == ["0.75|–", "–|8.00"]  # mlp: 8 * 150 bits over 1600 weights; norm: 8 * 16 over 16
    assert maps[1] == ["1.00|0.00", "0.50|16.00"]


def test_the_table_adds_up_tasks(packed):
    found = render(packing_page(*packed))
    assert ">as in the base, dense</td>" in found
    assert re.search(
        r'data-v="150">150</td><td class="n" data-v="0.75">0.75</td>.*?data-v="50">50</td><td[^>]*>100</td>', found
    )


def test_accuracy_is_drawn_where_it_is_known(packed):
    assert "Storage against accuracy" not in render(packing_page(*packed))
    found = render(packing_page(*packed, [("this bundle", 2000, 0.98), ("models", 4000, 1.0)]))
    assert "this bundle: bytes 2.0 kB, normalized accuracy 98.0 %" in found


def test_damage_notes_and_digests_are_told(packed):
    found = render(packing_page(*packed))
    for text in ("c: cut short", "a note", "cda", ">ab<", "lambda_"):
        assert text in found


def test_a_bundle_that_stores_nothing_has_no_map(packed):
    summary, content, _ = packed
    page = packing_page(summary, content, {"a": [("w", (4,), (), 0)]})
    assert "Bits by depth" not in [s.title for s in page.sections]


def test_names_are_escaped(packed):
    name = "<script>alert('x')</script>\"'"
    summary, content, tensors = packed
    content = {**content, "base": {**content["base"], "reference": name}, "parameters": {"x": name}, "exact": [name]}
    found = render(
        packing_page(
            {**summary, "out": name, "notes": [name]}, content, {name: tensors["a"], "b": [(name, (4,), (name,), 3)]}
        )
    )
    assert found.count("<script") == 1
