"""Plans: every tensor accounted for, every mismatch told at once, and numbers that the run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from weightsmith import Options, make_plan, merge
from weightsmith.checkpoint.read import Files
from weightsmith.errors import ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError
from weightsmith.recipe import Recipe, Rule, Schedule
from weightsmith.recipe.text import parse_recipe
from weightsmith.run import make_recipe

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def plan_of(method, *folders, options=None, **given):
    """Plan a merge of folders, the first being the base where the method has one."""
    from weightsmith.plan.headers import find_method

    names = [str(f) for f in folders]
    base, models = (names[0], names[1:]) if find_method(method).has_base else (None, names)
    return make_plan(make_recipe(method, base=base, models=models, **given), options)


def accounted(plan):
    """Assert that the plan says of every tensor of every input what becomes of it."""
    used = [set() for _ in plan.inputs]
    kept = {w.name for w in plan.works}
    for work in plan.works:
        for entry in work.inputs:
            for seen, checkpoint in zip(used, plan.inputs, strict=True):
                if checkpoint.tensors.get(entry.name) is entry:
                    seen.add(entry.name)
    for dropped in plan.dropped:
        assert dropped.reason
        used[dropped.model].add(dropped.name)
    for seen, checkpoint in zip(used, plan.inputs, strict=True):
        # A copied tensor is the first input's; the same name in the others is accounted for by it.
        lost = set(checkpoint.tensors) - seen - kept
        assert not lost, f"{checkpoint.reference}: nothing says what becomes of {sorted(lost)}"


def refused(*arguments, error=MismatchError, **given):
    with pytest.raises(error) as caught:
        plan_of(*arguments, **given)
    return str(caught.value)


def rewrite(folder, save_arrays, arrays, config=None):
    (folder / "model.safetensors").unlink()
    return save_arrays(folder, arrays, config=config)


def test_every_tensor_of_every_input_is_accounted_for(tmp_path, save_arrays, make_arrays):
    base = {**make_arrays(), "steps": np.arange(3), "none": np.zeros((0, 4), "float32")}
    model = {**make_arrays(1, make_arrays()), "steps": np.arange(3) + 1, "none": base["none"]}
    model |= {"extra.weight": np.ones(3, "float32"), "extra.bias": np.ones(1, "float32")}
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model)
    plan = plan_of("ties", *folders, copy=["*.norm.*"], drop=["extra.*"])
    accounted(plan)
    assert {w.name: w.reason for w in plan.copied} == {
        "steps": "I64 is not averaged",
        "none": "no elements",
        "model.norm.weight": "copy *.norm.*",
    }
    assert [(d.model, d.name, d.reason) for d in plan.dropped] == [
        (1, "extra.weight", "drop extra.*"),
        (1, "extra.bias", "drop extra.*"),
    ]
    assert len(plan.merged) + len(plan.copied) == len(base)
    assert [w.name for w in plan.works] == list(base)
    assert plan.summary()["merged"] == len(plan.merged)
    json.dumps(plan.summary(), allow_nan=False)


def test_a_plan_reads_headers_alone(family, monkeypatch):
    def read(*_):
        raise AssertionError("a plan read weights")

    monkeypatch.setattr(Files, "pread_into", read)
    plan = plan_of("ties", *family)
    assert plan.merged
    assert plan.bytes_written == sum(w.size * 4 for w in plan.merged)


def test_missing_and_extra_tensors_are_told_with_the_nearest_names(tmp_path, save_arrays, make_arrays):
    base = make_arrays()
    model = dict(base)
    model["model.layers.0.mlp.up_prj.weight"] = model.pop(UP)
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model)
    message = refused("ties", *folders)
    assert message.startswith("merge ties: the inputs do not fit each other: 2 faults:\n")
    assert f"tensor '{UP}' is missing in '{folders[1]}'; did you mean 'model.layers.0.mlp.up_prj.weight'" in message
    assert f"tensor 'model.layers.0.mlp.up_prj.weight' of '{folders[1]}' is not in the first input" in message
    assert f"did you mean '{UP}'" in message
    assert "weightsmith compare A B" in message
    assert "copy=['PATTERN']" in message
    assert "drop=['PATTERN']" in message


def test_a_tensor_missing_in_the_first_input_only_is_told(tmp_path, save_arrays, make_arrays):
    base = make_arrays()
    model = dict(base)
    del base[UP]
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model)
    assert "1 fault:\n" in refused("ties", *folders)
    plan = plan_of("ties", *folders, drop=[UP])
    accounted(plan)
    assert UP not in {w.name for w in plan.works}


def test_a_missing_tensor_may_be_copied(tmp_path, save_arrays, make_arrays):
    base = make_arrays()
    model = {n: a for n, a in base.items() if n != UP}
    plan = plan_of("ties", save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model), copy=[UP])
    accounted(plan)
    assert {w.name: w.reason for w in plan.copied} == {UP: f"copy {UP}"}


def test_dropping_what_the_first_input_has_is_not_a_way_out(family):
    # --drop leaves out tensors that the first input lacks; the output has the first input's names.
    message = None
    try:
        plan = plan_of("ties", *family, drop=[UP])
    except (ArgumentError, MismatchError) as error:
        message = str(error)
    assert message is not None, f"--drop {UP} was accepted and did nothing: {[d.name for d in plan.dropped]}"
    assert UP in message


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((16, 24), "(transposed?)"), ((25, 16), ""), ((24, 17), ""), ((24, 16, 1), "")],
)
def test_shapes_must_agree(tmp_path, save_arrays, make_arrays, shape, hint):
    base = make_arrays()
    model = {**base, UP: np.ones(shape, "float32")}
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model)
    message = refused("ties", *folders)
    assert f"tensor '{UP}' has shape (24, 16) in" in message
    assert f"{shape} in" in message
    assert str(folders[0] / "model.safetensors") in message
    assert str(folders[1] / "model.safetensors") in message
    for word in ("(transposed?)", "(another vocabulary?)"):
        assert (word in message) == (word == hint), message


def test_an_embedding_of_another_length_points_to_vocabularies(tmp_path, save_arrays, make_arrays):
    base = make_arrays()
    model = {**base, EMBEDDING: np.ones((33, 16), "float32")}
    message = refused("ties", save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model))
    assert f"tensor '{EMBEDDING}' has shape (32, 16) in" in message
    assert "(another vocabulary?); `vocabulary:` in a recipe aligns them" in message


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "C64"])
def test_dtypes_without_arithmetic_are_refused_by_name_and_may_be_copied(tmp_path, save_raw, dtype):
    width = 8 if dtype == "C64" else 1
    tensors = {"w": ("F32", (4,), bytes(16)), "scale.w": (dtype, (4,), bytes(4 * width))}
    folders = [save_raw(tmp_path / n / "model.safetensors", tensors).parent for n in "ab"]
    message = refused("linear", *folders)
    assert f"tensor 'scale.w' of a/model.safetensors is {dtype}, which is only copied" in message
    assert "use copy=['scale.w']" in message
    plan = plan_of("linear", *folders, copy=["scale.*"])
    assert [w.name for w in plan.copied] == ["scale.w"]


def test_a_dtype_without_arithmetic_in_one_model_is_told_with_its_file(tmp_path, save_raw):
    folders = [
        save_raw(tmp_path / n / "model.safetensors", {"w": (dtype, (4,), bytes(4 * width))}).parent
        for n, dtype, width in (("a", "F32", 4), ("b", "F8_E4M3", 1))
    ]
    assert "tensor 'w' of b/model.safetensors is F8_E4M3" in refused("linear", *folders)


@pytest.mark.parametrize("dtype", ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"])
def test_integers_are_copied_with_the_reason(tmp_path, save_raw, dtype):
    width = 1 if dtype == "BOOL" else int(dtype[1:]) // 8
    tensors = {"w": ("F32", (4,), bytes(16)), "n": (dtype, (4,), bytes(4 * width))}
    folders = [save_raw(tmp_path / n / "model.safetensors", tensors).parent for n in "ab"]
    assert {w.name: w.reason for w in plan_of("linear", *folders).copied} == {"n": f"{dtype} is not averaged"}


def test_mixed_dtypes_are_computed_widely_and_stored_as_in_the_first(tmp_path, save_arrays, make_arrays):
    arrays = make_arrays()
    folders = [save_arrays(tmp_path / d, {n: a.astype(d) for n, a in arrays.items()}) for d in ("float16", "float64")]
    plan = plan_of("linear", *folders)
    assert {w.dtype for w in plan.works} == {"F16"}
    assert plan.job.compute_dtype == "float64"
    assert {w.dtype for w in plan_of("linear", *folders, dtype="bfloat16").works} == {"BF16"}


def test_all_faults_are_told_together_the_first_ten_and_the_count(tmp_path, save_arrays, save_raw):
    shape = (4,)
    base = {f"layers.{i}.w": np.ones(shape, "float32") for i in range(15)}
    model = {f"layers.{i}.w": np.ones((5,) if i < 3 else shape, "float32") for i in range(13)}
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model)
    message = refused("ties", *folders, copy=[f"no.such.{i}" for i in range(11)])
    assert "16 faults" in message
    assert "  10. " in message
    assert "  11. " not in message
    assert "... and 6 more" in message


def test_a_copy_pattern_that_matches_nothing_is_told(family):
    assert "copy pattern 'head.*' matches no tensor" in refused("ties", *family, copy=["head.*", "*.norm.*"])


def test_a_drop_pattern_that_matches_nothing_is_told(family):
    assert "drop pattern 'head.*' matches no tensor" in refused("ties", *family, drop=["head.*"])


def test_copying_everything_is_refused(family):
    assert "nothing to merge" in refused("ties", *family, copy=["*"])


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize("config", [TIED, {**TIED, "model_type": "llama"}])
def test_a_model_that_ties_its_head_lends_the_embedding(tmp_path, save_arrays, make_arrays, load_arrays, config):
    base, model = make_arrays(), make_arrays(1, make_arrays())
    del model[HEAD]
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model, config=config)
    plan = plan_of("task_arithmetic", *folders)
    accounted(plan)
    (head,) = [w for w in plan.merged if w.name == HEAD]
    assert [e.name for e in head.inputs] == [HEAD, EMBEDDING]
    assert any(f"ties '{HEAD}' to '{EMBEDDING}', which stands in for it" in note for note in plan.notes)
    merge(
        "task_arithmetic", base=folders[0], models=[folders[1]], out=tmp_path / "out", options=Options(force_base=True)
    )
    found = load_arrays(tmp_path / "out")[HEAD]
    assert np.array_equal(found, base[HEAD] + (model[EMBEDDING] - base[HEAD]))


def test_a_first_input_that_ties_its_head_drops_equal_heads(tmp_path, save_arrays, make_arrays, load_arrays):
    base = make_arrays()
    del base[HEAD]
    model = make_arrays(1, make_arrays())
    model[HEAD] = model[EMBEDDING]
    folders = save_arrays(tmp_path / "base", base, config=TIED), save_arrays(tmp_path / "model", model)
    plan = plan_of("task_arithmetic", *folders)
    accounted(plan)
    assert [(d.name, d.reason) for d in plan.dropped] == [
        (HEAD, f"the first input ties it to {EMBEDDING}; checked to be equal")
    ]
    merge("task_arithmetic", base=folders[0], models=[folders[1]], out=tmp_path / "out")
    assert HEAD not in load_arrays(tmp_path / "out")


@pytest.mark.parametrize("where", [0, -1])
def test_a_head_that_differs_from_the_tied_embedding_is_refused(tmp_path, save_arrays, make_arrays, where):
    base = make_arrays()
    del base[HEAD]
    model = make_arrays(1, make_arrays())
    model[HEAD] = model[EMBEDDING].copy()
    model[HEAD].reshape(-1)[where] += 1
    folders = save_arrays(tmp_path / "base", base, config=TIED), save_arrays(tmp_path / "model", model)
    with pytest.raises(MismatchError) as caught:
        merge("task_arithmetic", base=folders[0], models=[folders[1]], out=tmp_path / "out")
    for part in (str(folders[1]), HEAD, EMBEDDING, f"drop=['{HEAD}']"):
        assert part in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists()
    plan = plan_of("task_arithmetic", *folders, drop=[HEAD])
    accounted(plan)
    assert plan.must_equal == ()


def test_an_untied_head_that_only_one_model_has_is_a_fault(tmp_path, save_arrays, make_arrays):
    base, model = make_arrays(), make_arrays(1, make_arrays())
    del model[HEAD]
    folders = save_arrays(tmp_path / "base", base), save_arrays(tmp_path / "model", model)
    assert f"tensor '{HEAD}' is missing" in refused("ties", *folders)


def test_parameters_by_schedule(family):
    schedule = Schedule((Rule("*.mlp.*", (0.0, 1.0)), Rule("*", (0.25,))))
    plan = plan_of("task_arithmetic", *family, lambda_=schedule)
    found = {w.name: w.parameters["lambda_"] for w in plan.merged}
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert {v for n, v in found.items() if ".mlp." not in n} == {0.25}


def test_a_schedule_of_a_whole_model_parameter_is_refused(family):
    schedule = Schedule((Rule("*.mlp.*", (0.5,)), Rule("*", (0.25,))))
    message = refused("ties", *family, density=schedule, error=ArgumentError)
    assert "merge ties: density" in message
    assert "Set scope to tensor" in message
    plan = plan_of("ties", *family, density=schedule, scope="tensor")
    assert {w.parameters["density"] for w in plan.merged} == {0.5, 0.25}


def test_a_schedule_of_a_word_is_refused(family):
    message = refused("ties", *family, scope=Schedule((Rule("*", ("tensor",)),)), error=ArgumentError)
    assert "one value for all tensors" in message


def test_a_schedule_of_an_unknown_parameter_is_refused(family):
    message = refused("ties", *family, densty=Schedule((Rule("*", (0.5,)),)), error=ArgumentError)
    assert "unknown parameter 'densty'" in message
    assert "Did you mean 'density'?" in message


@pytest.mark.parametrize("values", [(0.5, 2.0), (0.5, -1.0)])
def test_schedule_values_out_of_bounds_are_told_once(family, values):
    schedule = Schedule((Rule("*", values),))
    message = refused("ties", *family, density=schedule, scope="tensor", error=ArgumentError)
    assert message == f"merge ties: density; expected a number in (0, 1]; got {values[1]}."


def test_tensors_that_no_rule_matches_are_told_together(family):
    schedule = Schedule((Rule("*.mlp.*", (0.5,)),))
    message = refused("task_arithmetic", *family, lambda_=schedule)
    assert "6 faults" in message
    assert "End the list with a plain value" in message


@pytest.mark.parametrize(
    ("method", "given", "passes"),
    [
        ("linear", {}, 1),
        ("task_arithmetic", {}, 1),
        ("slerp", {}, 1),  # every tensor fits in a tile: its sums are formed in memory
        ("ties", {}, 4),
        ("ties", {"scope": "tensor"}, 1),
        ("breadcrumbs", {}, 1),
        ("breadcrumbs", {"scope": "row"}, 1),
        ("dare", {}, 1),
        ("lines", {"merged": "sum"}, 1),
        ("lines", {"merged": "ties", "alpha": 0.2}, 4),
        ("lines", {"merged": "ties"}, 5),
    ],
)
def test_passes_and_bytes_are_those_of_the_run(family, tmp_path, monkeypatch, method, given, passes):
    folders = family[:2] if method == "slerp" else family
    plan = plan_of(method, *folders, **given)
    read = []
    pread_into = Files.pread_into
    monkeypatch.setattr(Files, "pread_into", lambda s, p, o, t: (read.append(t.nbytes), pread_into(s, p, o, t))[1])
    base, models = (folders[0], folders[1:]) if plan.method.has_base else (None, folders)
    # Samples that check the base come on top; --force-base leaves them out.
    result = merge(
        method, base=base, models=models, out=tmp_path / "out", options=Options(force_base=True, threads=2), **given
    )
    assert plan.passes == passes
    assert (result.bytes_read, result.bytes_written) == (plan.bytes_read, plan.bytes_written)
    size = sum(e.nbytes for c in plan.inputs for e in c.tensors.values())
    assert plan.bytes_read == passes * size
    # Entries equal to a threshold may be looked for once more, in a part of the model.
    assert plan.bytes_read <= sum(read) <= plan.bytes_read + (size if passes > 1 else 0), (sum(read), plan.bytes_read)
    assert plan.bytes_written == sum(
        p.stat().st_size - 8 - int.from_bytes(p.read_bytes()[:8], "little")
        for p in (tmp_path / "out").glob("*.safetensors")
    )


def test_float64_is_counted_in_more_passes(tmp_path, save_arrays, make_arrays, monkeypatch):
    base = make_arrays(dtype="float64")
    folders = [save_arrays(tmp_path / f"m{i}", make_arrays(i, base, "float64") if i else base) for i in range(3)]
    plan = plan_of("ties", *folders)
    read = []
    pread_into = Files.pread_into
    monkeypatch.setattr(Files, "pread_into", lambda s, p, o, t: (read.append(t.nbytes), pread_into(s, p, o, t))[1])
    merge("ties", base=folders[0], models=folders[1:], out=tmp_path / "out", options=Options(force_base=True))
    size = sum(e.nbytes for c in plan.inputs for e in c.tensors.values())
    assert plan.passes == 6
    assert plan.bytes_read <= sum(read) <= plan.bytes_read + size


def test_peak_memory_is_predicted_within_the_budget(family):
    small = plan_of("ties", *family, options=Options(memory_bytes=250_000_000, threads=2))
    large = plan_of("ties", *family, options=Options(memory_bytes=2_000_000_000, threads=2))
    assert small.job.limits.peak_bytes <= 250_000_000
    assert small.job.limits.peak_bytes < large.job.limits.peak_bytes <= 2_000_000_000
    assert large.summary()["peak_memory_bytes"] == large.job.limits.peak_bytes


def test_a_budget_below_the_need_is_refused_with_the_need(family):
    message = refused("ties", *family, options=Options(memory_bytes=1_000_000), error=ResourceError)
    assert "--memory is too small" in message
    assert "got 1 MB" in message
    need = int(message.split("Pass --memory ")[1].split("MB")[0]) * 1_000_000
    assert plan_of("ties", *family, options=Options(memory_bytes=need)).job.limits.peak_bytes <= need
    with pytest.raises(ResourceError):
        plan_of("ties", *family, options=Options(memory_bytes=need - 1_000_000))


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (("ties", ("a",), None), "merge ties: the base is missing. Give base=MODEL"),
        (("linear", ("a", "b"), "base"), "merge linear takes no base. Leave it out"),
        (("slerp", ("a",), None), "number of models; expected 2"),
        (("slerp", ("a", "b", "base"), None), "number of models; expected 2"),
        (("tise", ("a",), "base"), "unknown method 'tise'. Did you mean 'ties'"),
    ],
)
def test_recipes_that_do_not_fit_the_method(family, monkeypatch, recipe, told):
    monkeypatch.chdir(family[0].parent)
    method, models, base = recipe
    with pytest.raises(ArgumentError) as caught:
        make_plan(Recipe(method, models, base=base))
    assert told.lower() in str(caught.value).lower(), str(caught.value)


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("ties", {"densty": 0.2}, "unknown parameter 'densty'"),
        ("ties", {"density": 0.0}, "merge ties: density; expected a number in (0, 1]; got 0.0"),
        ("ties", {"density": 1.5}, "merge ties: density; expected a number in (0, 1]; got 1.5"),
        ("ties", {"density": float("nan")}, "merge ties: density; expected a number in (0, 1]; got nan"),
        ("ties", {"density": "0.2"}, "got '0.2'"),
        ("ties", {"scope": "tenser"}, "Did you mean 'tensor'?"),
        ("ties", {"coefficients": (1.0, 2.0)}, "merge ties takes no coefficients"),
        ("dare", {"coefficients": (1.0,)}, "merge dare: coefficients; expected 2, one per model; got 1"),
        ("dare", {"seed": -1}, "merge dare: seed"),
        ("tall_masks", {"task": 3}, "merge tall_masks: task; expected 1 to 2; got 3"),
    ],
)
def test_bad_parameters(family, method, given, told):
    message = refused(method, *family, error=ArgumentError, **given)
    assert told in message


@pytest.mark.parametrize(
    "models", [("a", "a"), ("a", "./a"), ("a", "ABSOLUTE"), ("a", "base"), ("a", "./base"), ("a", "LINK")]
)
def test_the_same_model_twice_or_the_base_among_the_models_is_refused(family, monkeypatch, models):
    monkeypatch.chdir(family[0].parent)
    Path("link").symlink_to("a")
    models = tuple({"ABSOLUTE": str(family[1]), "LINK": "link"}.get(m, m) for m in models)
    with pytest.raises(ArgumentError) as caught:
        make_plan(make_recipe("ties", base="base", models=models))
    assert models[1] in str(caught.value)
    with pytest.raises(ArgumentError):
        make_plan(Recipe("ties", models, base="base"))


def test_no_models_is_refused(family):
    message = refused("ties", family[0], error=ArgumentError)
    assert "number of models; expected 1 or more" in message


def test_faults_of_several_inputs_are_told_together(family):
    for folder in family[1:]:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(100)
    message = refused("ties", *family, error=CheckpointError)
    assert "merge ties: the inputs cannot be used: 2 faults" in message
    assert all(str(f) in message for f in family[1:])


def test_names_with_control_characters_are_refused_escaped(tmp_path, save_arrays):
    arrays = {"w": np.ones(3, "float32"), "a\x1b[31mb": np.ones(3, "float32"), "\u202egnp": np.ones(3, "float32")}
    folders = [save_arrays(tmp_path / n, arrays) for n in "ab"]
    message = refused("linear", *folders)
    assert "tensor 'a\\x1b[31mb' has control characters in its name" in message
    assert "\\u202e" in message
    assert "\x1b" not in message


def test_a_recipe_file_gives_the_plan_that_arguments_give(family):
    base, a, b = family
    text = f"method: ties\nbase: {base}\nmodels: [{a}, {b}]\nparameters: {{density: 0.3}}\ncopy: ['*.norm.*']\n"
    first = make_plan(parse_recipe(text)).summary()
    assert first == plan_of("ties", *family, density=0.3, copy=["*.norm.*"]).summary()


def test_a_base_from_which_the_models_do_not_come_is_refused(tmp_path, save_arrays, make_arrays):
    folders = [save_arrays(tmp_path / f"m{i}", make_arrays(i)) for i in range(2)]
    with pytest.raises(MismatchError) as caught:
        merge("task_arithmetic", base=folders[0], models=[folders[1]], out=tmp_path / "out")
    for part in (str(folders[1]), "does not seem to be trained from the base", "force_base=True"):
        assert part in str(caught.value)
    merge(
        "task_arithmetic", base=folders[0], models=[folders[1]], out=tmp_path / "out", options=Options(force_base=True)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_inputs_are_refused_with_count_and_first_index(family, tmp_path, save_arrays, make_arrays, value):
    arrays = make_arrays(1, make_arrays())
    arrays[UP].reshape(-1)[[7, 9]] = value
    rewrite(family[1], save_arrays, arrays)
    with pytest.raises(NonFiniteError) as caught:
        merge("ties", base=family[0], models=family[1:], out=tmp_path / "out")
    for part in (str(family[1]), UP, "at flat index 7", "2 of", "--allow-nonfinite"):
        assert part in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists()
