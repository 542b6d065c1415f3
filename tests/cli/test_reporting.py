"""--report of the verbs that have it: the page lies where it was asked for, and a wrong place is told before any work."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.cli import main
from weightsmith.report import check_report

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up.weight", "model.layers.1.mlp.up.weight")


@pytest.fixture
def models(tmp_path):
    random = np.random.default_rng(0)
    base = {n: random.normal(size=(8, 8)).astype(np.float32) for n in NAMES}
    for label in ("base", "one", "two"):
        moved = {
            n: x if label == "base" else x + random.normal(size=(8, 8)).astype(np.float32) / 10 for n, x in base.items()
        }
        (tmp_path / label).mkdir()
        save_file(moved, tmp_path / label / "model.safetensors")
    return tmp_path


def commands(at):
    given = ["--base", f"{at}/base", "--model", f"{at}/one", "--model", f"{at}/two"]
    return {
        "compare": (["compare", f"{at}/base", f"{at}/one"], 1, "base beside one"),
        "merge": (["merge", "ties", *given, "--out", f"{at}/merged"], 0, "How far the result lies from"),
        "localize": (["localize", *given], 0, "Where 2 tasks live in base"),
        "pack": (["pack", "tall_masks", *given, "--out", f"{at}/packed"], 0, "packed: 2 tasks in one bundle"),
    }


@pytest.mark.parametrize("verb", ["compare", "merge", "localize", "pack"])
def test_the_page_lies_where_it_was_asked_for(models, capsys, verb):
    command, code, text = commands(models)[verb]
    path = models / "report.html"
    assert main([*command, "--quiet", "--report", str(path)]) == code
    assert f"report: {path}" in capsys.readouterr().err
    found = path.read_text(encoding="utf-8")
    assert text in found
    assert "<svg" in found
    check_report(path)  # known as a report, so that the next may replace it


@pytest.mark.parametrize("verb", ["compare", "merge", "localize", "pack"])
def test_a_wrong_place_is_told_before_any_work(models, capsys, verb):
    command, _, _ = commands(models)[verb]
    there = {p.name for p in models.iterdir()}
    (models / "notes.html").write_text("mine", encoding="utf-8")
    assert main([*command, "--quiet", "--report", str(models / "notes.html")]) == 2
    assert "an older report" in capsys.readouterr().err
    assert {p.name for p in models.iterdir()} == {*there, "notes.html"}
    assert (models / "notes.html").read_text(encoding="utf-8") == "mine"


def test_a_recipe_of_several_documents_has_a_report_too(models):
    recipe = models / "recipe.yaml"
    model = "  - model: {}\n    parameters: {{weight: 1}}\n"
    step = "merge_method: linear\nmodels:\n" + 2 * model
    first = "name: half\n" + step.format(models / "base", models / "one")
    recipe.write_text(first + "---\n" + step.format("half", models / "two"), encoding="utf-8")
    path = models / "report.html"
    assert main(["merge", str(recipe), str(models / "merged"), "--quiet", "--report", str(path)]) == 0
    assert "Files and digests" in path.read_text(encoding="utf-8")


def test_a_plan_and_a_dry_run_write_no_page(models):
    command, _, _ = commands(models)["merge"]
    assert main([*command, "--quiet", "--dry-run", "--report", str(models / "report.html")]) == 0
    assert not (models / "report.html").exists()
