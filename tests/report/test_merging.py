from pathlib import Path

import pytest

from weightsmith.compare import Comparison, Row
from weightsmith.distance import Distance
from weightsmith.report.merging import merge_page
from weightsmith.report.page import render
from weightsmith.run import Result

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def result():
    record = {
        "weightsmith": "0.1",
        "versions": {"python": "3"},
        "recipe": "merge_method: ties\n# " + HOSTILE + "\n",
        "method": "ties",
        "parameters": {"density": 0.2},
        "inputs": [
            {
                "reference": HOSTILE,
                "revision": None,
                "files": [{"file": "m.safetensors", "bytes": 12, "header_sha256": "ab12"}],
            },
            {
                "reference": "two",
                "revision": None,
                "files": [{"file": "m.safetensors", "bytes": 12, "header_sha256": "cd", "sha256": "ef56"}],
            },
        ],
        "outputs": [{"file": "model.safetensors", "bytes": 3456, "sha256": "0123abc"}],
        "tensors": {
            "merged": 3,
            "copied": [{"name": HOSTILE, "reason": "not a number"}],
            "dropped": [{"model": 1, "name": "head", "reason": "asked"}],
        },
        "notes": ["a note"],
        "record_sha256": "feed",
    }
    return Result(Path("/models/merged"), record, 2.0, 3_000_000, 1_000_000)


def test_recipe_files_and_digests_are_told(result):
    found = render(merge_page(result))
    for text in (
        "merge_method: ties",
        "ab12",
        "ef56",
        "0123abc",
        "feed",
        "3,456",
        "a note",
        "not a number",
        "2.0 MB in a second",
    ):
        assert text in found
    assert found.count("<script") == 1


def test_with_a_comparison_it_says_how_far_the_result_moved(result):
    moved = Distance(4, 4, 0, 4, 0, 0, 0.5, (1.0, 0.25, 1.0, 1.0, 0.5))
    rows = (Row("model.layers.0.mlp.w", ((2, 2), (2, 2)), ("F32", "F32"), moved),)
    page = merge_page(result, Comparison("/models/base", "/models/merged", (), (), rows, moved))
    assert {t.title: t.value for t in page.tiles}["Moved"] == "50.0 %"
    assert [s.title for s in page.sections][:3] == ["Difference by depth", "How the tensors spread", "Tensors"]


def test_without_one_it_does_not(result):
    page = merge_page(result)
    assert [s.title for s in page.sections] == ["Recipe", "Files and digests", "Tensors that were not merged", "Notes"]
