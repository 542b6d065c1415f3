"""What a plan says that a run reads and holds, against what a run does."""

from __future__ import annotations

import json
import threading
import tracemalloc

import numpy as np
import pytest

import weightsmith
from weightsmith import Options, make_plan
from weightsmith.checkpoint.read import Files
from weightsmith.engine.whole import matrix_bytes
from weightsmith.matrices import Given, Matrices
from weightsmith.merge import METHODS
from weightsmith.method import Tile, reduce_in_memory
from weightsmith.run import make_recipe

BY_NAME = {m.name: m for m in METHODS}
SHAPES = {"wide": (24, 40), "tall": (130, 20), "convolution": (8, 4, 3, 3), "norm": (24,)}
SETTINGS = [
    ("tsv_m", {}),
    ("tsv_m", {"algorithm": "randomized"}),
    ("iso_c", {}),
    ("iso_cts", {}),
    ("iso_cts", {"common": 1.0}),
    ("wudi", {"steps": 2}),
    ("wudi", {"solver": "closed"}),
    ("doge", {"steps": 2}),
    ("doge", {"steps": 2, "scope": "tensor"}),
    ("knots", {}),
    ("knots", {"merge": "sum"}),
    ("delta_svd", {"rank": 3}),
    ("nuslerp_columns", {}),
    ("nuslerp_columns_base", {}),
    ("model_stock", {}),
]


@pytest.fixture
def models(tmp_path, save_arrays):
    """A base and three models, with matrices of each form."""
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    made = [
        base,
        *({n: a + rng.standard_normal(a.shape).astype(np.float32) / 8 for n, a in base.items()} for _ in "abc"),
    ]
    return [save_arrays(tmp_path / f"m{i}", arrays) for i, arrays in enumerate(made)]


@pytest.fixture
def adapters(tmp_path, save_arrays):
    """A base of two matrices and one vector, and adapters of different ranks on the first matrix."""
    rng = np.random.default_rng(1)
    shapes = {"a.weight": (60, 50), "b.weight": (20, 30), "norm.weight": (60,)}
    base = save_arrays(tmp_path / "base", {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    for rank in (2, 3, 4):
        folder = tmp_path / f"adapter{rank}"
        prefix = "base_model.model.a."
        down, up = (rng.standard_normal(s).astype(np.float32) for s in ((rank, 50), (60, rank)))
        save_arrays(folder, {f"{prefix}lora_A.weight": down, f"{prefix}lora_B.weight": up})
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["a"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return [base, *(f"{base}+{tmp_path / f'adapter{rank}'}" for rank in (2, 3, 4))]


def read_by_a_run(monkeypatch, recipe_of, tmp_path):
    """Return the plan of a merge, and the bytes of tensors that its run reads."""
    plan = make_plan(make_recipe(**recipe_of), Options(force_base=True))
    lock, counted, plain = threading.Lock(), [0], Files.pread_into

    def count(self, path, offset, target):
        with lock:
            counted[0] += target.nbytes
        plain(self, path, offset, target)

    monkeypatch.setattr(Files, "pread_into", count)
    seen = []
    weightsmith.merge(
        out=tmp_path / "out",
        options=Options(force_base=True),
        progress=lambda stage, done, total: seen.append((done, total)),
        **recipe_of,
    )
    assert seen[-1] == (plan.bytes_read, plan.bytes_read)
    return plan, counted[0]


@pytest.mark.parametrize(("method", "parameters"), SETTINGS, ids=str)
def test_a_run_reads_what_the_plan_says(models, tmp_path, monkeypatch, method, parameters):
    chosen = BY_NAME[method]
    base, given = (models[0], models[1:]) if chosen.has_base else (None, models[1:])
    given = given[: chosen.most]
    recipe = {"method": method, "base": base and str(base), "models": [str(m) for m in given], **parameters}
    plan, counted = read_by_a_run(monkeypatch, recipe, tmp_path)
    assert counted == plan.bytes_read


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("method", ["knots", "tsv_m", "iso_c", "delta_svd"])
def test_of_adapters_a_run_reads_the_factors(adapters, tmp_path, monkeypatch, method, count):
    base, *models = adapters
    recipe = {"method": method, "base": str(base), "models": models[:count]}
    plan, counted = read_by_a_run(monkeypatch, recipe, tmp_path)
    assert counted == plan.bytes_read
    whole, vectors, factors = 60 * 50 + 20 * 30, (1 + count) * 60, (60 + 50) * sum((2, 3, 4)[:count])
    assert counted == 4 * (whole + vectors + factors)  # of matrices the base's alone


@pytest.mark.parametrize("shape", [(160, 160), (80, 240), (240, 80)], ids=str)
@pytest.mark.parametrize(("method", "parameters"), [s for s in SETTINGS if BY_NAME[s[0]].reach == "matrix"], ids=str)
def test_a_matrix_takes_no_more_memory_than_the_plan_says_and_not_far_less(method, parameters, shape):
    chosen, rng = BY_NAME[method], np.random.default_rng(0)
    stack = rng.standard_normal((2, *shape)).astype(np.float32)
    checked = chosen.check(parameters, 2)
    base = np.ones(shape, np.float32) if chosen.has_base else None
    where = Tile(shape=shape)
    if method == "doge":
        where = Tile(
            shape=shape, statistics=reduce_in_memory(chosen.statistics(checked), base, stack.reshape(2, -1), where)
        )
    matrices = Matrices(2, shape, lambda t: stack[t].copy())
    chosen.apply_matrix(base, matrices, checked, where)  # the loops are compiled
    tracemalloc.start()
    chosen.apply_matrix(base, matrices, checked, where)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    need = chosen.need(Given(*shape, (None, None), checked))
    said = stack[0].size * (3 * 4 + 8 * need.held)
    assert 0.25 * said < used < said  # what LAPACK holds for itself is not traced


def test_knots_of_adapters_has_room_for_all_threads(tmp_path, save_arrays):
    base = save_arrays(tmp_path / "base", {"a.weight": np.zeros((1000, 1000), np.float32)})
    factors = {"lora_A.weight": np.zeros((4, 1000), np.float32), "lora_B.weight": np.zeros((1000, 4), np.float32)}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["a"]}
    adapters, models = [], []
    for i in range(2):
        folder = save_arrays(tmp_path / f"adapter{i}", {f"base_model.model.a.{n}": a for n, a in factors.items()})
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
        adapters.append(f"{base}+{folder}")
        models.append(str(save_arrays(tmp_path / f"model{i}", {"a.weight": np.ones((1000, 1000), np.float32)})))
    options = Options(memory_bytes=350_000_000, threads=4)
    plans = [make_plan(make_recipe("knots", base=str(base), models=given), options) for given in (adapters, models)]
    at_once = [p.job.limits.room_bytes // max(matrix_bytes(p.method, w, wide=False) for w in p.merged) for p in plans]
    assert at_once == [4, 1]
    assert plans[0].bytes_read < plans[1].bytes_read / 5
