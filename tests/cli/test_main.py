"""The command line as a whole: help, exit codes, what goes to which stream."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest

import weightsmith
from weightsmith.cli import VERBS, main
from weightsmith.merge import METHODS


def python(*words, **given):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60, **given)


def test_help_shows_verbs_exit_codes_and_an_example(command):
    ran = command("--help")
    assert ran.code == 0
    assert ran.err == ""
    for verb, text in VERBS.items():
        assert re.search(rf"^  {verb} +{text[:30]}", ran.out, re.M), f"{verb} is not in --help"
    for code in ("0", "1", "2", "3", "4", "5", "130"):
        assert re.search(rf"^ +{code} +\w", ran.out, re.M), f"exit code {code} is not in --help"
    assert re.search(r"Example:\n +weightsmith merge ties --base", ran.out)
    assert command("-h").out == ran.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_ends_with_an_example_and_the_python_twin(command, verb):
    ran = command(verb, "--help")
    assert ran.code == 0, ran
    end = ran.out[ran.out.index("Example") :].split("Python twin: ")
    assert f"weightsmith {verb}" in end[0]
    (name,) = re.match(r"weightsmith\.(\w+)", end[1]).groups()
    assert hasattr(weightsmith, name), f"--help of {verb} names weightsmith.{name}, which is not there"
    assert end[1].count("\n") <= 2, f"something follows the example:\n{ran.out}"


@pytest.mark.parametrize("verb", ["merge", "plan"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_help_of_every_method(command, verb, method):
    ran = command(verb, method.name, "--help")
    assert ran.code == 0
    text = " ".join(ran.out.split())
    assert method.summary in text
    example = method.example.replace(" merge ", f" {verb} ", 1)
    assert example in text
    assert text.index(example) > text.index("Options:")
    assert "Python twin: weightsmith." in text
    for parameter in method.parameters.values():
        option = "--" + parameter.name.rstrip("_").replace("_", "-")
        assert f"{option} " in text, f"{method.name} --help lacks {option}"
        assert " ".join(parameter.help.split())[:40] in text
        if parameter.default is not None:
            assert f"[default: {parameter.default}]" in text
    assert ("--base" in text) == method.has_base


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_examples_of_methods_are_valid_commands(family, tmp_path, command, method):
    words = method.example.split()[1:]
    named = [word for option, word in pairwise(words) if option in ("--base", "--model")]
    folders = {"OUT": tmp_path / "out"}
    for i, name in enumerate(dict.fromkeys(named)):  # the base comes first where there is one
        folders[name] = tmp_path / f"model{i}"
        shutil.copytree(family[min(i, 2)], folders[name])
    words = [str(folders.get(w, w)) for w in words]
    ran = command(*words, "--quiet")
    assert ran.code == 0, ran
    assert command("verify", tmp_path / "out", "--quiet").code == 0


def test_version(command):
    assert command("--version").out.startswith("weightsmith, version ")


def test_help_imports_neither_torch_nor_numba():
    code = (
        "import sys\nfrom weightsmith.cli import main\n"
        "code = main(['--help'])\n"
        "print(sorted({'torch', 'numba', 'numpy', 'transformers', 'rich'} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    ran = python("-c", code)
    assert ran.returncode == 0, ran.stderr
    loaded = ran.stderr.strip()
    assert "torch" not in loaded
    assert "numba" not in loaded


def test_a_merge_imports_no_torch(family, tmp_path):
    code = "import sys\nfrom weightsmith.cli import main\nmain(sys.argv[1:])\nassert 'torch' not in sys.modules\n"
    words = ["merge", "linear", "--model", family[1], "--model", family[2], "--out", tmp_path / "out"]
    ran = python("-c", code, *words)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "edit.json").is_file()


def test_the_module_runs_as_a_program(family, tmp_path):
    words = ["-m", "weightsmith", "merge", "ties", "--base", family[0], "--model", family[1], "--model", family[2]]
    ran = python(*words, "--out", tmp_path / "out")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{tmp_path / 'out'}: 9 tensors merged by ties, 0 copied, 0 dropped;")
    assert ran.stdout.count("\n") == 1
    assert python("-m", "weightsmith", "verify", tmp_path / "out", "--quiet").returncode == 0
    (tmp_path / "out" / "more").write_text("x")
    assert python("-m", "weightsmith", "verify", tmp_path / "out", "--quiet").returncode == 1
    ran = python(*words, "--out", tmp_path / "out")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("weightsmith: --out '")
    (family[2] / "model.safetensors").write_bytes(b"x")
    ran = python(*words, "--out", tmp_path / "new")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["merg"], "no verb 'merg'; did you mean 'merge'"),
        (["veriphy", "x"], "did you mean 'verify'"),
        (["quantize"], "valid names: merge, plan"),
        (["merge", "tise"], "'tise' is neither a method nor a recipe file. Did you mean 'ties'"),
        (["plan", "slurp"], "did you mean 'slerp'"),
        (["methods", "tise"], "unknown method 'tise'"),
        (["merge", "ties", "--densty", "0.2"], "--densty"),
        (["merge", "ties", "--densty=0.2"], "--density"),
        (["merge", "ties", "--out"], "--out"),
        (["merge", "ties", "--model", "x"], "Missing option '--out'"),
        (["merge", "ties", "--out", "o"], "no models"),
        (["merge", "ties", "--base", "b", "--model", "m", "--out", "o", "--memory", "lots"], "got 'lots'"),
        (["merge", "ties", "--base", "b", "--model", "m", "--out", "o", "--threads", "0"], "--threads"),
        (["merge", "ties", "--base", "b", "--model", "m", "--out", "o", "--dtype", "int8"], "--dtype"),
        (["merge", "ties", "--base", "b", "--model", "m", "--out", "o", "--shard-size", "-1"], "got '-1'"),
        (["merge", "ties", "--base", "b", "--model", "m", "--out", "o", "extra"], "extra"),
        (["merge", "linear", "--base", "b", "--model", "m", "--out", "o"], "--base"),
        (["merge", "no-such.yaml", "out"], "no such file"),
        (["merge", "--verbose"], "--verbose"),
        (["verify"], "OUT"),
        (["verify", "nowhere"], "a folder with edit.json"),
        ([""], "no verb ''"),
        (["merge", "", "out"], "got a folder"),
        (["merge", "ties", "--\x1b[31m"], "--\\x1b[31m"),
        (["merge", "a\x1b[31m"], "a\\x1b[31m"),
        (["a\x1b[31m"], "a\\x1b[31m"),
    ],
    ids=lambda x: " ".join(x).replace("\x1b", "ESC") if isinstance(x, list) else "",
)  # fmt: skip
def test_wrong_use(command, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    ran = command(*words)
    assert ran.code == 2, ran
    assert told.lower() in ran.err.lower(), ran.err
    assert ran.out == ""
    assert ran.err.startswith("weightsmith: ")
    assert "\x1b" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["merge"], ["plan"]])
def test_a_verb_without_words_shows_its_help(command, words):
    ran = command(*words)
    assert "Usage: weightsmith" in ran.out + ran.err
    assert ran.code in (0, 2)


def errors(family, tmp_path):
    """Words of every verb that fail, with the exit code."""
    (family[2] / "model.safetensors").write_bytes(b"x")
    base, good, bad = family
    (tmp_path / "recipe.yaml").write_text("method: tise\nmodels: [a, a]\n")
    ties = ["ties", "--base", base, "--model", good, "--json"]
    return [
        (["merge", *ties, "--model", bad, "--out", tmp_path / "out"], 3),
        (["merge", *ties, "--density", "2", "--out", tmp_path / "out"], 2),
        (["merge", *ties, "--memory", "1MB", "--out", tmp_path / "out"], 4),
        (["merge", *ties, "--no-such", "1"], 2),
        (["merge", tmp_path / "recipe.yaml", tmp_path / "out", "--json"], 2),
        (["merge", "tise", "--json"], 2),
        (["plan", *ties, "--model", bad], 3),
        (["methods", "tise", "--json"], 2),
        (["verify", base, "--json"], 2),
        (["inspect", bad, "--json"], 3),
        (["compare", base, bad, "--json"], 3),
        (["nothing", "--json"], 2),
    ]


@pytest.mark.parametrize("which", range(12))
def test_errors_are_json_where_asked_for(family, tmp_path, command, which):
    words, code = errors(family, tmp_path)[which]
    ran = command(*words)
    assert ran.code == code, ran
    told = json.loads(ran.out)
    assert told["exit_code"] == code
    assert told["error"]
    assert told["message"] in ran.err.replace("weightsmith: ", "", 1)


def test_results_are_json_where_asked_for(family, tmp_path, command):
    base, a, b = map(str, family)
    ties = ["ties", "--base", base, "--model", a, "--model", b, "--json", "--quiet"]
    planned = command("plan", *ties)
    assert json.loads(planned.out)["merged"] == 9
    merged = command("merge", *ties, "--out", tmp_path / "out")
    told = json.loads(merged.out)
    assert told["out"] == str(tmp_path / "out")
    assert told["record"] == json.loads((tmp_path / "out" / "edit.json").read_text())
    assert json.loads(command("verify", tmp_path / "out", "--json", "--quiet").out)["is_sound"] is True
    assert {m["name"] for m in json.loads(command("methods", "--json").out)} == {m.name for m in METHODS}
    for words in (["inspect", a], ["compare", base, a]):
        ran = command(*words, "--json", "--quiet")
        assert isinstance(json.loads(ran.out), dict), words


def test_a_fault_of_ours_is_exit_5(command, monkeypatch, family, tmp_path):
    from weightsmith.cli import making

    def broken(*_, **__):
        raise KeyError("made up")

    monkeypatch.setattr(making, "make_plan", broken)
    ran = command("merge", "linear", "--model", family[1], "--out", tmp_path / "out", "--json")
    assert ran.code == 5
    assert "weightsmith: KeyError: 'made up'. This is a fault of weightsmith" in ran.err
    assert json.loads(ran.out)["exit_code"] == 5


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/x"), MemoryError(), KeyboardInterrupt()])
def test_errors_of_the_machine(command, monkeypatch, family, tmp_path, error):
    from weightsmith.cli import making

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(making, "execute", broken)
    ran = command("merge", "linear", "--model", family[1], "--out", tmp_path / "out")
    assert ran.code == (130 if isinstance(error, KeyboardInterrupt) else 4)
    assert ran.out == ""


def test_main_is_usable_from_a_thread(family, tmp_path):
    import threading

    codes = []
    words = ["merge", "linear", "--model", str(family[1]), "--out", str(tmp_path / "out"), "--quiet"]
    thread = threading.Thread(target=lambda: codes.append(main(words)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_closed_pipe_is_no_traceback():
    ran = subprocess.run(
        f"{sys.executable} -m weightsmith merge --help | head -c 10; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
