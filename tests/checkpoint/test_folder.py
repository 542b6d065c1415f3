from __future__ import annotations

import json
import os

import numpy as np
import pytest

from weightsmith.checkpoint.folder import INDEX_SUFFIXES, open_file, open_folder, read_config
from weightsmith.errors import CheckpointError

A, B = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {ONE: {"a.weight": A}, TWO: {"b.weight": B}}


def refused(folder, *parts, opener=open_folder, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        opener(folder, str(folder), **options)
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    assert text.count(". ") or "\n" in text  # a way out follows the faults
    return text


def test_single_file(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "model.safetensors", {"a": A}, {"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "x", "time_step_limit": [0.0, Infinity]}')
    checkpoint = open_folder(tmp_path, "ref")
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.files == (tmp_path / "model.safetensors",)
    assert (checkpoint.folder, checkpoint.reference, checkpoint.notes) == (tmp_path, "ref", ())
    assert checkpoint.config["model_type"] == "x"
    assert checkpoint.metadata == {"format": "pt"}


def test_only_other_safetensors_file(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "weights.safetensors", {"a": A})
    assert list(open_folder(tmp_path, "r").tensors) == ["a"]
    write_safetensors(tmp_path / "more.safetensors", {"a": A})
    refused(tmp_path, "several files of weights", "'more.safetensors', 'weights.safetensors'", "Name the file")


def test_no_weights_and_adapter_alone(tmp_path, write_safetensors):
    (tmp_path / "readme.txt").write_text("x")
    refused(tmp_path, "no weights", "model.safetensors")
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": A})
    refused(tmp_path, "an adapter, not a model", "BASE+")


def test_shards_in_order(tmp_path, write_sharded):
    write_sharded(tmp_path, SHARDS)
    checkpoint = open_folder(tmp_path, "r")
    assert [f.name for f in checkpoint.files] == [ONE, TWO]
    assert list(checkpoint.tensors) == ["a.weight", "b.weight"]
    assert checkpoint.tensors["b.weight"].file.name == TWO
    assert checkpoint.notes == ()


def test_lone_file_has_a_folder_only_with_config(tmp_path, write_safetensors):
    path = write_safetensors(tmp_path / "w.safetensors", {"a": A})
    assert open_file(path, "r").folder is None
    (tmp_path / "config.json").write_text("{}")
    assert open_file(path, "r").folder == tmp_path


def test_every_disagreement_of_index_and_shards_is_listed(tmp_path, write_sharded, write_safetensors):
    write_sharded(tmp_path, SHARDS | {TWO: {"b.weight": B, "a.weight": A, "extra": A}}, None)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": ONE, "b.weight": TWO, "lost": TWO}}))
    text = refused(
        tmp_path,
        "3 faults",
        f"'a.weight' is in two shards: '{ONE}' and '{TWO}'",
        f"'extra' is in shard '{TWO}', but the index does not list it",
        f"'lost' is in the index but not in its shard '{TWO}'",
    )
    assert str(index) in text


def test_tensor_in_another_shard_than_the_index_says(tmp_path, write_sharded):
    write_sharded(tmp_path, SHARDS, {"a.weight": TWO, "b.weight": ONE})
    refused(tmp_path, "2 faults", f"'a.weight' is in shard '{ONE}', but the index says '{TWO}'")


def test_missing_and_unlisted_shards(tmp_path, write_sharded, write_safetensors):
    write_sharded(tmp_path, SHARDS)
    (tmp_path / TWO).unlink()
    write_safetensors(tmp_path / "model-00003-of-00003.safetensors", {"c": A})
    refused(
        tmp_path,
        "2 faults",
        f"{TWO}' is missing",
        "'model-00003-of-00003.safetensors' is in the folder but not",
    )


def test_faults_beyond_ten_are_counted(tmp_path, write_sharded):
    write_sharded(tmp_path, SHARDS, {f"t{i}": ONE for i in range(30)})
    text = refused(tmp_path, "32 faults", "... and 22 more", "'a.weight' is in shard", f"'{TWO}' is in the folder")
    assert len(text.splitlines()) == 13


def test_damaged_shard_is_named(tmp_path, write_sharded):
    write_sharded(tmp_path, SHARDS)
    raw = (tmp_path / TWO).read_bytes()
    (tmp_path / TWO).write_bytes(raw[:-1])
    refused(tmp_path, TWO, "1 bytes missing")


@pytest.mark.parametrize(
    "value",
    [
        "../../x.safetensors", "/etc/passwd", "C:\\x.safetensors", "C:x.safetensors", "a/../../b.safetensors",
        "\\\\srv\\x.safetensors", "file:///etc/passwd", "file:x.safetensors", "", ".", "..",
        "sub/x.safetensors", "x\0.safetensors", "x\n.safetensors", "~/x.safetensors", "x.bin", "config.json",
        "n" * 300 + ".safetensors", 7, None, ["x.safetensors"],
    ],
)  # fmt: skip
def test_index_leads_nowhere_but_beside_itself(tmp_path, write_sharded, value):
    folder = tmp_path / "in" / "model"
    (tmp_path / "x.safetensors").write_bytes(b"outside")
    write_sharded(folder, SHARDS, {"a.weight": value})
    text = refused(folder, "tensor 'a.weight' is mapped to", "index")
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_shard_that_is_no_regular_file(tmp_path, write_sharded, kind):
    write_sharded(tmp_path, SHARDS)
    (tmp_path / TWO).unlink()
    (os.mkfifo if kind == "fifo" else os.mkdir)(tmp_path / TWO)
    refused(tmp_path, f"{TWO}' is not a regular file")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
def test_fifo_in_place_of_a_file_does_not_hang(tmp_path, write_safetensors, name):
    if name == "config.json":
        write_safetensors(tmp_path / "model.safetensors", {"a": A})
    os.mkfifo(tmp_path / name)
    refused(tmp_path, f"{name}' is not a regular file")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' occurs twice"),
        ("{" * 50, "not valid JSON"),
        ('{"a":' * 100_000, "deeply"),
        ("\x80\x04.", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_index_that_is_no_index(tmp_path, text, problem):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, problem, "model.safetensors.index.json")


def test_pickle_named_json(tmp_path, write_safetensors):
    (tmp_path / "model.safetensors.index.json").write_bytes(b"\x80\x04cos\nsystem\n.")
    refused(tmp_path, "is not JSON", "a Python pickle")


def test_size_caps_hold_without_reading(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 30)  # sparse
    refused(tmp_path, "config.json' is too large", "at most 10000000 bytes")
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    with open(tmp_path / "model.safetensors.index.json", "wb") as file:
        file.truncate(1 << 30)
    refused(tmp_path, "index.json' is too large")


@pytest.mark.parametrize("metadata", ["", '"metadata": [],', '"metadata": {"total_size": "x"},'])
def test_total_size_is_only_noted(tmp_path, write_sharded, metadata):
    write_sharded(tmp_path, SHARDS)
    index = tmp_path / "model.safetensors.index.json"
    for raw in (metadata, '"metadata": {"total_size": 9e18},'):
        index.write_text("{" + raw + f'"weight_map": {{"a.weight": "{ONE}", "b.weight": "{TWO}"}}}}')
        checkpoint = open_folder(tmp_path, "r")
        assert "total_size" in checkpoint.notes[0]
        assert "40 bytes" in checkpoint.notes[0]


def test_stale_index_beside_a_single_file(tmp_path, write_sharded, write_safetensors):
    index = write_sharded(tmp_path, SHARDS)
    single = write_safetensors(tmp_path / "model.safetensors", {"a": A})
    refused(tmp_path, "ambiguous", "'model.safetensors' and 'model.safetensors.index.json'", str(single))
    assert list(open_file(single, "r").tensors) == ["a"]
    assert len(open_file(index, "r").tensors) == 2
    index.unlink()
    refused(tmp_path, "ambiguous", ONE)
    single.unlink()
    refused(tmp_path, "without their index", ONE)


def test_two_formats(tmp_path, write_safetensors):
    path = write_safetensors(tmp_path / "model.safetensors", {"a": A})
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    refused(tmp_path, "ambiguous", "'model.safetensors' and 'pytorch_model.bin'", "Name the one to read")
    assert list(open_file(path, "r").tensors) == ["a"]
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK\x03\x04")
    refused(tmp_path, "ambiguous", "pytorch_model-00001-of-00002.bin")


def test_unrelated_files_do_not_disturb(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    for name in ("training_args.bin", "optimizer.pt", "consolidated.safetensors", "tf_model.h5"):
        (tmp_path / name).write_bytes(b"x")
    assert list(open_folder(tmp_path, "r").tensors) == ["a"]


def test_links(tmp_path, write_safetensors):
    folder = tmp_path / "model"
    folder.mkdir()
    link = folder / "model.safetensors"
    outside = write_safetensors(tmp_path / "outside.safetensors", {"o": A})
    link.symlink_to("../outside.safetensors")
    refused(folder, "outside its folder", "--follow-symlinks")
    assert list(open_folder(folder, "r", follow_symlinks=True).tensors) == ["o"]
    (folder / "parts").mkdir()
    outside.rename(folder / "parts" / "inside")
    link.unlink()
    link.symlink_to("parts/inside")
    assert list(open_folder(folder, "r").tensors) == ["o"]
    link.unlink()
    link.symlink_to("nowhere")
    refused(folder, "dangling link")
    refused(folder, "dangling link", follow_symlinks=True)
    link.unlink()
    link.symlink_to("model.safetensors")
    refused(folder, "cannot be reached")
    link.unlink()
    link.symlink_to("parts")
    refused(folder, "not a regular file")


def test_config_link_outside(tmp_path, write_safetensors):
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {"o": A})
    (tmp_path / "secret").write_text('{"a": 1}')
    (folder / "config.json").symlink_to("../secret")
    refused(folder, "config.json' is a link", "outside its folder")


@pytest.mark.parametrize("subfolder", ["", "text"])
def test_layout_of_the_hub_cache(tmp_path, write_safetensors, subfolder):
    cache = tmp_path / "models--org--name"
    folder = cache / "snapshots" / "0123abcd" / subfolder
    (cache / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    write_safetensors(cache / "blobs" / "f00d", {"a": A})
    up = "../../.." if subfolder else "../.."
    (folder / "model.safetensors").symlink_to(f"{up}/blobs/f00d")
    assert list(open_folder(folder, "r").tensors) == ["a"]
    (folder / "model.safetensors").unlink()
    (cache / "refs").mkdir()
    write_safetensors(cache / "refs" / "f00d", {"a": A})
    (folder / "model.safetensors").symlink_to(f"{up}/refs/f00d")
    refused(folder, "outside its folder")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "not a mapping"),
        ('"x"', "not a mapping"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"a":' * 70 + "1" + "}" * 70, "nests too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "deeply"),
        ('{"a":' + "9" * 5000 + "}", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_config_that_is_no_config(tmp_path, write_safetensors, text, problem):
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, problem, "config.json")


def test_config_drives_nothing(tmp_path, write_safetensors):
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1e12, "auto_map": {"AutoModel": "evil.Model"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit")
    checkpoint = open_folder(tmp_path, "r")
    assert checkpoint.config["num_hidden_layers"] == 1e12
    assert "custom code" in checkpoint.notes[0]
    assert read_config(tmp_path / "config.json") == checkpoint.config


def test_index_of_another_name(tmp_path, write_sharded):
    index = write_sharded(tmp_path, {"unet-00001.safetensors": {"a": A}})
    other = index.rename(tmp_path / "unet.safetensors.index.json")
    assert other.name.endswith(INDEX_SUFFIXES)
    assert list(open_file(other, "r").tensors) == ["a"]
