"""mergekit's recipes to ours: which method, which parameters where, which precision, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightsmith
from weightsmith.dialect import Translation, read_steps
from weightsmith.errors import RecipeError
from weightsmith.recipe import Source, Vocabulary
from weightsmith.recipe.schedule import Rule, Schedule


@pytest.fixture
def translated(tmp_path: Path) -> Callable[..., Translation]:
    """`translated(text)` translates the one document of a recipe."""

    def run(text: str, **given: Any) -> Translation:
        path = tmp_path / "recipe.yml"
        path.write_text(text)
        (step,) = read_steps(path)
        return step.translate(**given)

    return run


TIES = """\
merge_method: ties
base_model: base
models:
  - model: base
  - {model: a, parameters: {weight: 1e-1, density: [0.2, 0.8], t: 3, lambda: 2}}
  - {model: b}
parameters: {weight: [{filter: mlp, value: 0.5}, {value: 0.7}], int8_mask: true, lamda: 2}
dtype: bfloat16
"""


def test_ties_is_the_sparse_family_with_the_peers_defaults(translated: Callable[..., Translation]) -> None:
    made = translated(TIES)
    recipe = made.recipe
    assert (recipe.method, recipe.base, recipe.models) == ("sparse_task_arithmetic", "base", ("a", "b"))
    assert recipe.parameters == {
        "sparsify": "magnitude",
        "consensus": True,
        "normalize": True,
        "rescale": False,
        "lambda_": 1.0,
    }
    assert recipe.settings == (
        {"coefficient": 0.1, "density": Schedule((Rule("*", (0.2, 0.8)),))},
        {"coefficient": Schedule((Rule("*mlp*", (0.5,)), Rule("*", (0.7,)))), "density": 1.0},
    )
    assert (recipe.dtype, recipe.compute_dtype) == ("BF16", "bfloat16")


def test_what_has_no_effect_is_told(translated: Callable[..., Translation]) -> None:
    notes = translated(TIES).notes
    assert notes[0].startswith("read as mergekit's dialect: ties as sparse_task_arithmetic")
    assert "in bfloat16" in notes[0]
    assert any("'lambda'" in n and "belongs under 'parameters'" in n for n in notes)
    assert any("'lamda'" in n and "did you mean 'lambda'" in n for n in notes)
    assert any("'t' has no effect beside model 'a'" in n for n in notes)


@pytest.mark.parametrize(
    ("lines", "dtype", "compute"),
    [
        ("dtype: float32", "F32", None),
        ("dtype: float32\nout_dtype: bfloat16", "BF16", None),
        ("dtype: float16", "F16", "float16"),
        ("dtype: bfloat16\nout_dtype: float32", "F32", "bfloat16"),
        ("", None, None),
    ],
)
def test_precision(translated: Callable[..., Translation], lines: str, dtype: str | None, compute: str | None) -> None:
    made = translated(f"merge_method: linear\nmodels: [{{model: a}}]\nparameters: {{weight: 1}}\n{lines}\n")
    assert (made.recipe.dtype, made.recipe.compute_dtype) == (dtype, compute)
    assert any("cannot be opened" in n for n in made.notes) == (not lines)


def test_without_dtype_the_models_tell_the_precision(
    translated: Callable[..., Translation], save_raw: Callable[..., Path], tmp_path: Path
) -> None:
    for name, dtypes in {
        "a": ("BF16", "BF16"),
        "b": ("BF16", "BF16"),
        "c": ("F32", "F32"),
        "d": ("BF16", "F32"),
    }.items():
        width = {"BF16": 2, "F32": 4}
        tensors = {n: (d, (2,), bytes(2 * width[d])) for n, d in zip(("x", "y"), dtypes, strict=True)}
        save_raw(tmp_path / name / "model.safetensors", tensors)
    text = f"merge_method: linear\nmodels: [{{model: {tmp_path}/a}}, {{model: {tmp_path}/%s}}]\nparameters: {{weight: 1}}\n"
    found = {o: translated(text % o).recipe for o in "bcd"}
    assert (found["b"].dtype, found["b"].compute_dtype) == ("BF16", "bfloat16")
    assert (found["c"].dtype, found["c"].compute_dtype) == ("F32", None)
    assert (found["d"].dtype, found["d"].compute_dtype) == (None, None)


def test_a_base_without_a_role_is_the_last_model(translated: Callable[..., Translation]) -> None:
    recipe = translated("merge_method: linear\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1}").recipe
    assert (recipe.base, recipe.models) == (None, ("a", "b"))


def test_the_tokenizer_of_a_base_without_a_role_is_named(translated: Callable[..., Translation]) -> None:
    text = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer_source: base\n"
    made = translated(text + "base_model: b\n")
    assert made.recipe.vocabulary == Vocabulary("b")
    assert any("come from the first model, 'a'" in note for note in made.notes)
    with pytest.raises(RecipeError, match="key 'base_model' is missing"):
        translated(text)


def test_slerp_takes_the_base_first_wherever_it_stands(translated: Callable[..., Translation]) -> None:
    recipe = translated(
        "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}"
    ).recipe
    assert (recipe.base, recipe.models, recipe.parameters) == (None, ("b", "a"), {"t": 0.3})


def test_slices_keep_their_own_parameters_and_bases(translated: Callable[..., Translation]) -> None:
    text = """\
merge_method: task_arithmetic
base_model: base
slices:
  - sources: [{model: a, layer_range: [0, 2], parameters: {weight: 1}}, {model: base, layer_range: [0, 2]}]
    parameters: {lambda: [0, 1]}
  - sources: [{model: b, layer_range: [2, 3]}, {model: a, layer_range: [1, 2]}]
    base_model: a
parameters: {weight: 0.5}
"""
    recipe = translated(text).recipe
    first, second = recipe.slices
    assert first.sources == (Source("a", (0, 2), {"coefficient": 1}), Source("base", (0, 2)))
    assert second.sources == (Source("b", (2, 3), {"coefficient": 0.5}), Source("a", (1, 2)))
    assert (first.base, second.base, recipe.base) == (None, "a", "base")
    assert first.parameters == {"lambda_": Schedule((Rule("*", (0, 1)),))}
    assert second.parameters == {"lambda_": 1.0}
    assert recipe.parameters == {"sparsify": "none", "consensus": False, "normalize": False}


def test_a_slice_may_hold_the_base_alone(
    translated: Callable[..., Translation], family: list[Path], tmp_path: Path, load_arrays: Callable[..., Any]
) -> None:
    base, a, _ = family
    recipe = tmp_path / "alone.yml"
    recipe.write_text(
        f"""\
merge_method: ties
base_model: {base}
slices:
  - sources: [{{model: {base}, layer_range: [0, 1]}}, {{model: {a}, layer_range: [0, 1]}}]
  - sources: [{{model: {base}, layer_range: [1, 3]}}]
parameters: {{weight: 1}}
dtype: float32
"""
    )
    weightsmith.merge(recipe, out=tmp_path / "out")
    start, trained, merged = (load_arrays(folder) for folder in (base, a, tmp_path / "out"))
    for name, values in merged.items():
        same = ".1." in name or ".2." in name or name in ("model.norm.weight", "lm_head.weight")
        expected = start[name] if same else start[name] + (trained[name] - start[name])
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_optional_bases_choose_the_method(translated: Callable[..., Translation]) -> None:
    text = "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, nuslerp_flatten: false}\n"
    assert translated(text).recipe.method == "nuslerp"
    made = translated(text + "base_model: c\n").recipe
    assert (made.method, made.base, made.parameters) == ("nuslerp_base", "c", {"scope": "row"})


@pytest.mark.parametrize(("base", "method"), [("", "nuslerp_columns"), ("base_model: c\n", "nuslerp_columns_base")])
def test_vectors_along_the_first_axis_are_a_method_of_their_own(
    translated: Callable[..., Translation], base: str, method: str
) -> None:
    text = (
        "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, nuslerp_row_wise: true%s}\n"
    )
    whole = translated(text % "" + base).recipe
    assert whole.parameters == {"scope": "tensor"}  # nuslerp_flatten is true by default, and then this has no effect
    made = translated(text % ", nuslerp_flatten: false" + base).recipe
    assert (made.method, made.parameters) == (method, {})
    part = "{model: %s, layer_range: [0, 1]}"
    models = [part % name for name in ("abc" if base else "ab")]
    sliced = f"merge_method: nuslerp\nslices: [{{sources: [{', '.join(models)}]}}]\n{base}"
    made = translated(sliced + "parameters: {weight: 1, nuslerp_row_wise: true, nuslerp_flatten: false}\n").recipe
    assert (made.method, made.parameters, len(made.slices)) == (method, {}, 1)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "della", "sce", "ram"])
def test_a_base_alone_is_copied(translated: Callable[..., Translation], name: str) -> None:
    made = translated(
        f"merge_method: {name}\nbase_model: b\nmodels: [{{model: b}}]\ndtype: bfloat16\ntokenizer_source: base"
    )
    recipe = made.recipe
    assert (recipe.parameters, recipe.vocabulary) == ({}, Vocabulary("b"))
    assert (recipe.method, recipe.base, recipe.models, recipe.dtype) == ("passthrough", None, ("b",), "BF16")
    assert "the base is the only model: copied" in made.notes


def test_peer_exact_reproduces_harmless_defects(translated: Callable[..., Translation]) -> None:
    text = "merge_method: {}\nbase_model: b\nmodels: [{{model: a}}]\ndtype: bfloat16\n"
    assert translated(text.format("sce")).recipe.parameters["select_topk"] == 1.0
    assert translated(text.format("sce"), peer_exact=True).recipe.parameters["peer_floor"] is True
    wide = translated(text.format("ramplus_tl"), peer_exact=True)
    assert (wide.recipe.dtype, wide.recipe.compute_dtype) == ("F32", "bfloat16")
    narrow = translated(text.format("ramplus_tl"))
    assert narrow.recipe.dtype == "BF16"
    assert any("float32" in n for n in narrow.notes) > any("writes float32" in n for n in wide.notes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("merge_method: tise\nmodels: [{model: a}]", "line 1: unknown merge_method 'tise'; did you mean 'ties'?"),
        ("merge_method: linear\nmodels: [{model: a}]", "line 2: linear: model 'a': parameter 'weight' is missing"),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]\nparameters: {weight: 1}", "model 'a' is given twice"),
        ("merge_method: ties\nmodels: [{model: a}]\nparameters: {weight: 1}", "'base_model' is missing"),
        (
            "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: c}]\nparameters: {t: 1}",
            "expected 2 models",
        ),
        (
            "merge_method: model_stock\nbase_model: b\nmodels: [{model: a}]",
            "expected 2 or more models beside the base, got 1",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: .nan}",
            "expected a finite number, got 'nan'",
        ),
        (
            "merge_method: slerp\nbase_model: b\nslices:\n  - sources: [{model: a, layer_range: [0, 1]},"
            " {model: c, layer_range: [0, 1]}]\nparameters: {t: 1}",
            "the base 'b' is not among the sources",
        ),
        (
            "merge_method: nuslerp\nslices:\n  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n"
            "    parameters: {nuslerp_row_wise: true}\n"
            "  - sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]\n"
            "parameters: {weight: 1, nuslerp_flatten: false}",
            "expected the same in all slices",
        ),
        (
            "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\n"
            "parameters: {weight: 1, nuslerp_flatten: false, nuslerp_row_wise: {filter: mlp, value: true}}",
            "nuslerp_row_wise: expected one value for all tensors",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_its_line(translated: Callable[..., Translation], text: str, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        translated(text)
    assert told in str(error.value)


def test_all_faults_come_together(translated: Callable[..., Translation]) -> None:
    with pytest.raises(RecipeError, match="2 faults"):
        translated("merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {x: 1}")


def slow_task_arithmetic(base: Any, models: list[Any], weights: list[float]) -> Any:
    """The peer's formula in float32, model by model."""
    total = np.zeros_like(base)
    for model, weight in zip(models, weights, strict=True):
        total = total + (model - base) * np.float32(weight)
    return base + total


def test_filters_gradients_and_idle_conditions_merge_as_the_rules_say(
    family: list[Path], tmp_path: Path, load_arrays: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    base, a, b = family
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"""\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {a}
    parameters:
      weight: [{{filter: self_attn, value: [0, 1]}}, {{filter: no_such_part, value: 9}}, {{filter: mlp, value: 0.5}}]
  - model: {b}
parameters: {{weight: 0.25}}
dtype: float32
"""
    )
    result = weightsmith.merge(recipe, out=tmp_path / "out")
    assert any("'no_such_part' fits no tensor" in n for n in result.record["notes"])
    start, first, second = (load_arrays(folder) for folder in family)
    for name, merged in load_arrays(tmp_path / "out").items():
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        weight = layer / 2 if layer is not None and "self_attn" in name else 0.5 if "mlp" in name else 0.25
        expected = slow_task_arithmetic(start[name], [first[name], second[name]], [weight, 0.25])
        np.testing.assert_array_equal(merged, expected, err_msg=name)
