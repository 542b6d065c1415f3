"""Unpacking: the bytes that the task reads as, its files beside them, a record for verify; damage publishes nothing."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from weightsmith import Options, WeightsmithError, compare, merge, unpack, verify


def test_one_task_comes_back_with_its_files(pack_all, tasks, tmp_path, load_arrays):
    bundle = pack_all("lossless")
    done = unpack(f"{bundle}#b", tmp_path / "b")
    assert done.folders == {"b": tmp_path / "b"}
    found = load_arrays(tmp_path / "b")
    assert all(found[n].tobytes() == a.tobytes() for n, a in tasks["b"].items())
    assert json.loads((tmp_path / "b" / "config.json").read_text())["note"] == "b"
    assert (tmp_path / "b" / "tokenizer.json").read_text() == '{"version": "b"}\n'
    result = verify(tmp_path / "b")
    assert result.is_sound
    assert result.recomputed > 0


@pytest.mark.parametrize("encoding", ["tall_masks", "compeft", "low_rank"])
def test_all_tasks_read_as_they_do_in_the_bundle(pack_all, tmp_path, read_task, load_arrays, encoding):
    bundle = pack_all(encoding)
    assert list(unpack(bundle, tmp_path / "all").folders) == ["a", "b", "c"]
    for task in "abc":
        found = load_arrays(tmp_path / "all" / task)
        assert {n: a.tobytes() for n, a in found.items()} == {
            n: a.tobytes() for n, a in read_task(bundle, task).items()
        }


def test_same_bytes_for_any_threads_and_memory(pack_all, tmp_path):
    bundle = pack_all("emr")
    for name, options in (("x", Options(threads=1)), ("y", Options(threads=3, memory_bytes=170_000_000))):
        unpack(f"{bundle}#a", tmp_path / name, options=options)
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in "xy"]
    assert weights[0] == weights[1]


def test_a_task_is_a_model_for_other_verbs(pack_all, family, tmp_path, load_arrays):
    bundle = pack_all("lossless")
    assert not compare(f"{bundle}#a", family / "a").differs
    merge("ties", base=family / "base", models=[f"{bundle}#a", f"{bundle}#b"], out=tmp_path / "m")
    merge("ties", base=family / "base", models=[family / "a", family / "b"], out=tmp_path / "n")
    assert not compare(tmp_path / "m", tmp_path / "n").differs
    assert verify(tmp_path / "m").is_sound


def test_an_adapter_on_a_task(pack_all, tmp_path, tasks, save_raw):
    bundle = pack_all("lossless")
    name = "layers.0.mlp.up_proj"
    down, up = np.ones((1, 7), np.float32), np.full((33, 1), 0.5, np.float32)
    prefix = f"base_model.model.model.{name}"
    save_raw(
        tmp_path / "adapter" / "adapter_model.safetensors",
        {
            f"{prefix}.lora_A.weight": ("F32", down.shape, down.tobytes()),
            f"{prefix}.lora_B.weight": ("F32", up.shape, up.tobytes()),
        },
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    merge("passthrough", models=[f"{bundle}#a+{tmp_path / 'adapter'}"], out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    wanted = tasks["a"][f"model.{name}.weight"] + np.float32(0.5)
    assert np.array_equal(found[f"model.{name}.weight"], wanted)


@pytest.mark.parametrize("file", ["part.safetensors", "beside/config.json"])
def test_damage_is_found_while_streaming(pack_all, tmp_path, file):
    bundle = pack_all("tall_masks")
    path = next((bundle / "tasks").glob("*-b")) / file
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(WeightsmithError, match=path.name) as error:
        unpack(f"{bundle}#b", tmp_path / "out")
    assert error.value.exit_code == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []
    unpack(f"{bundle}#a", tmp_path / "out")


@pytest.mark.parametrize("file", ["part.safetensors", "part.json"])
def test_a_damaged_task_does_not_keep_the_others(pack_all, tmp_path, file, tasks, load_arrays):
    bundle = pack_all("lossless")
    path = next((bundle / "tasks").glob("*-b")) / file
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(WeightsmithError, match="all tasks but these are unpacked") as error:
        unpack(bundle, tmp_path / "all")
    assert error.value.exit_code == 3
    assert "task 'b'" in str(error.value)
    assert file in str(error.value)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a", "c"]
    found = load_arrays(tmp_path / "all" / "c")
    assert all(found[n].tobytes() == a.tobytes() for n, a in tasks["c"].items())


def test_places_that_cannot_be_used(pack_all, tmp_path):
    bundle = pack_all("lossless", models=("a",))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    for reference, out, told in (
        (f"{bundle}#a", tmp_path / "there", "exists"),
        (f"{bundle}#z", tmp_path / "new", "has no task 'z'"),
        (tmp_path / "nothing", tmp_path / "new", "does not exist"),
        (f"{bundle}#a", bundle / "tasks", "apart from the inputs"),
    ):
        with pytest.raises(WeightsmithError, match=told) as error:
            unpack(reference, out)
        assert error.value.exit_code == 2
    assert (tmp_path / "there" / "x").read_text() == "mine"


def test_a_damaged_copy_of_the_base_is_not_unpacked(pack_all, tmp_path):
    """The base's bytes enter every task: a flipped one must not be published."""
    bundle = pack_all("compeft", copy_base=True)
    weights = next((bundle / "base").glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(WeightsmithError, match="SHA-256"):
        unpack(bundle, tmp_path / "out")
    assert not any((tmp_path / "out").glob("*/*.safetensors"))
