"""`weightsmith merge` and `weightsmith plan`: the same words, the same plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from weightsmith import merge
from weightsmith.cli.tables import counted, grouped, size
from weightsmith.errors import ArgumentError


@pytest.fixture
def words(family):
    base, a, b = map(str, family)
    return ["ties", "--base", base, "--model", a, "--model", b]


def test_plan_is_merge_with_dry_run(words, tmp_path, command, content):
    before = content(tmp_path)
    for more in (
        [],
        ["--json"],
        ["--density", "0.5", "--copy", "*.norm.*", "--dtype", "bfloat16", "--shard-size", "1KB"],
    ):
        out = ["--out", str(tmp_path / "out")]
        planned = command("plan", *words, *more, *out)
        dry = command("merge", *words, *more, *out, "--dry-run")
        assert planned == dry
        assert (planned.code, planned.err) == (0, "")
        assert command("plan", *words, *more) == planned
    assert content(tmp_path) == before


def test_plan_and_dry_run_check_the_output_path(words, family, command):
    for verb, more in (("plan", []), ("merge", ["--dry-run"])):
        ran = command(verb, *words, *more, "--out", family[0])
        assert ran.code == 2, f"{verb}: {ran}"
        assert "inputs are never changed" in ran.err


def test_plan_text_says_what_is_not_merged(words, family, command, save_arrays, make_arrays):
    arrays = {**make_arrays(1, make_arrays()), "extra": np.ones(1, "float32")}
    (family[1] / "model.safetensors").unlink()
    save_arrays(family[1], arrays)
    ran = command("plan", *words, "--copy", "*.norm.*", "--drop", "ext*")
    assert "ties: Add task vectors" in ran.out
    assert "density 0.2" in ran.out
    assert "  copied: 1 tensor\n    model.norm.weight: copy *.norm.*\n" in ran.out
    assert "  dropped: 1 tensor\n    extra of input 1: drop ext*\n" in ran.out
    assert "in 4 passes" in ran.out
    assert "peak memory" in ran.out
    assert all(f"input {i}: {f}" in ran.out for i, f in enumerate(family))


def test_long_lists_are_cut_but_not_in_json(tmp_path, save_arrays, command):
    arrays = {f"n{i}": np.arange(2) for i in range(30)} | {"w": np.ones(2, "float32")}
    folders = [save_arrays(tmp_path / n, arrays) for n in "ab"]
    words = ["plan", "linear", "--model", folders[0], "--model", folders[1]]
    ran = command(*words)
    assert "n19: I64 is not averaged" in ran.out
    assert "n20:" not in ran.out
    assert "... and 10 more (--json lists all)" in ran.out
    assert len(json.loads(command(*words, "--json").out)["copied"]) == 30


def test_options_and_python_give_the_same_bytes(words, family, tmp_path, command, content):
    options = ["--density", "0.3", "--lambda", "0.7", "--merge", "sum", "--scope", "tensor", "--copy", "*.norm.*"]
    options += ["--dtype", "float16", "--shard-size", "2KB", "--digest-inputs", "--threads", "2", "--memory", "300MB"]
    ran = command("merge", *words, *options, "--out", tmp_path / "out")
    assert ran.code == 0, ran
    first = content(tmp_path / "out")
    merge(
        "ties", base=family[0], models=family[1:], out=tmp_path / "out", force=True, density=0.3, lambda_=0.7,
        merge="sum", scope="tensor", copy=["*.norm.*"], dtype="float16", shard_size=2000, digest_inputs=True,
    )  # fmt: skip
    assert content(tmp_path / "out") == first


def test_coefficients_are_read(family, tmp_path, command, load_arrays):
    words = ["merge", "linear", "--model", family[1], "--model", family[2], "--coefficients", "3,1"]
    assert command(*words, "--out", tmp_path / "out").code == 0
    a, b, found = (load_arrays(f) for f in (family[1], family[2], tmp_path / "out"))
    np.testing.assert_allclose(
        found["model.norm.weight"], 0.75 * a["model.norm.weight"] + 0.25 * b["model.norm.weight"], rtol=1e-6
    )
    for bad in ("3", "3,x", "3,1,1", "", "3;1", "nan,1"):
        ran = command(*words[:-1], bad, "--out", tmp_path / "bad")
        assert ran.code == 2, f"--coefficients {bad}: {ran}"
        assert "coefficients" in ran.err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--density", "0"),
        ("--density", "1.5"),
        ("--density", "x"),
        ("--density", "nan"),
        ("--scope", "row"),
        ("--lambda", "inf"),
    ],
)
def test_bad_values_of_options(words, tmp_path, command, option, value):
    ran = command("merge", *words, option, value, "--out", tmp_path / "out")
    assert ran.code == 2, ran
    assert "expected" in ran.err
    assert f"merge ties: {option}; expected" in ran.err
    assert "got " + {"0": "0.0", "x": "'x'", "row": "'row'"}.get(value, value) in ran.err
    assert not (tmp_path / "out").exists()


def test_each_door_spells_parameters_its_way(family, tmp_path, command):
    base, a, b = map(str, family)
    words = ["plan", "ties", "--base", base, "--model", a, "--model", b]
    for option, name in (("--lambda", "lambda_"), ("--density", "density")):
        key = name.rstrip("_")
        assert f"ties: {option}; expected a" in command(*words, option, "x").err
        (tmp_path / "r.yaml").write_text(f"method: ties\nbase: {base}\nmodels: [{a}]\nparameters: {{{key}: x}}\n")
        assert f"line 4: merge ties: {key}; expected a" in command("plan", tmp_path / "r.yaml").err
        with pytest.raises(ArgumentError, match=f"ties: {name}; expected a"):
            merge("ties", base=base, models=[a], out=tmp_path / "out", **{name: "x"})
    assert "--drop-top" in command(*words[:1], "breadcrumbs", *words[2:], "--drop-top", "2").err
    assert (
        "--coefficients; expected 2, one per model; got 1"
        in command(*words[:1], "dare", *words[2:], "--coefficients", "1").err
    )
    assert "--memory; expected a whole number of bytes" in command(*words, "--memory", "5XB").err
    assert "--shard-size; expected a whole number of bytes" in command(*words, "--shard-size", "5XB").err
    assert "Give --base MODEL" in command("plan", "ties", "--model", a).err


def test_options_and_models_are_told_together(family, command):
    base, a, _ = map(str, family)
    words = ["--base", base, "--model", a, "--model", "gone", "--lambda", "x", "--density", "2", "--copy", "q*"]
    ran = command("plan", "ties", *words)
    assert ran.code == 2
    assert "4 faults" in ran.err
    for told in ("'gone' does not exist", "--lambda; expected", "--density; expected", "copy pattern 'q*' matches no"):
        assert told in ran.err


def test_recipes_with_relative_paths(family, tmp_path, command, monkeypatch):
    monkeypatch.chdir(family[0].parent)
    Path("recipe.yaml").write_text("method: ties\nbase: base\nmodels: [a, b]\nparameters: {density: 0.3}\n")
    planned = command("plan", "recipe.yaml")
    assert planned == command("merge", "recipe.yaml", "../out", "--dry-run")
    ran = command("merge", "recipe.yaml", "../out")
    assert ran.code == 0, ran
    assert json.loads((tmp_path / "out" / "edit.json").read_text())["parameters"]["density"] == 0.3
    assert command("merge", "recipe.yaml", "../out").code == 2
    assert command("merge", "recipe.yaml", "../out", "--force", "--quiet").code == 0
    assert command("verify", "../out").code == 0
    assert command("merge", "recipe.yaml").code == 2
    assert command("merge", "recipe.yaml", "../out", "--density", "0.2", "--force").code == 2


def test_a_recipe_with_faults_tells_all_by_line(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("method: tise\nmodels: [a, a]\nseeed: 1\n")
    for verb in ("plan", "merge"):
        ran = command(verb, "recipe.yaml", "out")
        assert ran.code == 2
        assert "recipe recipe.yaml: 4 faults" in ran.err
        for part in (
            "line 1: unknown method 'tise'; did you mean 'ties'",
            "line 2: model 2",
            "line 2: model 'a'",
            "line 3: recipe: unknown key 'seeed'",
        ):
            assert part in ran.err, ran.err


def test_a_folder_is_no_recipe(family, command):
    ran = command("merge", family[0], "out")
    assert ran.code == 2
    assert "expected a file; got a folder" in ran.err


def test_a_recipe_named_like_a_method_is_reached_by_its_path(family, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("linear").write_text(f"method: linear\nmodels: ['{family[1]}', '{family[2]}']\n")
    assert command("merge", "./linear", "out", "--quiet").code == 0


def test_only_results_go_to_standard_output(words, family, tmp_path, command):
    # An index without total_size makes a note.
    (family[0] / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    ran = command("merge", *words, "--out", tmp_path / "out")
    assert ran.out.count("\n") == 1
    assert ran.err.startswith("note: ")
    assert "custom code" in ran.err
    ran = command("merge", *words, "--out", tmp_path / "out", "--force", "--json")
    json.loads(ran.out)


def test_quiet_shows_no_progress(words, tmp_path, command, monkeypatch):
    from weightsmith.cli import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    ran = command("merge", *words, "--out", tmp_path / "out")
    assert ran.code == 0
    assert "merge: 100 %" in ran.err
    assert "measure: " in ran.err
    assert command("merge", *words, "--out", tmp_path / "out", "--force", "--quiet").err == ""


def test_a_terminal_gets_a_bar_that_leaves_the_result(words, tmp_path, command, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = command("merge", *words, "--out", tmp_path / "out")
    assert ran.code == 0
    assert ran.out.count("\n") == 1


def test_control_characters_never_reach_the_terminal(tmp_path, save_raw, command):
    name = "a\x1b]52;c;ZXZpbA==\x07b\u202e"
    tensors = {name: ("F32", (2,), bytes(8)), "w": ("F32", (2,), bytes(8))}
    folders = [save_raw(tmp_path / n / "model.safetensors", tensors).parent for n in "ab"]
    other = save_raw(tmp_path / "c\x1b[31m" / "model.safetensors", {"w": ("F32", (2,), bytes(8))}).parent
    for words in (
        ["merge", "linear", "--model", folders[0], "--model", folders[1], "--out", tmp_path / "out"],
        ["plan", "linear", "--model", folders[0], "--model", folders[1]],
        ["plan", "linear", "--model", other, "--model", folders[1]],
        ["plan", "linear", "--model", other, "--model", folders[1], "--drop", "a*"],
        ["plan", "linear", "--model", other, "--model", tmp_path / "x\x1b[31m"],
        ["merge", "linear", "--model", other, "--out", tmp_path / "o\x1b[31m"],
        ["merge", "linear", "--model", other, "--out", tmp_path / "out", "--copy", "\x1b[31m"],
        ["inspect", folders[0]],
        ["compare", folders[0], other],
    ):
        ran = command(*words)
        for char in "\x1b\x07\u202e":
            assert char not in ran.out + ran.err, f"{words[:2]} shows a control character"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_199_000_000, "2.2 GB"), (5 * 10**12, "5.0 TB")],
)
def test_sizes_for_people(count, text):
    assert size(count) == text


def test_words_follow_their_number():
    assert [counted(n, "pass") for n in (0, 1, 2)] == ["0 passes", "1 pass", "2 passes"]


def test_many_groups_are_cut_with_their_number():
    rows = [(f"layers.{i}.{part}", "4") for part in "abc" for i in range(2)]
    assert grouped(rows, 1) == [("layers.*.a", "2", "4"), ("... (--json lists all)", "4", "")]
    assert grouped(rows, 3)[-1] == ("layers.*.c", "2", "4")
    assert grouped([]) == []
