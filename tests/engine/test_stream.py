"""The engine: what happens when something is wrong, and what it stores."""

import math
import os
import threading

import pytest
import torch

import weightsmith
from weightsmith.engine.stream import Piece, Worker
from weightsmith.errors import MismatchError, NonFiniteError, ResourceError
from weightsmith.plan import Options

NAMES = ("layers.0.w", "layers.1.w")


def two_models(save_model, root, *, dtype=torch.float32, spoil=None):
    base = {n: torch.linspace(1, 2, 20_000).to(dtype) for n in NAMES}
    model = {n: t * 1.125 for n, t in base.items()}
    if spoil:
        spoil(base, model)
    return save_model(root / "base", base), save_model(root / "model", model)


def left_behind(root):
    return sorted(p.name for p in root.iterdir() if p.name not in ("base", "model"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["base", "model"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "lines"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nonfinite_input_is_refused_by_name_and_place(bad, which, method, dtype, tmp_path, save_model):
    def spoil(base, model):
        (base if which == "base" else model)[NAMES[1]][[12_345, 15_000]] = bad

    base, model = two_models(save_model, tmp_path, dtype=dtype, spoil=spoil)
    with pytest.raises(NonFiniteError) as caught:
        weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out")
    text = str(caught.value)
    assert f"{which}/model.safetensors" in text
    assert f"'{NAMES[1]}'" in text
    assert f"{bad} at flat index 12345" in text
    assert "--allow-nonfinite" in text
    assert left_behind(tmp_path) == []


def test_nonfinite_input_may_be_allowed(tmp_path, save_model, load_model):
    def spoil(base, model):
        model[NAMES[1]][12_345] = math.inf

    base, model = two_models(save_model, tmp_path, spoil=spoil)
    options = Options(allow_nonfinite=True, force_base=True)
    weightsmith.merge("task_arithmetic", base=base, models=[model], out=tmp_path / "out", options=options)
    merged = load_model(tmp_path / "out")[NAMES[1]]
    assert merged[12_345] == math.inf
    assert torch.isfinite(merged).sum() == 19_999


@pytest.mark.parametrize("method", ["iso_c", "tsv_m"])
def test_a_matrix_must_be_finite_even_where_nonfinite_numbers_are_allowed(method, tmp_path, save_model):
    weights = {"w": torch.ones(3, 4)}
    base = save_model(tmp_path / "base", weights)
    model = save_model(tmp_path / "model", {"w": torch.full((3, 4), math.nan)})
    options = Options(allow_nonfinite=True)
    with pytest.raises(NonFiniteError) as caught:
        weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out", options=options)
    assert "model.safetensors: tensor 'w'" in str(caught.value)
    assert "--copy" in str(caught.value)
    assert "--allow-nonfinite" not in str(caught.value)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("stage", ["compute", "store", "load"])
@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_a_thread_stops_the_run_and_leaves_nothing(stage, threads, tmp_path, save_model, monkeypatch):
    base, model = two_models(save_model, tmp_path)
    original = getattr(Worker, stage)

    def failing(self, work, *rest):
        name = work.work.name if isinstance(work, Piece) else work.name
        if name == NAMES[1]:
            raise ResourceError("the disk is on fire")
        return original(self, work, *rest)

    monkeypatch.setattr(Worker, stage, failing)
    running = threading.active_count()
    with pytest.raises(ResourceError, match="on fire"):
        weightsmith.merge(
            "task_arithmetic", base=base, models=[model], out=tmp_path / "out", options=Options(threads=threads)
        )
    assert left_behind(tmp_path) == []
    assert threading.active_count() == running


def test_a_run_that_succeeds_closes_its_files(tmp_path, save_model):
    base, model = two_models(save_model, tmp_path)
    weightsmith.merge("ties", base=base, models=[model], out=tmp_path / "first")
    before = len(os.listdir("/proc/self/fd"))
    weightsmith.merge("ties", base=base, models=[model], out=tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("method", ["task_arithmetic", "wise_ft"])
def test_a_base_that_is_not_the_base_is_refused(method, tmp_path, save_model):
    def spoil(base, model):
        for name in NAMES:
            model[name] = base[name] * -1.0

    base, model = two_models(save_model, tmp_path, spoil=spoil)
    with pytest.raises(MismatchError) as caught:
        weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out")
    assert str(model) in str(caught.value)
    assert "2.00 times" in str(caught.value)  # |-b - b| = 2 |b|
    assert "force_base=True" in str(caught.value)
    assert left_behind(tmp_path) == []
    options = Options(force_base=True)
    weightsmith.merge(method, base=base, models=[model], out=tmp_path / "out", options=options)
    assert "out" in left_behind(tmp_path)


def test_the_wrong_model_is_named(tmp_path, save_model):
    base, model = two_models(save_model, tmp_path)
    wrong = save_model(tmp_path / "wrong", {n: torch.full((20_000,), 50.0) for n in NAMES})
    with pytest.raises(MismatchError, match="wrong"):
        weightsmith.merge("ties", base=base, models=[model, wrong], out=tmp_path / "out")


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1e5), ("bfloat16", 1.699e38)])
def test_a_result_beyond_its_dtype_is_refused(dtype, factor, tmp_path, save_model, load_model):
    base, model = two_models(save_model, tmp_path)
    given = {"models": [base, model], "coefficients": (factor, 0.0), "normalize": False}
    with pytest.raises(NonFiniteError) as caught:
        weightsmith.merge("linear", out=tmp_path / "out", dtype=dtype, **given)
    assert f"'{NAMES[0]}'" in str(caught.value)
    assert {"float16": "F16", "bfloat16": "BF16"}[dtype] in str(caught.value)
    assert "flat index" in str(caught.value)
    assert left_behind(tmp_path) == []
    weightsmith.merge("linear", out=tmp_path / "out", dtype="float64" if dtype == "bfloat16" else "float32", **given)
    assert torch.isfinite(load_model(tmp_path / "out")[NAMES[0]]).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_output_dtype(dtype, tmp_path, save_model, load_model):
    base, model = two_models(save_model, tmp_path)
    weightsmith.merge("wise_ft", base=base, models=[model], lambda_=0.5, dtype=dtype, out=tmp_path / "out")
    merged = load_model(tmp_path / "out")
    exact = load_model(base)[NAMES[0]] + 0.5 * (load_model(model)[NAMES[0]] - load_model(base)[NAMES[0]])
    assert merged[NAMES[0]].dtype == getattr(torch, dtype)
    assert torch.equal(merged[NAMES[0]], exact.to(getattr(torch, dtype)))


def test_integers_are_copied_from_the_first_input(tmp_path, save_model, load_model):
    def spoil(base, model):
        base["position_ids"], model["position_ids"] = torch.arange(5), torch.arange(5) + 7
        base["mask"], model["mask"] = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
        base["count"], model["count"] = torch.tensor(3), torch.tensor(9)

    base, model = two_models(save_model, tmp_path, spoil=spoil)
    result = weightsmith.merge("task_arithmetic", base=base, models=[model], out=tmp_path / "out")
    merged = load_model(tmp_path / "out")
    for name in ("position_ids", "mask", "count"):
        assert torch.equal(merged[name], load_model(base)[name])
    assert {c["name"] for c in result.record["tensors"]["copied"]} == {"position_ids", "mask", "count"}
