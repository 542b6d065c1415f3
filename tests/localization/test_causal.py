"""The causal check, on a score that reads one weight in ten."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from weightsmith import causal_check
from weightsmith.errors import ArgumentError


@pytest.fixture
def case(tmp_path, save_arrays, save_raw):
    """A target of zeros, a source of ones, and a mask of the first 10 of 100 weights."""
    for name, value in (("target", 0.0), ("source", 1.0)):
        save_arrays(tmp_path / name, {"w": np.full((10, 10), value, "float32")})
    save_raw(tmp_path / "mask" / "model.safetensors", {"w": ("BOOL", (10, 10), b"\1" * 10 + b"\0" * 90)})
    return {"target": tmp_path / "target", "source": tmp_path / "source", "mask": tmp_path / "mask"}


def weights(folder):
    return load_file(folder / "model.safetensors")["w"].reshape(-1)


def test_located_weights_explain_everything(case):
    found = causal_check(**case, score=lambda folder: float(weights(folder)[:10].mean()))
    assert (found.target, found.source, found.inside, found.outside) == (0, 1, 1, 0)
    assert (found.explained, found.remaining, found.share) == (1, 0, 0.1)


def test_weights_located_at_the_wrong_place_explain_nothing(case):
    found = causal_check(**case, score=lambda folder: float(weights(folder)[50:].mean()))
    assert (found.explained, found.remaining) == (0, 1)


def test_nothing_to_explain(case):
    found = causal_check(**case, score=lambda folder: 3.0)
    assert found.to_json() == {
        "target": 3, "source": 3, "inside": 3, "outside": 3, "share": 0.1, "explained": None, "remaining": None
    }  # fmt: skip


def test_models_are_left_as_they_were_and_nothing_remains(case, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    before = [(p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(ArgumentError, match="finite number"):
        causal_check(**case, score=lambda folder: float("nan") if folder.name == "outside" else 1.0)
    assert [(p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()] == before
