"""Greedy soup."""

import json
import math

import pytest
import torch

import weightsmith
from weightsmith import greedy_soup, merge
from weightsmith.errors import ArgumentError, MismatchError

NAME = "w"


@pytest.fixture
def points(tmp_path, save_model):
    """`points({"a": [..], ...})` writes one model per point and returns their folders by name."""

    def write(given):
        return {
            name: save_model(tmp_path / name, {NAME: torch.tensor(values, dtype=torch.float32)})
            for name, values in given.items()
        }

    return write


def nearness(load_model, target, seen=None):
    """Return a score: minus the distance to a point."""

    def score(folder):
        if seen is not None:
            seen.append((folder, load_model(folder)[NAME].tolist()))
        return -float((load_model(folder)[NAME] - torch.tensor(target)).norm())

    return score


def hidden(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".") or ".partial-" in p.name]


def test_by_hand(points, tmp_path, load_model):
    # Distances to (0, 0): near 1, up 2, far 9, left 1.5. Order: near (1, 0), left, up, far.
    # near + left: (-.25, 0), better. + up: (-1/6, 2/3), distance .687, worse. + far: worse.
    models = points({"up": [0.0, 2.0], "far": [9.0, 0.0], "near": [1.0, 0.0], "left": [-1.5, 0.0]})
    seen = []
    soup = greedy_soup(list(models.values()), nearness(load_model, [0.0, 0.0], seen), tmp_path / "out")
    assert soup.members == (str(models["near"]), str(models["left"]))
    assert soup.scores == (-2.0, -9.0, -1.0, -1.5)
    assert soup.score == -0.25
    assert load_model(tmp_path / "out")[NAME].tolist() == [-0.25, 0.0]
    tried = [[0.0, 2.0], [9.0, 0.0], [1.0, 0.0], [-1.5, 0.0], [-0.25, 0.0]]
    assert [values for _, values in seen[:5]] == tried
    assert len(seen) == 7
    assert soup.result.out == tmp_path / "out"
    assert hidden(tmp_path) == []


def test_a_model_that_changes_nothing_is_added(points, tmp_path, load_model):
    models = points({"a": [1.0], "b": [1.0], "c": [5.0]})
    soup = greedy_soup(list(models.values()), nearness(load_model, [0.0]), tmp_path / "out")
    assert soup.members == (str(models["a"]), str(models["b"]))


def test_all_of_them_is_the_uniform_soup(points, tmp_path, load_model):
    models = list(points({"a": [1.0, 3.0], "b": [2.0, 5.0], "c": [4.0, -1.0]}).values())
    soup = greedy_soup(models, lambda folder: 1.0, tmp_path / "greedy")
    merge("linear", models=models, out=tmp_path / "uniform")
    assert len(soup.members) == 3
    assert torch.equal(load_model(tmp_path / "greedy")[NAME], load_model(tmp_path / "uniform")[NAME])
    record = json.loads((tmp_path / "greedy" / "edit.json").read_text())
    assert "linear" in json.dumps(record)


def test_one_model(points, tmp_path, load_model):
    (model,) = points({"a": [1.0, 2.0]}).values()
    soup = greedy_soup([model], nearness(load_model, [0.0, 0.0]), tmp_path / "out")
    assert soup.members == (str(model),)
    assert load_model(tmp_path / "out")[NAME].tolist() == [1.0, 2.0]


def test_nothing_stays_where_scoring_fails(points, tmp_path):
    models = list(points({"a": [1.0], "b": [2.0]}).values())

    def fail(folder):
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        greedy_soup(models, fail, tmp_path / "out")
    for bad in (math.nan, math.inf):
        with pytest.raises(ArgumentError, match="greedy_soup: score; expected a finite number"):
            greedy_soup(models, lambda folder, bad=bad: bad, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_faults_are_found_before_anything_is_scored(points, tmp_path, save_model):
    models = list(points({"a": [1.0], "b": [2.0]}).values())

    def never(folder):
        raise AssertionError(folder)

    other = save_model(tmp_path / "c", {NAME: torch.zeros(3)})
    with pytest.raises(MismatchError):
        greedy_soup([*models, other], never, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("")
    with pytest.raises(ArgumentError, match="out"):
        greedy_soup(models, never, tmp_path / "out")
    with pytest.raises(ArgumentError, match="number of models"):
        greedy_soup([], never, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_older_output_is_replaced_by_force_alone(points, tmp_path, load_model):
    models = list(points({"a": [1.0], "b": [3.0]}).values())
    weightsmith.merge("linear", models=models[1:], out=tmp_path / "out")
    greedy_soup(models, nearness(load_model, [2.0]), tmp_path / "out", force=True)
    assert load_model(tmp_path / "out")[NAME].tolist() == [2.0]
