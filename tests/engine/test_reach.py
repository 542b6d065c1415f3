"""Methods that see whole rows or whole matrices, through the engine."""

import numpy as np
import pytest
import torch

import weightsmith
import weightsmith.plan.headers as planning
from weightsmith.engine.whole import matrix_bytes
from weightsmith.matrices import Given, Matrices, Need
from weightsmith.method import Method, Tile, method
from weightsmith.plan import Options
from weightsmith.run import make_recipe

# Toy methods: what they compute shows what they were given.


def add_mean(base, task_vectors, *, tile):
    return base + task_vectors.mean(0)


@method(reach="matrix", vectors=add_mean, matrices=2)
def turned(base, task_vectors, *, tile):
    """Subtract from the base the sum of each row's task vectors, so that the whole row is needed."""
    total = sum(np.asarray(m).sum(1, keepdims=True) for m in task_vectors)
    return base - total * base.shape[0]


@method(reach="row")
def spread(finetuned, *, tile):
    """Give every entry its row's maximum over all models."""
    rows = finetuned.reshape(len(finetuned), -1, tile.row_length)
    top = rows.max(-1, keepdims=True).max(0) if isinstance(rows, np.ndarray) else rows.amax((0, 2))[:, None]
    return (top + 0 * rows[0]).reshape(-1)


@pytest.fixture
def models(tmp_path, save_model):
    rng = np.random.default_rng(0)
    shapes = {"layers.0.w": (300, 70), "layers.1.conv": (5, 4, 3, 3), "norm": (50,), "one": ()}
    made = []
    for i in range(4):
        tensors = {n: torch.from_numpy(np.array(rng.standard_normal(s), np.float32)) for n, s in shapes.items()}
        made.append((save_model(tmp_path / f"m{i}", tensors), tensors))
    return made


def run(monkeypatch, chosen, models, out, load_model, **options):
    monkeypatch.setattr(planning, "METHODS", (chosen,))
    base = {"base": models[0][0]} if chosen.has_base else {}
    given = models[1:] if chosen.has_base else models
    weightsmith.merge(
        chosen.name, models=[m for m, _ in given], out=out, options=Options(force_base=True, **options), **base
    )
    return load_model(out)


def test_matrices_are_whole_and_vectors_go_element_by_element(models, tmp_path, monkeypatch, load_model):
    found = run(monkeypatch, turned, models, tmp_path / "out", load_model)
    base, *others = [t for _, t in models]
    for name in ("layers.0.w", "layers.1.conv"):
        b, *o = [t[name].numpy().reshape(t[name].shape[0], -1) for t in (base, *others)]
        expected = b - sum((x - b).sum(1, keepdims=True) for x in o) * len(b)
        np.testing.assert_array_equal(found[name].numpy().reshape(expected.shape), expected)
    for name in ("norm", "one"):
        b, *o = [t[name].numpy() for t in (base, *others)]
        np.testing.assert_allclose(found[name].numpy(), b + np.mean([x - b for x in o], 0), rtol=1e-6)


def test_bytes_do_not_depend_on_threads_and_memory(models, tmp_path, monkeypatch, load_model):
    found = [
        run(monkeypatch, chosen, models, tmp_path / f"{chosen.name}{i}", load_model, **options)
        for chosen in (turned, spread)
        for i, options in enumerate([{"threads": 1}, {"threads": 3}, {"memory_bytes": 200_000_000}])
    ]
    for i in (0, 3):
        for other in found[i + 1 : i + 3]:
            assert all(torch.equal(found[i][n], other[n]) for n in found[i])


def test_rows_are_whole(models, tmp_path, monkeypatch, load_model):
    found = run(monkeypatch, spread, models, tmp_path / "out", load_model)
    for name, tensor in found.items():
        stack = torch.stack([t[name] for _, t in models])
        expected = stack.amax(0) if tensor.dim() == 0 else stack.amax(0).amax(-1, keepdim=True).expand_as(tensor)
        assert torch.equal(tensor, expected), name


def test_a_matrix_larger_than_the_budget_is_planned_openly(models, monkeypatch):
    wide = Method(turned.function, None, "tensor", 1, None, "matrix", add_mean, 2000)
    monkeypatch.setattr(planning, "METHODS", (wide,))
    recipe = make_recipe("turned", base=models[0][0], models=[m for m, _ in models[1:]])
    plan = weightsmith.make_plan(recipe, Options(memory_bytes=220_000_000, threads=3))
    largest = max(matrix_bytes(wide, w, wide=False) for w in plan.merged)
    assert plan.job.limits.room_bytes == largest > 300 * 70 * 2000 * 8 > 220_000_000
    assert plan.job.limits.threads == 3  # for all that is smaller
    assert largest < plan.job.limits.peak_bytes < largest + 220_000_000


def test_in_memory_call_sees_the_same():
    base = np.arange(6.0).reshape(2, 3)
    result = turned(base, [np.ones((2, 3)), np.zeros((2, 3))])
    assert result.tolist() == (base - 3 * 2).tolist()
    assert turned(np.ones(2), [np.ones(2), np.zeros(2)]).tolist() == [1.5, 1.5]


def test_verify_computes_matrices_anew(models, tmp_path, monkeypatch, load_model):
    run(monkeypatch, turned, models, tmp_path / "out", load_model)
    found = weightsmith.verify(tmp_path / "out")
    assert found.is_sound, found.findings
    assert found.recomputed >= 300 * 70


def test_matrices_is_a_lazy_sequence():
    asked = []

    def load(index):
        asked.append(index)
        return np.full((1, 2), float(index))

    made = Matrices(3, (1, 2), load)
    assert len(made) == 3
    assert asked == []
    assert [m[0, 0] for m in made] == [0.0, 1.0, 2.0]
    assert made[-1][0, 1] == 2.0
    assert len(made[1:]) == 2
    assert made.factors(0) is None
    with pytest.raises(IndexError):
        made[3]


def test_factors_of_an_adapter_are_given(tmp_path, save_model, monkeypatch, load_model):
    import json

    rng = np.random.default_rng(1)
    base = {n: torch.from_numpy(np.array(rng.standard_normal((20, 30)), np.float32)) for n in ("a.weight", "b.weight")}
    save_model(tmp_path / "base", base)
    down, up = (torch.from_numpy(np.array(rng.standard_normal(s) / 8, np.float32)) for s in ((4, 30), (20, 4)))
    save_model(
        tmp_path / "adapter",
        {"base_model.model.a.lora_A.weight": down, "base_model.model.a.lora_B.weight": up},
    )
    (tmp_path / "adapter" / "model.safetensors").rename(tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["a"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    seen = {}

    def look(base, task_vectors, *, tile):
        seen[tile.name] = task_vectors.factors(0)
        return base

    looking = Method(look, None, "tensor", 1, None, "matrix", lambda base, task_vectors, *, tile: base, 0)
    monkeypatch.setattr(planning, "METHODS", (looking,))
    weightsmith.merge(
        "look", base=tmp_path / "base", models=[f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"], out=tmp_path / "out"
    )
    left, right = seen["a.weight"]
    np.testing.assert_allclose(left @ right, 2.0 * (up @ down).numpy(), rtol=1e-5, atol=1e-6)
    assert seen["b.weight"][0].shape == (20, 0)
    assert isinstance(Tile(), Tile)


def test_a_method_may_say_what_it_needs_by_shape_and_models():
    def need(given):
        return Need(len(given.ranks) + given.short, given.whole(), factors=2)

    by_shape = Method(turned.function, None, "tensor", 1, None, "matrix", add_mean, need)
    assert by_shape.need(Given(8, 4, (None, 3, None), {})) == Need(3.5, (1, 0, 1), factors=2)
    assert turned.need(Given(3, 5, (None, 0), {})) == Need(2, (1, 1))


def test_what_is_known_of_factors_by_headers_alone():
    assert Given(8, 4, (2, 3, 0), {}).factored == 5
    assert Given(8, 4, (2, 3, 0), {}).thin == 5 * (8 + 4) / 32
    assert Given(8, 4, (2, None), {}).factored is None
    assert Given(8, 4, (2, None), {}).thin == 0
