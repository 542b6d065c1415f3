"""The path through torch: the same bytes as the compiled loops. A CUDA device itself is tested where there is one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from weightsmith.device import Device, find_device
from weightsmith.errors import ArgumentError, ResourceError
from weightsmith.plan import make_plan
from weightsmith.recipe import Recipe
from weightsmith.run import execute


@pytest.fixture
def family(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"layers.{i}.w": rng.standard_normal((64, 100), dtype=np.float32) for i in range(3)}
    models = {"base": base}
    for i in range(3):
        models[f"m{i}"] = {n: v + 0.1 * rng.standard_normal(v.shape, dtype=np.float32) for n, v in base.items()}
    for name, tensors in models.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path


def devices():
    yield Device(torch.device("cpu"))
    if torch.cuda.is_available():
        yield find_device("cuda")


@pytest.mark.parametrize("device", list(devices()), ids=lambda d: d.torch_device.type)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {"lambda_": 0.3}),
        ("ties", {"scope": "model"}),
        ("ties", {"scope": "tensor", "merge": "max"}),
        ("breadcrumbs", {"scope": "row", "density": 0.5, "drop_top": 0.1}),
        ("dare", {"seed": 3}),
        ("dare_ties", {}),
        ("lines", {"merged": "ties"}),
        ("consensus", {}),
        ("tall_masks", {"task": 2}),
    ],
)
def test_torch_gives_the_compiled_bytes(family, device, method, parameters):
    recipe = Recipe(method, tuple(str(family / f"m{i}") for i in range(3)), str(family / "base"), parameters=parameters)
    plan = make_plan(recipe)
    compiled = execute(plan, family / "compiled").record["outputs"][0]["sha256"]
    job = replace(plan.job, device=device)
    eager = execute(replace(plan, job=job), family / "eager").record["outputs"][0]["sha256"]
    assert eager == compiled


def test_unknown_device():
    with pytest.raises(ArgumentError, match="cpu, cuda or cuda:N"):
        find_device("gpu0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_names_the_way_out():
    with pytest.raises(ResourceError, match="Use --device cpu"):
        find_device("cuda")
