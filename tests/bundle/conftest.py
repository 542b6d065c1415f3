"""A base and three tasks: one tensor larger than a frame, one that no task changes, integers, and config files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHAPES = {
    "model.embed_tokens.weight": (300, 256),
    "model.layers.0.mlp.up_proj.weight": (33, 7),
    "model.norm.weight": (7,),
}


def make_base() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()} | {
        "frozen": np.arange(12, dtype=np.float32).reshape(3, 4),
        "ids": np.arange(9, dtype=np.int64),
    }


def make_task(base: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {n: base[n] + (0.05 * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()}
    return {n: made.get(n, a) for n, a in base.items()}


@pytest.fixture
def tasks() -> dict[str, dict[str, np.ndarray]]:
    """The arrays of the base and of the tasks a, b and c."""
    base = make_base()
    return {"base": base, **{name: make_task(base, i) for i, name in enumerate("abc", 1)}}


@pytest.fixture
def family(tmp_path: Path, tasks: dict[str, dict[str, np.ndarray]], save_arrays: Any) -> Path:
    """The folder in which base, a, b and c lie; each task has a config and a tokenizer of its own."""
    for name, arrays in tasks.items():
        folder = save_arrays(tmp_path / "in" / name, arrays, config={"architectures": ["X"], "note": name})
        (folder / "tokenizer.json").write_text(f'{{"version": "{name}"}}\n')
    return tmp_path / "in"


@pytest.fixture
def pack_all(family: Path, tmp_path: Path) -> Any:
    """`pack_all(encoding, out="bundle", models=("a", "b", "c"), **parameters)` packs the family."""
    from weightsmith.bundle import pack

    def run(encoding: str, out: str = "bundle", models: tuple[str, ...] = ("a", "b", "c"), **parameters: Any) -> Path:
        given = [str(family / m) for m in models]
        return pack(encoding, base=family / "base", models=given, out=tmp_path / out, **parameters).out

    return run


@pytest.fixture
def read_task() -> Any:
    """`read_task(bundle, task)` reads every tensor as it is rebuilt, by numpy alone after the bytes."""
    from weightsmith.checkpoint.read import open_checkpoint, read_array

    kinds = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "BF16": "<u2", "U8": "u1", "BOOL": "?"}

    def read(bundle: Path, task: str) -> dict[str, np.ndarray]:
        tensors = open_checkpoint(f"{bundle}#{task}").tensors
        return {n: np.frombuffer(read_array(e), kinds[e.dtype]).reshape(e.shape) for n, e in tensors.items()}

    return read
