"""Files beside the weights, and model cards that no name can break."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from weightsmith.checkpoint import auxiliary
from weightsmith.checkpoint.auxiliary import carry, config_with_dtype, model_card, public_name
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.errors import ArgumentError, CheckpointError, ResourceError

CONFIG = b'{\n  "vocab_size": 1E3,\n  "torch_dtype": "float32",\n  "architectures": ["X\\u00e9"]\n}\n'


def checkpoint(folder: Path | None, files: dict[str, bytes] | None = None, **changes: Any) -> Checkpoint:
    """Write files into a folder and return a checkpoint of it with one tensor."""
    for name, content in (files or {}).items():
        assert folder is not None
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    weights = (folder or Path()) / "model.safetensors"
    tensors = {"w": Entry("w", "F32", (2, 3), weights, 0, 24)}
    return replace(Checkpoint(str(folder), folder, tensors, (weights,)), **changes)


def carried(source: Checkpoint, into: Path, dtype: str | None = None, code: bool = False) -> dict[str, Any]:
    into.mkdir(exist_ok=True)
    return {record["file"]: record for record in carry(source, into, dtype=dtype, code=code)}


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def card(**changes: Any) -> str:
    given: dict[str, Any] = {
        "title": "Mine", "bases": ["org/base", "org/a"], "method": "ties", "recipe_yaml": "method: ties\n",
        "sources": [], "version": "0.1.0",
    }  # fmt: skip
    return model_card(**given | changes)


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    loaded = yaml.safe_load(text[4:].split("\n---\n", 1)[0])
    assert isinstance(loaded, dict)
    return loaded


def test_files_are_carried_byte_for_byte(tmp_path: Path) -> None:
    files = {
        "config.json": CONFIG,
        "generation_config.json": b'{"x":\t1}',
        "tokenizer.json": b"not even json\x00\xff",
        "tokenizer.model": os.urandom(3_000_000),
        "LICENSE": b"",
        "1_Pooling/config.json": b"{}",
    }
    records = carried(checkpoint(tmp_path / "in", files), tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")} == files
    assert {name: record["action"] for name, record in records.items()} == dict.fromkeys(files, "copied")
    assert {name: record["bytes"] for name, record in records.items()} == {n: len(c) for n, c in files.items()}
    assert records["config.json"] == {
        "file": "config.json", "action": "copied", "reason": "", "bytes": len(CONFIG),
    }  # fmt: skip
    json.dumps(list(records.values()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors", "weights"), ("old.BIN", "weights"), ("a.pt", "weights"), ("a.pth", "weights"),
        ("a.ckpt", "weights"), ("a.gguf", "weights"), ("a.h5", "weights"), ("a.msgpack", "weights"),
        ("a.onnx", "weights"), ("a.pkl", "weights"), ("model.safetensors.index.json", "an index of weights"),
        ("odd_name", "weights"), ("README.md", "written anew"), ("edit.json", "written anew"),
        ("adapter_config.json", "part of an adapter"), (".env", "a hidden file"),
        ("trainer_state.json", "the parent's training"), ("modeling_x.py", "custom code"),
        ("lib.so", "custom code"), ("a\x1b[31mb.json", "control characters"),
        ("2_Dense/config.json", "a folder with weights of its own"),
        ("a/b/c.json", "a folder within a folder"),
        (".git/config", "a hidden folder"), ("a/.env", "a hidden file"),
    ],
)  # fmt: skip
def test_files_that_stay_behind(tmp_path: Path, name: str, reason: str) -> None:
    beside = {"2_Dense/pytorch_model.bin": b""} if name.startswith("2_Dense") else {}
    source = checkpoint(tmp_path / "in", {name: b"{}", "kept.json": b"{}", **beside})
    source = replace(source, files=(tmp_path / "in" / "odd_name",))
    records = carried(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == ["kept.json"]
    (skipped,) = (record for record in records.values() if record["action"] == "skipped")
    assert reason in skipped["reason"]
    assert skipped["bytes"] == 0
    assert skipped["file"].isprintable()


def test_custom_code_is_copied_only_when_asked_for_and_auto_map_is_told(tmp_path: Path) -> None:
    files = {
        "config.json": b'{"auto_map": {"AutoModel": "modeling_x.X"}}',
        "modeling_x.py": b"raise SystemExit",
    }
    source = checkpoint(tmp_path / "in", files, config=json.loads(files["config.json"]))
    records = carried(source, tmp_path / "out")
    assert "auto_map names custom code, which was not copied" in records["config.json"]["reason"]
    assert files_in(tmp_path / "out") == ["config.json"]
    records = carried(source, tmp_path / "out2", code=True)
    assert files_in(tmp_path / "out2") == ["config.json", "modeling_x.py"]
    assert records["config.json"]["reason"] == ""


def test_links_are_followed_within_the_folder_and_into_the_hub_cache_only(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "123").write_bytes(b"blob")
    (tmp_path / "secret").write_bytes(b"secret")
    source = checkpoint(snapshot, {"real.json": b"real", "1_Pooling/x.txt": b"x"})
    (snapshot / "tokenizer.json").symlink_to("../../blobs/123")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/123")
    (snapshot / "inside.json").symlink_to("real.json")
    (snapshot / "outside.json").symlink_to(tmp_path / "secret")
    (snapshot / "dangling.json").symlink_to("nothing")
    (snapshot / "loop.json").symlink_to("loop.json")
    (snapshot / "folder").symlink_to(tmp_path, target_is_directory=True)
    records = carried(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == [
        "1_Pooling/config.json", "1_Pooling/x.txt", "inside.json", "real.json", "tokenizer.json",
    ]  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"blob"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    for name in ("outside.json", "dangling.json", "loop.json"):
        assert records[name]["reason"] == "a link that leads outside the folder or nowhere"
    assert records["folder/"]["reason"] == "a hidden folder or a link to a folder"


def test_large_files_and_pipes_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auxiliary, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(auxiliary, "MAX_CONFIG_BYTES", 5)
    source = checkpoint(tmp_path / "in", {"a.txt": b"x" * 10, "b.txt": b"x" * 11, "config.json": b'{"": 1}'})
    os.mkfifo(tmp_path / "in" / "pipe")
    records = carried(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == ["a.txt"]
    assert records["b.txt"]["reason"] == "11 bytes, above the limit of 10"
    assert records["config.json"]["reason"] == "7 bytes, above the limit of 5"
    assert records["pipe"]["reason"] == "not a regular file"


def test_nothing_is_carried_without_a_folder_or_onto_itself(tmp_path: Path) -> None:
    assert carry(checkpoint(None), tmp_path, dtype=None, code=False) == []
    source = checkpoint(tmp_path, {"a.txt": b"a"})
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(ArgumentError, match="is the folder of an input"):
        carry(source, tmp_path / "link", dtype=None, code=False)
    assert (tmp_path / "a.txt").read_bytes() == b"a"


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"a.txt": b"a"})
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    with pytest.raises(ResourceError, match=r"out/a\.txt cannot be written"):
        carry(source, tmp_path / "out", dtype=None, code=False)


def test_config_is_rewritten_only_where_its_dtype_disagrees(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "in", {"config.json": CONFIG})
    record = carried(source, tmp_path / "out", "BF16")["config.json"]
    after = (tmp_path / "out" / "config.json").read_bytes()
    assert after == CONFIG.replace(b"float32", b"bfloat16")
    assert record["action"] == "rewritten"
    assert record["reason"] == "dtype set to bfloat16, that of the weights"
    assert record["bytes"] == len(after)
    for dtype in ("F32", None, "F8_E4M3"):
        assert carried(source, tmp_path / "out", dtype)["config.json"]["action"] == "copied"
        assert (tmp_path / "out" / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"dtype":"float16"}', b'{"dtype":"bfloat16"}'),
        (b'{"dtype":"float16","torch_dtype":"float32"}', b'{"dtype":"bfloat16","torch_dtype":"bfloat16"}'),
        (b'{"torch_dtype": null}', b'{"torch_dtype": "bfloat16"}'),
        (b'{"torch_dtype": "torch.bfloat16"}', None),
        (b'{"hidden_size": 3}', None),
        (b'{"a": "torch_dtype", "b": ["dtype", "float32"]}', None),
        (b'{"a": "\\"dtype\\": \\"float32\\"", "dtype" : "auto"}',
         b'{"a": "\\"dtype\\": \\"float32\\"", "dtype" : "bfloat16"}'),
        (b'{"text_config": {"dtype": "float32", "x_config": {"dtype": "float16"}}, "n": 1e-05}',
         b'{"text_config": {"dtype": "bfloat16", "x_config": {"dtype": "bfloat16"}}, "n": 1e-05}'),
        (b'{"text_config": {"dtype": null}}', None),
        (b'{"quantization_config": {"dtype": "float32"}, "extra": {"dtype": "float32"}}', None),
        (b'{"list_config": [{"dtype": "float32"}], "dtype": {"x": "float32"}, "torch_dtype": 3}', None),
        (b'{"a": {}, "b": [], "dtype": "float32"}', b'{"a": {}, "b": [], "dtype": "bfloat16"}'),
        (b'{"big": 1e400, "nan": NaN, "dtype": "bfloat16"}', None),
    ],
)  # fmt: skip
def test_dtype_keys_of_configs(before: bytes, after: bytes | None) -> None:
    assert config_with_dtype(before, "bfloat16") == (before if after is None else after)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a": 1, "a": 2}',
        b'{"a": \xff}',
        b'{"a":' + b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
    ],
)
def test_damaged_configs_are_refused(tmp_path: Path, text: bytes) -> None:
    source = checkpoint(tmp_path / "in", {"config.json": text})
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        carried(source, tmp_path / "out", "BF16")


def test_a_card_says_what_was_done(tmp_path: Path) -> None:
    sources = [
        checkpoint(tmp_path / "base", reference="org/base", revision="abc123"),
        checkpoint(tmp_path / "mine"),
    ]
    text = card(sources=sources, bases=["org/base@v1", str(tmp_path / "mine")], notes=["One note."], transformers=True)
    assert front_matter(text) == {
        "base_model": ["org/base", "mine"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "weightsmith"],
    }
    assert "# Mine\n" in text
    assert "The weights of 2 checkpoints, merged with the method ties by weightsmith 0.1.0." in text
    assert "| org/base | abc123 | 1 | 6 |\n| mine |  | 1 | 6 |" in text
    assert "\n- One note.\n" in text
    assert text.endswith("## Recipe\n\n```yaml\nmethod: ties\n```\n")
    assert "library_name" not in card()


def test_local_paths_do_not_reach_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "jane"))
    model = tmp_path / "home" / "jane" / "models" / "mine"
    model.mkdir(parents=True)
    recipe = f"base: {model}\nmodels: [{model}+{model}-2, ~/models/mine, ../../jane/x]\n"
    recipe += f"file: {tmp_path}/home/jane/y\n"
    bases = [str(model), f"{model}+{model}-2", "~/models/mine", "../../jane/x"]
    text = card(bases=bases, recipe_yaml=recipe, notes=[f"Read {model}."], title=str(model))
    assert "jane" not in text
    assert "models: [mine+mine-2, mine, x]\nfile: ~/y\n" in text
    assert "Local paths are shortened." in text
    assert "# mine\n" in text
    assert "- Read mine.\n" in text
    assert front_matter(text)["base_model"] == ["mine", "mine-2", "x"]


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("org/name", "org/name"), ("org/name@refs/pr/1", "org/name"), ("hub:org/name@x", "org/name"),
        ("file:org/name", "name"), ("/a/b/c/", "c"), ("./x", "x"), ("../y/z", "z"),
        ("/a/b/model.safetensors", "b"),
        ("/a/b/special.safetensors", "special.safetensors"), ("~", "model"),
        ("/c/models--org--name/snapshots/abc", "org/name"),
    ],
)  # fmt: skip
def test_public_names(reference: str, name: str) -> None:
    assert public_name(reference) == name


def test_an_existing_folder_is_local_even_where_it_looks_like_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_name("org/name") == "org/name"
    Path("org/name").mkdir(parents=True)
    assert public_name("org/name") == "name"
    assert public_name("hub:org/name") == "org/name"


HOSTILE = [
    "a\n---\nlicense: mit\n---\n# b", "---", "```\n# out\n```", "``````", "| x | y |", "a\\|b", "{{x}}",
    "<img src=x onerror=alert(1)>", "</script>", "[click](javascript:alert(1))", "![x](http://x/y.png)",
    "\x1b[31mred", "\u202egpj", "&lt;b&gt;", "!!python/object/apply:os.system [ls]", "a: b", "- a", "no",
    "~~x~~", "'\"", "# h", "**b**", "\r---\r", "\u2028---\u2028", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_names_cannot_break_out(tmp_path: Path, text: str) -> None:
    plain = card(sources=[checkpoint(tmp_path, reference="x")], notes=["x"], bases=["x"], recipe_yaml="x")
    source = checkpoint(tmp_path, reference=f"{text}", revision=text)
    got = card(title=text, bases=[text], method=text, version=text, notes=[text], sources=[source], recipe_yaml=text)
    front = front_matter(got)
    assert set(front) == {"base_model", "base_model_relation", "tags"}
    assert all(isinstance(name, str) and name.isprintable() for name in front["base_model"])
    prose, fence, block = re.match(r"---\n.*?\n---\n(.*?)^(`{3,})yaml\n(.*)", got, re.S | re.M).groups()  # type: ignore[union-attr]
    assert not re.search(r"[`<>\[\]*]", prose)
    assert "---" not in prose.splitlines()
    got.encode()
    assert [line.count("|") for line in prose.splitlines() if line.startswith("|")] == [5, 5, 5]
    assert len([line for line in prose.splitlines() if line.startswith("#")]) == 2
    assert len(prose.splitlines()) == len(re.match(r"---\n.*?\n---\n(.*?)^```", plain, re.S | re.M)[1].splitlines())  # type: ignore[index]
    assert block.endswith(f"\n{fence}\n")
    assert fence not in block.removesuffix(f"{fence}\n")
    assert all(c.isprintable() or c == "\n" for c in got)


def with_cards(tmp_path: Path, *cards: bytes | None) -> list[Checkpoint]:
    found = []
    for place, content in enumerate(cards):
        folder = tmp_path / f"m{place}"
        folder.mkdir()
        found.append(checkpoint(folder, {"README.md": content} if content is not None else {}))
    return found


def test_a_license_is_copied_where_all_state_the_same(tmp_path: Path) -> None:
    front = b"---\r\ntags: [x]\r\nlicense: other\r\nlicense_name: llama\r\nlicense_link: LICENSE\r\n---\r\n# x"
    text = card(sources=with_cards(tmp_path, front, b"\xef\xbb\xbf" + front))
    assert {key: value for key, value in front_matter(text).items() if key.startswith("license")} == {
        "license": "other", "license_name": "llama", "license_link": "LICENSE",
    }  # fmt: skip
    assert "All of them state the license other." in text


ALIASES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (None, "no README.md"),
        (b"# Only text\nlicense: mit\n", "README.md has no front matter"),
        (b"\n---\nlicense: mit\n---\n", "README.md has no front matter"),
        (b"---\nlicense: mit\n", "README.md has no front matter"),
        (b"---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        (b"---\nlicense: MIT\n---\n", "MIT"),
        (b"---\nlicense: mit\nlicense_name: special\n---\n", "mit"),
        (b"---\nlicense: [mit]\n---\n", "none stated"),
        (b"---\nlicense:\n---\n", "none stated"),
        (b"---\nlicense: 'mit\\n---'\n---\n", "none stated"),
        (b"---\ntags: [mit]\n---\nlicense: mit\n", "none stated"),
        (b"---\nlicense: mit\nlicense: gpl\n---\n", "the front matter of README.md has faults"),
        (b"---\nlicense: !!python/name:os.system mit\n---\n", "the front matter of README.md has faults"),
        (b"---\nlicense: [\n---\n", "the front matter of README.md has faults"),
        (b"---\nx: " + b"[" * 5000 + b"\nlicense: mit\n---\n", "the front matter of README.md has faults"),
        (b"---\n" + ALIASES.encode() + b"license: mit\n---\n", "the front matter of README.md has faults"),
        (
            b"---\nlicense: mit\n---\n" + b"x" * 1_000_000,
            "README.md has 1000021 bytes, above the limit of 1000000",
        ),
    ],
)
def test_a_license_is_never_guessed(tmp_path: Path, other: bytes | None, told: str) -> None:
    text = card(sources=with_cards(tmp_path, b"---\nlicense: mit\n---\n", other))
    assert "license" not in front_matter(text)
    assert f"No license is stated here, since the inputs do not all state the same one (m0: mit; m1: {told})." in text


def test_the_licenses_of_adapters_and_linked_cards_count(tmp_path: Path) -> None:
    mit = b"---\nlicense: mit\n---\n"
    (source,) = with_cards(tmp_path, mit)
    assert front_matter(card(sources=[source]))["license"] == "mit"
    (tmp_path / "adapter").mkdir()
    source = replace(source, reference=f"{source.reference}+{tmp_path / 'adapter'}")
    text = card(sources=[source])
    assert "(m0: mit; adapter: no README.md)" in text
    assert "| m0 + adapter |" in text
    (tmp_path / "elsewhere.md").write_bytes(mit)
    (tmp_path / "adapter" / "README.md").symlink_to("../elsewhere.md")
    assert "adapter: README.md is not a file of its folder" in card(sources=[source])
