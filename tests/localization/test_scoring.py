"""Lambdas chosen by scores, and what a mask gives back."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from weightsmith import localize
from weightsmith.errors import ArgumentError, CheckpointError
from weightsmith.localization.scoring import best


def read(folder):
    return {n: a for n, a in load_file(folder / "model.safetensors").items() if n != "steps"}


def distance(folder, other):
    """How far two checkpoints lie apart."""
    first, second = read(folder), read(other)
    return sum(float(np.square(first[n].astype(float) - second[n]).sum()) for n in first) ** 0.5


@pytest.fixture
def nearness(experts):
    """A score: the nearer to the task's own model, the better."""
    own = dict(zip("abc", experts[1:], strict=True))
    return lambda folder, task: -distance(folder, own[task])


def test_the_nearest_mask_is_that_of_lambda_one(experts, nearness):
    found = localize(experts[0], experts[1:], score=nearness, grid=(0.25, 1.0, 4.0), trim=None)
    assert found.lambdas == (1.0, 1.0, 1.0)
    fixed = localize(experts[0], experts[1:], lambdas=1.0, trim=None)
    assert found.model.agreement.tolist() == fixed.model.agreement.tolist()
    choice = found.to_json()["choice"][1]
    assert (choice["task"], choice["lambda"], len(choice["scores"])) == ("b", 1.0, 3)


def test_scores_agree_with_distances_in_weights(experts, nearness):
    found = localize(experts[0], experts[1:], score=nearness, lambdas=[0.25, 0.5, 1.0], trim=None)
    figures, lengths = found.to_json()["model"], found.model.norms
    assert found.choices is None
    for t, row in enumerate(found.to_json()["behavior"]):
        assert row["finetuned"] == 0
        assert row["base"] == pytest.approx(-lengths[t])
        assert row["merged"] == pytest.approx(-figures["distance"][t] * lengths[t], rel=1e-6)
        assert row["masked"] == pytest.approx(-figures["erased"][t] * lengths[t], rel=1e-6)
        assert row["interference"] == pytest.approx(row["masked"] - row["merged"])
        assert row["erased"] == pytest.approx(-row["masked"])


def test_candidates_keep_other_tensors_and_are_removed(tmp_path, experts, arrays):
    seen = []

    def score(folder, task):
        seen.append((folder, load_file(folder / "model.safetensors")["steps"].tolist()))
        return 0.0

    before = sorted(p.name for p in tmp_path.iterdir())
    localize(experts[0], experts[1:3], score=score, grid=(0.3,), trim=None, masks=tmp_path / "masks")
    assert all(steps == [0, 1, 2] for _, steps in seen)
    assert len(seen) == 2 + 2 * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "masks"])


def test_other_masks_are_scored_too(tmp_path, experts, nearness):
    given = {"by": "principal", "selection": {"filter_rank": 2, "budget_rank": 1}, "masks": tmp_path / "masks"}
    found = localize(experts[0], experts[1:], score=nearness, trim=None, **given).to_json()
    assert found["choice"] is None
    for t, row in enumerate(found["behavior"]):
        assert row["masked"] == pytest.approx(-found["model"]["erased"][t] * found["model"]["norm"][t], rel=1e-6)


def test_the_first_of_equal_scores_wins():
    assert best("t", [(0.2, 1.0), (0.4, 3.0), (0.6, 3.0)]).lambda_ == 0.4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number(experts, value):
    with pytest.raises(ArgumentError, match="score; expected a finite number"):
        localize(experts[0], experts[1:], score=lambda *_: value)


def test_known_scores_from_a_file(tmp_path, experts):
    table = {"a": {"0.2": 0.5, "0.4": 0.9}, "b": {"0.3": 1}, "c": {"0.6": -1.0, "0.2": -1.0}}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(table))
    found = localize(experts[0], experts[1:], validation=path, trim=None)
    assert found.lambdas == (0.4, 0.3, 0.6)
    assert found.to_json()["choice"][0]["scores"] == [[0.2, 0.5], [0.4, 0.9]]
    assert localize(experts[0], experts[1:], validation=table, trim=None).lambdas == found.lambdas


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[1]", CheckpointError, "is not a mapping"),
        ('{"a": {}}', ArgumentError, "task 'a'; expected lambdas"),
        ('{"a": {"x": 1}}', ArgumentError, "expected a lambda of at least 0; got 'x'"),
        ('{"a": {"-1": 1}}', ArgumentError, "expected a lambda of at least 0; got '-1'"),
        ('{"a": {"0.1": "good"}}', ArgumentError, "expected a finite score; got 'good'"),
        ('{"a": {"0.1": true}}', ArgumentError, "expected a finite score"),
    ],
)
def test_a_bad_file(tmp_path, experts, text, error, message):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(error, match=message):
        localize(experts[0], [experts[1]], validation=path)


def test_lambdas_and_a_file_contradict(experts):
    with pytest.raises(ArgumentError, match="got both"):
        localize(experts[0], [experts[1]], lambdas=0.4, validation={"a": {0.2: 1.0}})
