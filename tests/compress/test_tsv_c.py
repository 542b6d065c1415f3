"""An equal share of singular vectors per task."""

import numpy as np
import pytest

from weightsmith.compress.low_rank import low_rank
from weightsmith.compress.tsv_c import tsv_c


def rebuilt(part):
    return part.settings["scale"] * part.arrays["left"].astype(np.float64) @ part.arrays["right"]


@pytest.mark.parametrize(
    ("shape", "tasks", "rank"), [((12, 40), 3, 4), ((40, 12), 5, 2), ((3, 9), 8, 1), ((7, 7), 1, 7)]
)
def test_rank_is_the_smaller_side_by_the_tasks(shape, tasks, rank):
    tau = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    part = tsv_c(tau, tasks=tasks)
    assert part.arrays["left"].shape == (shape[0], rank)
    assert part.arrays["right"].shape == (rank, shape[1])
    np.testing.assert_array_equal(rebuilt(part), rebuilt(low_rank(tau, rank=rank)))


def test_one_task_is_exact():
    tau = np.random.default_rng(1).standard_normal((9, 14)).astype(np.float32)
    np.testing.assert_allclose(rebuilt(tsv_c(tau, tasks=1)), tau, atol=1e-5)


def test_the_number_of_tasks_is_filled_in():
    assert tsv_c.check({}, 5)["tasks"] == 5
    assert tsv_c.check({"tasks": 3}, 5)["tasks"] == 3


def test_by_hand():
    part = tsv_c(np.diag([5.0, 3.0, 2.0, 1.0]), tasks=2)
    np.testing.assert_allclose(rebuilt(part), np.diag([5.0, 3.0, 0.0, 0.0]), atol=1e-6)
