"""Slices: layers stacked, duplicated and interleaved, renumbered, merged at shifted depths, and every way they do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from weightsmith import make_plan, merge, verify
from weightsmith.checkpoint.config_text import config_with_layers
from weightsmith.errors import ArgumentError, MismatchError, WeightsmithError
from weightsmith.recipe import Recipe, Rule, Schedule, Slice, Source
from weightsmith.recipe.text import parse_recipe

COUNTED = {"model_type": "llama", "num_hidden_layers": 3, "layer_types": ["x", "y", "z"], "hidden_size": 3}


@pytest.fixture
def models(tmp_path, make_arrays, save_arrays):
    """Three models of three layers: reference to arrays, the first being what the others were trained from."""
    base = make_arrays()
    made = {n: base if n == "base" else make_arrays(i, base) for i, n in enumerate(("base", "a", "b"))}
    return {str(save_arrays(tmp_path / n, arrays, config=COUNTED)): arrays for n, arrays in made.items()}


def stacked(*ranges, **settings):
    """One slice per (model, first, end)."""
    return tuple(Slice((Source(m, (first, end), settings),)) for m, first, end in ranges)


def named(layer, part="mlp.up_proj"):
    return f"model.layers.{layer}.{part}.weight"


def refused(recipe, error=WeightsmithError):
    with pytest.raises(error) as caught:
        make_plan(recipe)
    return str(caught.value)


def test_stacked_layers_are_renumbered_and_copied(tmp_path, models, load_arrays):
    _, a, b = models
    ranges = [(a, 0, 2), (b, 1, 3), (a, 1, 2)]
    result = merge(Recipe("passthrough", slices=stacked(*ranges)), out=tmp_path / "out")
    found = load_arrays(result.out)
    sources = [(m, layer) for m, first, end in ranges for layer in range(first, end)]
    assert len(found) == 3 + 2 * 5
    for k, (m, layer) in enumerate(sources):
        for part in ("mlp.up_proj", "self_attn.q_proj"):
            assert np.array_equal(found[named(k, part)], models[m][named(layer, part)])
    assert np.array_equal(found["model.embed_tokens.weight"], models[a]["model.embed_tokens.weight"])
    for end in ("model.norm.weight", "lm_head.weight"):  # the last slice's
        assert np.array_equal(found[end], models[a][end])
    config = json.loads((result.out / "config.json").read_text())
    assert config == {**COUNTED, "num_hidden_layers": 5, "layer_types": ["x", "y", "y", "z", "y"]}
    assert {c["reason"] for c in result.record["tensors"]["copied"]} == {"unchanged"}
    checked = verify(result.out)
    assert (checked.findings, checked.skipped) == ((), ())
    assert checked.recomputed


def test_what_follows_the_layers_comes_from_the_last_slice(models):
    _, a, b = models
    plan = make_plan(Recipe("passthrough", slices=stacked((a, 0, 3), (b, 0, 3))))
    found = {
        w.name: plan.inputs.index(next(c for c in plan.inputs if w.inputs[0] in c.tensors.values())) for w in plan.works
    }
    assert found["model.embed_tokens.weight"] == 0
    assert found["model.norm.weight"] == found["lm_head.weight"] == 1
    assert plan.job.layers == 6
    assert plan.layer_sources() == [[(m, i)] for m in (a, b) for i in range(3)]
    assert plan.summary()["layers"][4] == [{"model": b, "layer": 1}]


def test_a_model_is_opened_once_however_often_it_is_named(models):
    _, a, b = models
    plan = make_plan(Recipe("passthrough", slices=stacked((a, 0, 1), (b, 0, 1), (a, 0, 1), (a, 0, 1))))
    assert [c.reference for c in plan.inputs] == [a, b]


def test_layers_are_merged_at_shifted_depths_with_curves_over_the_slice(tmp_path, models, load_arrays):
    base, a, b = models
    curve = Schedule((Rule("*.mlp.*", (0.0, 1.0)), Rule("*", (0.25,))))
    parts = (
        Slice((Source(base, (0, 1)),)),
        Slice((Source(a, (1, 3), {"coefficient": curve}), Source(base, (1, 3)), Source(b, (0, 2)))),
    )
    recipe = Recipe("task_arithmetic", base=base, slices=parts, parameters={"lambda_": 0.5})
    result = merge(recipe, out=tmp_path / "out")
    found = load_arrays(result.out)
    assert np.array_equal(found[named(0)], models[base][named(0)])
    for k, share in ((1, 0.0), (2, 1.0)):
        for part, factor in (("mlp.up_proj", share), ("self_attn.q_proj", 0.25)):
            start = models[base][named(k, part)].astype("float64")
            one, two = models[a][named(k, part)] - start, models[b][named(k - 1, part)] - start
            assert np.allclose(found[named(k, part)], start + 0.5 * (factor * one + two), atol=1e-6)
    plan = make_plan(parse_recipe(result.record["recipe"]))
    assert plan.recipe == recipe
    assert {w.name: len(w.inputs) for w in plan.works}[named(0)] == 1
    assert {w.reason for w in plan.copied} == {"slice 1 has the base alone"}
    assert set(plan.parameters[1]["coefficients"].values()) == {(0.0, 1.0), (1.0, 1.0), (0.25, 1.0)}
    assert plan.parameters[0]["lambda_"] == 0.5
    assert verify(result.out).findings == ()


def test_a_models_own_schedule_goes_by_its_own_names(models):
    base, a, _ = models
    own = Schedule((Rule("model.layers.2.*", (9.0,)), Rule("*", (1.0,))))
    shared = Schedule((Rule("model.layers.0.*", (5.0,)), Rule("*", (1.0,))))
    parts = (Slice((Source(base, (2, 3)), Source(a, (2, 3), {"coefficient": own})), parameters={"lambda_": shared}),)
    plan = make_plan(Recipe("task_arithmetic", base=base, slices=parts))
    found = {w.name: w.parameters for w in plan.merged}[named(0)]
    assert (found["coefficients"], found["lambda_"]) == ((9.0,), 5.0)


def test_slices_of_different_bases_and_parameters(models):
    base, a, b = models
    parts = (
        Slice((Source(base, (0, 1)), Source(a, (0, 1))), parameters={"lambda_": 0.2}),
        Slice((Source(base, (0, 1)), Source(b, (1, 2))), base=b),
    )
    plan = make_plan(Recipe("wise_ft", base=base, slices=parts, parameters={"lambda_": 0.7}))
    found = {w.name: w for w in plan.merged}
    assert [e.name for e in found[named(1)].inputs] == [named(1), named(0)]  # the slice's base first
    assert [found[named(i)].parameters["lambda_"] for i in (0, 1)] == [0.2, 0.7]


def test_a_whole_model_as_one_slice_is_the_whole_model(models):
    base, a, b = models
    sliced = Slice(tuple(Source(m, (0, 3)) for m in (base, a, b)))
    one = make_plan(Recipe("ties", base=base, slices=(sliced,)))
    two = make_plan(Recipe("ties", base=base, models=(a, b)))
    assert one.works == two.works
    assert one.job == two.job


def test_faults_of_slices_are_told_together_with_missing_models(tmp_path, models):
    base, a, b = models
    parts = (
        Slice((Source(a, (0, 9)), Source(b, (0, 9)))),
        Slice((Source(base, (0, 2)), Source(str(tmp_path / "none"), (0, 2)))),
        Slice((Source(base, (0, 2)), Source(a, (0, 1)))),
        Slice((Source(base, (1, 1)),)),
        Slice((Source(base, (0, 1)), Source(base, (1, 2)))),
    )
    message = refused(Recipe("task_arithmetic", base=base, slices=parts))
    assert "layers 0 to 9 are out of range; " in message
    assert f"'{a}' has layers 0 to 3, the end not included" in message
    for told in (
        "none",
        f"slice 1: the base '{base}' is not among its sources",
        f"slice 3: its sources span 2 of '{base}', 1 of '{a}' layers",
        "slice 4: layers: expected [first, end] with 0 <= first < end",
        f"slice 5: '{base}' is given twice",
    ):
        assert told in message, told


def test_parameters_of_slices_are_told_together(models):
    base, a, b = models
    good = (Source(base, (0, 1)), Source(a, (0, 1)))
    parts = (
        Slice(good, parameters={"lambd": 1}),
        Slice((good[0], Source(b, (0, 1), {"coefficient": float("nan")}))),
        Slice(good, parameters={"lambda_": "much"}),
    )
    message = refused(Recipe("task_arithmetic", base=base, slices=parts), ArgumentError)
    assert "3 faults" in message
    for told in ("slice 1: merge task_arithmetic: unknown parameter 'lambd'", "slice 2: ", "got nan", "slice 3: "):
        assert told in message


def test_a_base_is_needed_where_the_method_has_one_and_only_there(models):
    _, a, b = models
    parts = (Slice((Source(a, (0, 1)), Source(b, (0, 1)))),)
    assert "slice 1: the base is missing" in refused(Recipe("ties", slices=parts))
    assert "slice 1: linear takes no base" in refused(Recipe("linear", slices=(Slice(parts[0].sources, base=a),)))


def test_a_reduction_over_the_whole_model_needs_the_same_models_everywhere(models):
    base, a, b = models
    parts = tuple(Slice((Source(base, (i, i + 1)), Source(m, (i, i + 1)))) for i, m in enumerate((a, b)))
    recipe = Recipe("ties", base=base, slices=parts, parameters={"density": 0.5})
    assert "merge ties: scope; expected the same models and parameters in every slice" in refused(recipe, ArgumentError)
    assert make_plan(Recipe("ties", base=base, slices=parts, parameters={"scope": "tensor"})).merged


def test_the_same_files_twice_in_one_slice_are_refused(tmp_path, models):
    _, a, _ = models
    (tmp_path / "link").symlink_to(a)
    again = str(tmp_path / "link")
    assert "are the same files" in refused(
        Recipe("linear", slices=(Slice((Source(a, (0, 1)), Source(again, (0, 1)))),))
    )
    assert make_plan(Recipe("linear", slices=stacked((a, 0, 1), (again, 0, 1)))).merged


def test_models_without_one_number_of_layers_are_not_sliced(tmp_path, save_arrays):
    arrays = {f"encoder.{i}.w": np.ones(2, "float32") for i in range(2)} | {"decoder.0.w": np.ones(2, "float32")}
    folder = str(save_arrays(tmp_path / "two", arrays))
    message = refused(Recipe("linear", slices=stacked((folder, 0, 1))))
    assert "cannot be sliced: expected one number of layers, got 1 in 'decoder.', 2 in 'encoder.'" in message
    folder = str(save_arrays(tmp_path / "none", {"w": np.ones(2, "float32")}))
    assert "got none" in refused(Recipe("linear", slices=stacked((folder, 0, 1))))


def test_a_tensor_that_one_source_has_more_is_told(tmp_path, models, make_arrays, save_arrays):
    _, a, _ = models
    arrays = {**make_arrays(4), "model.layers.1.extra.weight": np.ones(2, "float32")}
    more = str(save_arrays(tmp_path / "more", arrays, config=COUNTED))
    recipe = Recipe("linear", slices=(Slice((Source(a, (0, 1)), Source(more, (1, 2)))),))
    assert f"'model.layers.1.extra.weight' of '{more}' is not in '{a}', the first of slice 1" in refused(
        recipe, MismatchError
    )
    elsewhere = Recipe("linear", slices=(Slice((Source(a, (0, 1)), Source(more, (2, 3)))),))
    assert make_plan(elsewhere).merged
    assert make_plan(Recipe("linear", slices=recipe.slices, drop=("*.extra.*",))).dropped[0].model == 1


def test_a_tied_and_an_untied_end_do_not_fit(tmp_path, models, make_arrays, save_arrays):
    _, a, _ = models
    arrays = {n: x for n, x in make_arrays(4).items() if n != "lm_head.weight"}
    tied = str(save_arrays(tmp_path / "tied", arrays, config={**COUNTED, "tie_word_embeddings": True}))
    for ranges in ([(a, 0, 1), (tied, 1, 2)], [(tied, 0, 1), (a, 1, 2)]):
        message = refused(Recipe("passthrough", slices=stacked(*ranges)))
        assert f"'{tied}' ties its head to its embedding and '{a}' does not" in message


def test_patterns_of_schedules_that_match_nothing_are_told(models):
    base, a, _ = models
    own = Schedule((Rule("*.mpl.*", (0.5,)), Rule("*", (1.0,))))
    recipe = Recipe("task_arithmetic", (a,), base, ({"coefficient": own},), parameters={"lambda_": own})
    message = refused(recipe, MismatchError)
    assert "lambda_: pattern '*.mpl.*' matches no tensor" in message
    assert "coefficient: pattern '*.mpl.*' matches no tensor" in message


def test_a_curve_of_more_numbers_than_layers_is_noted(models):
    base, a, _ = models
    curve = Schedule((Rule("*", (0.1, 0.2, 0.3, 0.4)),))
    plan = make_plan(Recipe("task_arithmetic", (a,), base, parameters={"lambda_": curve}))
    assert "lambda: a curve of 4 numbers over 3 layers does not reach all" in plan.notes


def test_unchanged_tensors_of_any_dtype_are_copied(tmp_path, save_raw):
    tensors = {"layers.0.w": ("F8_E4M3", (4,), bytes(range(4))), "layers.1.w": ("F32", (1,), bytes(4))}
    folder = str(save_raw(tmp_path / "m" / "model.safetensors", tensors).parent)
    plan = make_plan(Recipe("passthrough", slices=stacked((folder, 0, 2), (folder, 0, 1)), dtype="BF16"))
    assert {w.name: (w.dtype, w.parameters is None) for w in plan.works} == {
        "layers.0.w": ("F8_E4M3", True),
        "layers.1.w": ("BF16", False),  # another dtype is asked for
        "layers.2.w": ("F8_E4M3", True),
    }


def test_a_narrow_precision_reaches_the_engine_and_is_verified(tmp_path, models):
    _, a, b = models
    rounded = Recipe("linear", (a, b), compute_dtype="bfloat16")
    result = merge(rounded, out=tmp_path / "out")
    assert make_plan(rounded).job.precision == "bfloat16"
    assert verify(result.out).findings == ()
    again = merge(Recipe("linear", (a, b)), out=tmp_path / "exact")
    assert again.record["outputs"][0]["sha256"] != result.record["outputs"][0]["sha256"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"n_layer": 2}', b'{"n_layer": 3}'),
        (b'{"text_config": {"num_hidden_layers": 2 }}', b'{"text_config": {"num_hidden_layers": 3 }}'),
        (b'{"num_hidden_layers": 12, "hidden_size": 2}', None),
        (b'{"layers_block_type" : [ "a", "b" ], "x": 2}', b'{"layers_block_type" : ["a", "b", "a"], "x": 2}'),
        (b'{"layer_types": ["a", "b", "c"]}', None),
        (b'{"layer_types": []}', None),
        (b'{"note": "\\"layer_types\\": [1, 2]"}', None),
    ],
)
def test_configs_of_stacked_layers(before, after):
    origins = [({}, 0), ({}, 1), ({}, 0)]
    assert config_with_layers(before, 2, origins) == (before if after is None else after)


def test_layer_types_come_from_the_model_that_lends_the_layer():
    one, two = {"layer_types": ["a", "b"]}, {"layer_types": ["c", "d", "e"]}
    found = config_with_layers(json.dumps(one).encode(), 2, [(one, 1), (two, 2), (two, 0)])
    assert json.loads(found) == {"layer_types": ["b", "e", "c"]}


def test_plan_shows_slices(tmp_path, models, command):
    _, a, b = models
    text = f"method: linear\nslices:\n- sources: [{{model: {a}, layers: [0, 2]}}]\n"
    text += f"- sources: [{{model: {a}, layers: [1, 2], coefficient: 2}}, {{model: {b}, layers: [0, 1]}}]\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    ran = command("plan", path)
    assert "  slice 1: layers 0 to 1 from layers 0 to 1 of input 0\n" in ran.out
    assert "  slice 2: layer 2 from layer 1 of input 0, layer 0 of input 1\n" in ran.out
    assert "  coefficients by tensor: " in ran.out
    found = json.loads(command("plan", path, "--json").out)
    assert found["layers"][2] == [{"model": a, "layer": 1}, {"model": b, "layer": 0}]
    assert found["parameters"]["by_tensor"]["coefficients"][named(2)] == [2.0, 1.0]
    path.write_text(text.replace("coefficient", "coeficient"))
    assert (
        "line 4: slice 2, source 1: unknown key 'coeficient'; did you mean 'coefficient'?" in command("plan", path).err
    )
