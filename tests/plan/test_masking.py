"""A merge inside a mask."""

import json

import numpy as np
import pytest

from weightsmith import Options, localize, merge, read_recipe, verify
from weightsmith.errors import ArgumentError, MismatchError


@pytest.fixture
def mask(tmp_path, save_raw, load_arrays, family):
    """A mask of half of the weights, which lacks the embedding."""
    rng, tensors = np.random.default_rng(3), {}
    for name, array in load_arrays(family[0]).items():
        if "embed" not in name:
            tensors[name] = ("BOOL", array.shape, (rng.random(array.shape) < 0.5).astype("u1").tobytes())
    save_raw(tmp_path / "mask" / "model.safetensors", tensors)
    return tmp_path / "mask"


@pytest.mark.parametrize("method", ["ties", "linear", "iso_c", "slerp"])
def test_merged_inside_and_the_first_inputs_bytes_outside(tmp_path, family, mask, load_arrays, method):
    given = {"base": family[0]} if method in ("ties", "iso_c") else {}
    models = family[1:] if given else family[:2]
    merge(method, models=models, out=tmp_path / "plain", **given)
    done = merge(method, models=models, out=tmp_path / "out", mask=mask, **given)
    plain, out, base, kept = (load_arrays(f) for f in (tmp_path / "plain", tmp_path / "out", family[0], mask))
    for name in base:
        chosen = kept.get(name, np.zeros(base[name].shape, bool))
        assert np.array_equal(out[name], np.where(chosen, plain[name], base[name])), name
    outside = [{"name": "model.embed_tokens.weight", "reason": "outside the mask"}]
    assert done.record["tensors"]["copied"] == ([] if method == "ties" else outside)  # ties ranks the whole model
    assert done.record["inputs"][-1]["reference"] == str(mask)
    checked = verify(tmp_path / "out")
    assert checked.is_sound
    assert checked.recomputed


@pytest.mark.parametrize("options", [Options(threads=1, memory_bytes=170_000_000), Options(threads=4)])
def test_nothing_depends_on_the_cut(tmp_path, family, mask, options):
    given = {"base": family[0], "models": family[1:], "mask": mask}
    merge("ties", out=tmp_path / "one", **given)
    merge("ties", out=tmp_path / "two", options=options, **given)
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_recipe_says_it_and_the_record_runs_again(tmp_path, family, mask):
    base, a, b = family
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: ties\nbase: {base}\nmodels: [{a}, {b}]\nmask: {mask}\n")
    assert read_recipe(path).mask == str(mask)
    merge(path, out=tmp_path / "one")
    record = json.loads((tmp_path / "one" / "edit.json").read_text())
    assert f"mask: {mask}" in record["recipe"]
    again = tmp_path / "again.yaml"
    again.write_text(record["recipe"])
    merge(again, out=tmp_path / "two")
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_on_the_command_line(tmp_path, family, mask, ties_words, command):
    localize(family[0], family[1:], masks=tmp_path / "masks")
    assert command(*ties_words, "--mask", tmp_path / "masks" / "a").code == 0
    merge("ties", base=family[0], models=family[1:], mask=tmp_path / "masks" / "a", out=tmp_path / "twin")
    assert (tmp_path / "twin" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    words = ["plan", *ties_words[1:]]
    words = [w for w in words if w not in ("--out", str(tmp_path / "out"))]
    found = json.loads(command(*words, "--mask", mask, "--json").out)
    assert found["mask"] == str(mask)
    assert f"inside the mask {mask} alone" in command(*words, "--mask", mask).out


def test_a_mask_that_changed_is_noticed(tmp_path, family, mask, save_raw):
    merge("ties", base=family[0], models=family[1:], mask=mask, out=tmp_path / "out")
    name = "model.norm.weight"
    save_raw(mask / "model.safetensors", {name: ("BOOL", (16,), b"\1" * 16)})
    checked = verify(tmp_path / "out")
    assert checked.is_sound
    assert not checked.recomputed
    assert any("inputs changed" in note for note in checked.skipped)


def test_masks_that_do_not_fit(tmp_path, family, mask, save_raw):
    given = {"base": family[0], "models": family[1:], "out": tmp_path / "out"}
    save_raw(tmp_path / "odd" / "model.safetensors", {"model.norm.weight": ("BOOL", (15,), b"\1" * 15)})
    with pytest.raises(MismatchError, match=r"has shape \(15,\), in the output \(16,\)"):
        merge("ties", mask=tmp_path / "odd", **given)
    with pytest.raises(MismatchError, match="what lies outside it cannot stay"):
        merge("ties", mask=mask, dtype="bfloat16", **given)
    with pytest.raises(ArgumentError, match="does not exist"):
        merge("ties", mask=tmp_path / "nowhere", **given)
    with pytest.raises(ArgumentError, match="has no tensor that is merged"):
        merge("ties", mask=mask, copy=["*layers*", "*norm*", "lm_head*"], **given)
    with pytest.raises(ArgumentError, match="a folder apart from the inputs"):
        merge("ties", **{**given, "out": mask / "inner"}, mask=mask)
    assert not (tmp_path / "out").exists()
