"""The contract: what a method tells about itself, and how its reductions are answered."""

import math

import numpy as np
import pytest

from weightsmith.arguments import Number, Parameter, Proportion
from weightsmith.errors import ArgumentError
from weightsmith.merge import METHODS
from weightsmith.method import (
    Kth,
    KthLargest,
    KthMagnitude,
    KthMajority,
    Sums,
    Tile,
    answer_all,
    exact_sums,
    method,
    reduce_in_memory,
)

BY_NAME = {m.name: m for m in METHODS}


def prepare(*, density):
    (kth,) = yield KthMagnitude(lambda size: [round(density * size)])
    total = yield Sums(lambda base, others, tile: np.array([[float(others.shape[1]), float(base.sum())]]))
    return kth, total


@method(prepare=prepare, scope="tensor", least=2, most=3)
def sample(base, task_vectors, *, density: Proportion = 0.5, shift: Number = 0.0, tile):
    """Do a sample.

    Args:
        base: A base.
        task_vectors: Vectors.
        density: Share kept,
            over two lines.
        shift: A shift.
        tile: A tile.

    Command:
        weightsmith merge sample --out OUT
    """
    kth, total = tile.statistics
    assert isinstance(kth, Kth)
    return base * 0 + kth.value.sum() + 100 * total[0] + shift


def test_what_a_method_tells():
    assert sample.name == "sample"
    assert sample.summary == "Do a sample."
    assert sample.example == "weightsmith merge sample --out OUT"
    assert sample.inputs == ("base", "task_vectors")
    assert sample.has_base
    assert list(sample.parameters) == ["density", "shift"]
    density = sample.parameters["density"]
    assert isinstance(density, Parameter)
    assert (density.default, density.help) == (0.5, "Share kept, over two lines.")
    assert sample.prepared_by == {"density"}
    assert sample.reduction_scope({"density": 0.5, "shift": 0.0}) == "tensor"


def test_names_are_those_of_the_files_and_unique():
    assert len(BY_NAME) == len(METHODS)
    assert all(m.function.__module__ == f"weightsmith.merge.{m.name}" for m in METHODS)


def test_statistics_reach_the_pass():
    # Magnitudes 4 3 2 1 and 40 30 20 10: the second largest are 3 and 30; the size 4 counts 100 each.
    taus = [np.array([1.0, -4.0, 3.0, 2.0]), np.array([10.0, 20.0, -30.0, 40.0])]
    assert sample(np.zeros(4), taus).tolist() == [433.0] * 4
    assert sample(np.zeros((2, 2)), [t.reshape(2, 2) for t in taus], density=1.0, shift=1).tolist() == [[412.0] * 2] * 2


@pytest.mark.parametrize(
    ("name", "parameters", "scope"),
    [
        ("linear", {}, None),
        ("task_arithmetic", {}, None),
        ("dare", {}, None),
        ("wise_ft", {}, None),
        ("slerp", {}, "tensor"),
        ("ties", {}, "model"),
        ("ties", {"scope": "tensor"}, "tensor"),
        ("breadcrumbs", {}, "tensor"),
        ("breadcrumbs_ties", {"scope": "row"}, "row"),
        ("lines", {}, None),
        ("lines", {"merged": "ties"}, "model"),
        ("tall_masks", {}, None),
        ("tall_masks", {"merged": "ties"}, "model"),
        ("consensus", {"merged": "ties"}, "model"),
    ],
)
def test_scope_of_the_reductions(name, parameters, scope):
    chosen = BY_NAME[name]
    models = chosen.least
    assert chosen.reduction_scope(chosen.check(parameters, models)) == scope


def test_no_elements_need_no_statistics():
    assert sample(np.zeros((0, 3)), [np.zeros((0, 3))] * 2).shape == (0, 3)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_number_of_models(count):
    with pytest.raises(ArgumentError, match="expected 2 to 3 models beside the base") as caught:
        sample(np.zeros(1), [np.zeros(1)] * count)
    assert f"got {count}" in str(caught.value)


def test_a_task_beyond_the_models_is_refused():
    with pytest.raises(ArgumentError, match="task; expected 1 to 2; got 3"):
        BY_NAME["tall_masks"](np.zeros(2), [np.zeros(2)] * 2, task=3)


def test_coefficients_must_be_one_per_model():
    with pytest.raises(ArgumentError, match="expected 3, one per model; got 2"):
        BY_NAME["linear"]([np.zeros(2)] * 3, coefficients=(1, 2))


def test_row_length():
    assert Tile().row_length == 1
    assert Tile(shape=(2, 7)).row_length == 7


def test_tile_tells_name_and_layer_and_the_call_the_rest():
    seen = []

    @method()
    def look(finetuned, *, tile):
        seen.append(tile)
        return finetuned[0]

    look([np.zeros((2, 3))], tile=Tile(name="a", shape=(9,), start=5, position=7, layer=1, layers=4))
    assert seen == [Tile("a", (2, 3), 0, 0, 1, 4, None)]


def test_answers_go_back_to_their_questions():
    def ask():
        first = yield "a"
        second = yield "b"
        return first + second

    assert answer_all(ask(), {"a": 1, "b": 20}.get) == 21
    assert answer_all(None, lambda asked: 1 / 0) is None


def test_reductions_in_memory():
    others = np.array([[1.0, -5.0, 3.0, 3.0]])
    found = reduce_in_memory(sample.statistics({"density": 0.5}), np.ones(4), others, Tile(shape=(4,)))
    assert found[0].value.tolist() == [[3.0]]
    assert found[0].cut.tolist() == [[3]]
    assert found[1].tolist() == [4.0, 4.0]


def test_values_and_majorities_in_memory():
    # Trimmed to two entries each: 0 -5 3 0 and 4 4 0 0; their sum 4 -1 3 0 is positive twice and negative once.
    others = np.array([[1.0, -5.0, 3.0, 3.0], [4.0, 4.0, 4.0, 0.0]])

    def ask():
        kth, total = yield KthMajority(lambda size: size // 2)
        largest = yield KthLargest(lambda size: [1, size], lambda base, others, tile: others[:1] - others[1:])
        return kth, total, largest

    kth, total, (most, least) = reduce_in_memory(ask(), np.zeros(4), others, Tile(shape=(4,)))
    assert (kth.value.tolist(), kth.cut.tolist()) == ([[3.0], [4.0]], [[3], [2]])
    assert total == 1
    assert (most.value.item(), least.value.item()) == (3.0, -9.0)


def test_sums_are_exact_whatever_their_order():
    parts = [np.array([[1e100, 1.0]]), np.array([[1.0, 2.0], [-1e100, 3.0]])]
    assert exact_sums(parts).tolist() == [1.0, 6.0]
    assert exact_sums(parts[::-1]).tolist() == [1.0, 6.0]
    tenths = [np.full((7, 1), 0.1), np.full((3, 1), 0.1)]
    assert exact_sums(tenths).item() == math.fsum([0.1] * 10) == 1.0
