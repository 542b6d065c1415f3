"""`weightsmith localize`, `restore` and `lineage` on the command line."""

from __future__ import annotations

import json

import pytest

import weightsmith


@pytest.fixture
def words(family):
    base, a, b = family
    return ["localize", "--base", base, "--model", f"first={a}", "--model", b]


def test_json_is_the_python_result(command, words, family):
    ran = command(*words, "--lambda", "0.3", "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    found = weightsmith.localize(family[0], {"first": family[1], "b": family[2]}, lambdas=0.3)
    assert json.loads(ran.out) == json.loads(json.dumps(found.to_json()))


def test_text_shows_tasks_layers_and_kinds(command, words):
    ran = command(*words, "--quiet", "--top", "2")
    assert ran.code == 0
    assert "2 tasks; masks by tall_masks on task_arithmetic" in ran.out
    for word in ("catastrophic", "selfish", "general", "first", "layer 2", "attention", "finetuned"):
        assert word in ran.out


def test_parameters_of_method_and_masks(command, words):
    ran = command(*words, "--method", "ties", "--parameter", "density=0.5", "--trim", "0", "--json", "--quiet")
    found = json.loads(ran.out)
    assert found["parameters"]["method"]["density"] == 0.5
    assert found["trim"] is None
    ran = command(*words, "--by", "magnitude", "--selection", "density=0.25", "--json", "--quiet")
    assert json.loads(ran.out)["model"]["density"] == pytest.approx([0.25, 0.25], abs=1e-3)


def test_masks_then_restore_then_look(command, words, family, tmp_path):
    assert command(*words, "--masks", tmp_path / "masks", "--quiet").code == 0
    mask = tmp_path / "masks" / "first"
    ran = command("restore", family[1], "--from", family[0], "--mask", mask, "--out", tmp_path / "out", "--quiet")
    assert ran.code == 0
    assert "weights selected" in ran.out
    assert command("verify", tmp_path / "out", "--quiet").code == 0
    ran = command("inspect", mask, "--json", "--quiet")
    assert json.loads(ran.out)["total"]["dtypes"] == ["BOOL"]


def test_dry_runs_write_nothing(command, words, family, tmp_path):
    ran = command(*words, "--masks", tmp_path / "masks", "--dry-run")
    assert ran.code == 0
    assert "masks: " in ran.out
    found = json.loads(command(*words, "--masks", tmp_path / "masks", "--dry-run", "--json").out)
    assert found["masks"] == [str(tmp_path / "masks" / n) for n in ("first", "b")]
    assert not (tmp_path / "masks").exists()


def test_the_report_is_one_file(command, words, tmp_path):
    ran = command(*words, "--quiet", "--report", tmp_path / "report.html")
    assert ran.code == 0
    assert "report: " in ran.err
    assert "first" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_lineage(command, family):
    ran = command("lineage", family[0], family[1], "--quiet")
    assert ran.code == 0
    assert ran.out.startswith("finetuned: ")
    found = json.loads(command("lineage", family[0], family[1], "--json", "--quiet").out)
    assert found["verdict"] == "finetuned"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lambda", "much"], "--lambda; expected numbers"),
        (["--parameter", "density"], "expected KEY=VALUE"),
        (["--parameter", "density=0.1"], "unknown parameter 'density'"),
        (["--method", "tise"], "Did you mean 'ties'"),
        (["--by", "principal"], "Pass masks (--masks OUT)"),
        (["--validation", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_words(command, words, more, message):
    ran = command(*words, *more)
    assert ran.code in (2, 3)
    assert message in ran.err
    assert ran.out == ""
