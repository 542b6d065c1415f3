"""pack, unpack, add, remove and ls on the command line: from folders to one bundle and back with two commands."""

import json

import pytest


@pytest.fixture
def words(family, tmp_path):
    base, a, b = map(str, family)
    return ["--base", base, "--model", f"math={a}", "--model", b, "--out", str(tmp_path / "bundle"), "--quiet"]


def test_there_and_back(command, words, family, tmp_path, load_arrays):
    packed = command("pack", "lossless", *words)
    assert packed.code == 0, packed.err
    assert "2 tasks packed" in packed.out
    unpacked = command("unpack", tmp_path / "bundle", tmp_path / "all", "--quiet")
    assert unpacked.code == 0, unpacked.err
    for task, folder in (("math", family[1]), ("b", family[2])):
        found, wanted = load_arrays(tmp_path / "all" / task), load_arrays(folder)
        assert {n: x.tobytes() for n, x in found.items()} == {n: x.tobytes() for n, x in wanted.items()}
        assert (tmp_path / "all" / task / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert command("verify", tmp_path / "bundle", "--quiet").code == 0
    assert command("compare", f"{tmp_path}/bundle#math", family[1], "--quiet").code == 0
    assert command("inspect", f"{tmp_path}/bundle#b", "--base", family[0], "--quiet").code == 0


def test_json_everywhere(command, words, family, tmp_path):
    bundle = tmp_path / "bundle"
    plan = json.loads(command("pack", "compeft", *words, "--density", "0.3", "--dry-run", "--json").out)
    assert plan["parameters"] == {"density": 0.3, "alpha": None, "scope": "model"}
    assert plan["tasks"]["math"]["encoded"] == 9
    assert not bundle.exists()
    done = json.loads(command("pack", "compeft", *words, "--density", "0.3", "--json").out)
    assert done["tasks"] == ["math", "b"]
    assert set(done["storage"]["tasks"]) == {"math", "b"}
    added = json.loads(
        command("add", bundle, "--model", f"c={family[1]}", "--set", "density=0.5", "--quiet", "--json").out
    )
    assert added["tasks"] == ["c"]
    listed = json.loads(command("ls", bundle, "--json").out)
    assert listed["tasks"] == ["math", "b", "c"]
    assert listed["storage"]["tasks"]["c"]["pieces_bytes"] > 0
    told = json.loads(command("unpack", bundle, tmp_path / "all", "--dry-run", "--json").out)
    assert told["c"]["out"] == str(tmp_path / "all" / "c")
    assert json.loads(command("remove", bundle, "b", "--dry-run", "--json").out)["task"] == "b"
    assert json.loads(command("remove", bundle, "b", "--json").out)["task"] == "b"
    assert json.loads(command("ls", bundle, "--json").out)["tasks"] == ["math", "c"]
    one = json.loads(command("unpack", f"{bundle}#c", tmp_path / "c", "--quiet", "--json").out)
    assert one["folders"] == {"c": str(tmp_path / "c")}
    assert json.loads(command("verify", bundle, "--quiet", "--json").out)["is_sound"]


def test_text_for_people(command, words, tmp_path):
    bundle = tmp_path / "bundle"
    shown = command("pack", "tall_masks", *words, "--dry-run")
    assert "math" in shown.out
    assert "9 tensors encoded" in shown.out
    assert command("pack", "tall_masks", *words, "--mask-lambda", "0.3,0.5").code == 0
    listed = command("ls", bundle)
    assert "bits per weight" in listed.out
    assert "by the formula" in listed.out
    assert "would remove" in command("remove", bundle, "math", "--dry-run").out
    assert "9 tensors" in command("unpack", f"{bundle}#math", tmp_path / "x", "--dry-run").out


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (("pack", "compefd"), 2, "Did you mean 'compeft'"),
        (("pack", "compeft", "--model", "a"), 2, "--base"),
        (("pack",), 2, "Missing option '--base'"),
        (("unpack", "nothing", "out"), 2, "does not exist"),
        (("ls", "nothing"), 2, "bundle.json"),
        (("remove", "nothing", "a"), 2, "bundle.json"),
        (("add", "nothing", "--model", "a"), 2, "bundle.json"),
    ],
)
def test_wrong_use(command, given, code, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = command(*given)
    assert ran.code == code
    assert told in ran.err


def test_force_replaces_a_bundle_and_nothing_else(command, words, tmp_path):
    assert command("pack", "compeft", *words).code == 0
    again = command("pack", "lossless", *words)
    assert again.code == 2
    assert "--force" in again.err
    assert command("pack", "lossless", *words, "--force").code == 0
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["encoding"] == "lossless"
    (tmp_path / "bundle" / "bundle.json").unlink()
    ran = command("pack", "compeft", *words, "--force")
    assert ran.code == 2
    assert "bundle.json" in ran.err


def test_a_parameter_that_there_is_not(command, words, family, tmp_path):
    command("pack", "compeft", *words)
    ran = command("add", tmp_path / "bundle", "--model", f"c={family[1]}", "--set", "densty=0.5")
    assert ran.code == 2
    assert "density" in ran.err
    ran = command("add", tmp_path / "bundle", "--model", f"c={family[1]}", "--set", "density=5")
    assert ran.code == 2
    assert "(0, 1]" in ran.err


def test_damage_is_told_without_a_traceback(command, words, tmp_path):
    command("pack", "compeft", *words)
    part = next((tmp_path / "bundle" / "tasks").glob("*-math/part.safetensors"))
    part.write_bytes(part.read_bytes()[:-20])
    ran = command("unpack", f"{tmp_path}/bundle#math", tmp_path / "out", "--quiet")
    assert ran.code == 3
    assert "part.safetensors" in ran.err
    assert command("unpack", f"{tmp_path}/bundle#b", tmp_path / "out", "--quiet").code == 0
    assert command("verify", tmp_path / "bundle", "--quiet").code == 1


@pytest.mark.parametrize("wanted", [("--min-fidelity", "0.9"), ("--bits-per-weight", "40"), ("--budget", "30KB")])
def test_without_an_encoding(command, words, wanted, tmp_path):
    ran = command("pack", *wanted, *words, "--json")
    assert ran.code == 0, ran.err
    assert "chosen:" in ran.err
    content = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert content["encoding"] == "chosen"
    assert set(content["chosen"]["settings"]) == {"math", "b"}
    assert command("verify", tmp_path / "bundle", "--quiet").code == 0


@pytest.mark.parametrize("verb", ["pack", "unpack", "add", "remove", "ls"])
def test_help_has_an_example_and_the_python_twin(command, verb):
    text = command(verb, "--help").out
    assert f"weightsmith {verb} " in text.partition("Example:")[2]
    assert "Python twin:" in text


def test_progress_begins_anew_in_each_stage(monkeypatch, capsys):
    from weightsmith.cli import progress

    times = iter([0.0, 20.0, 40.0, 70.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    show = progress._lines()
    show("try", 2_000_000_000, 4_000_000_000)
    show("try", 4_000_000_000, 4_000_000_000)
    show("pack", 3_000_000_000, 9_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "try: 50 %, 0.10 GB/s, 20 s left",
        "try: 100 %, 0.10 GB/s, 0 s left",
        "pack: 33 %, 0.10 GB/s, 60 s left",
    ]


@pytest.mark.parametrize(
    ("verb", "own"),
    [("localize", "--top"), ("add", "--set"), ("restore", "--outside"), ("lineage", "--top"), ("compare", "--top")],
)
def test_a_verb_lists_its_own_options_first(command, verb, own):
    lines = command(verb, "--help").out.splitlines()
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options.index(own) + 1 == options.index("--memory")
    assert options[-2:] == ["--json", "--quiet"]
