"""The contract of encodings: parameters per task, reductions over the task and what is shared, and what is taken."""

import numpy as np
import pytest

from weightsmith.arguments import Coefficients, Number
from weightsmith.encoding import Part, encoding
from weightsmith.errors import ArgumentError
from weightsmith.method import KthMagnitude, Sums, Tile, method


@method()
def _vector(base, task_vectors, *, lambda_: Number = 2.0, tile):
    """Share the sum.

    Args:
        lambda_: Its scale.
    """
    return lambda_ * task_vectors.sum(0)


def _prepare(*, weight):
    (total,) = yield Sums(lambda base, vectors, tile: (weight * vectors[0] * vectors[1]).sum(keepdims=True)[:, None])
    return float(total)


@encoding(form="mask", share=_vector, prepare=_prepare, takes=lambda name, shape: name != "left out")
def product(task_vector, shared, *, weight: Number = 1.0, each: Coefficients = None, tile: Tile):
    """Store a mask.

    Args:
        weight: Of the product.
        each: One per task.
    """
    return Part({"mask": task_vector > shared}, {"scale": tile.statistics, "each": each})


def test_parameters_are_the_function_s_and_the_shared_part_s():
    assert list(product.parameters) == ["weight", "each", "lambda_"]
    assert product.parameters["lambda_"].help == "Its scale."
    found = product.check({"each": (1.0, 2.0, 3.0)}, 3)
    assert [product.of_task(found, t)["each"] for t in range(3)] == [(1.0,), (2.0,), (3.0,)]
    assert product.of_task(product.check({"each": (5.0,)}, 3), 2)["each"] == (5.0,)
    with pytest.raises(ArgumentError, match="1 or 3, one per task"):
        product.check({"each": (1.0, 2.0)}, 3)


def test_reductions_see_the_task_vector_and_the_shared_one():
    own, shared = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    part = product(own, shared, weight=2.0)
    assert part.settings == {"scale": 22.0, "each": None}
    assert part.arrays["mask"].tolist() == [False, False]
    # the engine gives base, then the finetuned numbers and the shared vector as they are stored
    parameters = product.check({"weight": 2.0}, 1)
    statistics = product.packing.statistics(parameters)
    asked = next(statistics)
    base = np.array([10.0, 20.0])
    assert asked.of(base, np.stack([base + own, shared]), Tile()).tolist() == [[22.0]]
    assert product.packing.inputs == ("base", "finetuned")


def test_other_reductions_beside_a_shared_vector_are_refused():
    def ranked():
        (kth,) = yield KthMagnitude(lambda size: [1])
        return kth

    @encoding(form="mask", share=_vector, prepare=ranked)
    def wrong(task_vector, shared, *, tile: Tile):
        """Rank."""
        return Part({})

    with pytest.raises(ArgumentError, match="Sums and KthLargest"):
        next(wrong.packing.statistics({}))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "taken"),
    [
        ("w", (3, 4), "BF16", True),
        ("w", (), "F32", True),
        ("w", (3, 0), "F32", False),
        ("w", (3,), "F64", False),
        ("w", (3,), "I64", False),
        ("left out", (3, 4), "F32", False),
    ],
)
def test_what_is_taken(name, shape, dtype, taken):
    assert product.is_taken(name, shape, dtype) is taken
