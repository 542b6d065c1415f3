"""A base and three models whose numbers are multiples of 1/64, so that every sum is exact."""

import numpy as np
import pytest

from weightsmith import Options

SHAPES = {
    "model.embed_tokens.weight": (8, 6),
    "model.layers.0.mlp.up_proj.weight": (9, 6),
    "model.layers.0.conv.weight": (4, 3, 3, 3),
    "model.layers.1.mlp.up_proj.weight": (6, 9),
    "model.layers.1.self_attn.q_proj.weight": (130, 70),
    "model.norm.weight": (6,),
    "scale": (),
}


@pytest.fixture
def arrays():
    """Base, then three models, as float64."""
    rng = np.random.default_rng(0)
    base = {n: rng.integers(-64, 64, s) / 64 for n, s in SHAPES.items()}
    return [base, *({n: a + rng.integers(-8, 9, a.shape) / 64 for n, a in base.items()} for _ in range(3))]


@pytest.fixture
def experts(tmp_path, arrays, save_arrays):
    """Their folders: base, a, b, c; with a tensor of whole numbers."""
    return [
        save_arrays(tmp_path / name, {**{n: np.asarray(a, "float32") for n, a in given.items()}, "steps": np.arange(3)})
        for name, given in zip(("base", "a", "b", "c"), arrays, strict=True)
    ]


@pytest.fixture(params=[Options(threads=1, memory_bytes=190_000_000), Options(threads=4)], ids=["small", "wide"])
def cut(request):
    """Other budgets and threads than usual."""
    return request.param
