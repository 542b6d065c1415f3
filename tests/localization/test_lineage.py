"""Whether one model was trained from another."""

import numpy as np
import pytest

from weightsmith import lineage
from weightsmith.errors import MismatchError
from weightsmith.localization.lineage import Kinship, judge


@pytest.fixture
def folder(tmp_path, save_arrays):
    def save(name, seed, near=None, step=0.0):
        rng = np.random.default_rng(seed)
        drawn = {n: rng.standard_normal((40, 30)) for n in ("layers.0.w", "layers.1.w", "layers.2.w")}
        drawn["norm.weight"] = 1 + 0.01 * rng.standard_normal(30)
        made = drawn if near is None else {n: near[n] + step * a for n, a in drawn.items()}
        return made, save_arrays(tmp_path / name, {n: a.astype("float32") for n, a in made.items()})

    return save


def test_trained_from_one_another(folder):
    base, first = folder("base", 0)
    _, second = folder("tuned", 1, near=base, step=0.1)
    found = lineage(first, second)
    assert found.verdict == "finetuned"
    assert found.median_cosine == pytest.approx(1 / 1.01**0.5, abs=1e-3)
    assert found.relative == pytest.approx(0.1, rel=0.05)
    assert lineage(second, first).verdict == "finetuned"


def test_other_random_starts_are_unrelated_though_norms_are_alike(folder):
    found = lineage(folder("one", 0)[1], folder("two", 1)[1])
    assert found.verdict == "unrelated"
    norm = next(t for t in found.tensors if t.name == "norm.weight")
    assert norm.cosine > 0.99


def test_half_way_is_unclear(folder):
    base, first = folder("base", 0)
    assert lineage(first, folder("far", 1, near=base, step=1.5)[1]).verdict == "unclear"


def test_the_same_model(folder):
    _, first = folder("base", 0)
    found = lineage(first, first)
    assert (found.verdict, found.equal, found.relative) == ("identical", 1, 0)


def test_evidence_by_hand(tmp_path, save_arrays):
    first = save_arrays(tmp_path / "a", {"w": np.array([[3.0, 4.0]], "float32"), "only": np.ones(1, "float32")})
    second = save_arrays(tmp_path / "b", {"w": np.array([[3.0, 0.0]], "float32"), "other": np.ones(1, "float32")})
    found = lineage(first, second).to_json()
    assert (found["equal"], found["cosine"], found["relative"]) == (0.5, 0.6, 0.8)
    assert found["tensors"] == [{"name": "w", "axes": 2, "elements": 2, "equal": 1, "cosine": 0.6, "relative": 0.8}]
    assert found["apart"] == ["only", "other"]


@pytest.mark.parametrize(
    ("cosines", "verdict"),
    [([0.9], "finetuned"), ([0.3], "unrelated"), ([0.3, 0.95, 0.9], "finetuned"), ([None], "unclear")],
)
def test_the_median_of_matrices_decides(cosines, verdict):
    rows = [Kinship("w", 2, 4, 0, c, None) for c in cosines]
    assert judge([*rows, Kinship("bias", 1, 4, 0, 0.0, None)])[0] == verdict


def test_nothing_in_common(tmp_path, save_arrays):
    folders = [save_arrays(tmp_path / n, {n: np.ones(2, "float32")}) for n in "ab"]
    with pytest.raises(MismatchError, match="no tensor of numbers in common"):
        lineage(*folders)
