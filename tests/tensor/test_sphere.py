"""Points on the sphere: the compiled loops against the eager forms, and what they keep bit for bit."""

import numpy as np
import pytest
import torch

from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.gram import add_sum, column_gram
from weightsmith.tensor.sphere import add_step, from_first, interpolate, interpolate_columns

FORMS = (lambda x: x.view(Plain), torch.from_numpy)
SIZES = [1, 63, 1024, 1025, 5000]


def drawn(dtype, *shape):
    """Return numbers with zeros of both signs among them."""
    found = np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)
    found.reshape(-1)[::7], found.reshape(-1)[1::11] = 0.0, -0.0
    return found


def same(found, expected):
    assert np.asarray(found).tobytes() == expected.tobytes()


def test_by_hand():
    pair = np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]])
    # 0.25 x + 0.5 y = x - 0.25 x + 0.5 (y - x), and x + 0 where the run's factors are 1 and 0.
    found = interpolate(pair, np.array([-0.25, 0.0]), np.array([0.5, 0.0]))
    assert found.tolist() == [1.75, 1.5, 3.0, 4.0]
    found = interpolate_columns(pair[:, :2], pair[:, 2:], np.array([-0.25, 0.0]), np.array([0.5, 0.0]))
    assert found.tolist() == [[1.75, 2.0], [1.25, 2.0]]
    assert from_first(np.array([[2.0], [4.0], [8.0]]), [0.5, 0.25, 0.25]).tolist() == [4.0]
    assert add_sum(pair[0], pair, np.array([0.5, 0.0])).tolist() == [3.0, 4.0, 3.0, 4.0]
    # Columns (1, 3) and (3, 1): 10, 6, 10; columns (2, 2) and (4, 0): 8, 8, 16.
    first, second = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[3.0, 4.0], [1.0, 0.0]])
    assert column_gram(first, second).tolist() == [[10.0, 6.0, 10.0], [8.0, 8.0, 16.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_the_loops_have_the_bits_of_the_eager_forms(size, dtype):
    rng = np.random.default_rng(size)
    for units in (1, 3):
        vectors, base = drawn(dtype, 4, units * size), drawn(dtype, units * size)
        more, far = rng.standard_normal((2, units))
        scale = rng.standard_normal(units).astype(dtype)
        for form in FORMS:
            same(interpolate(form(vectors[:2]), more, far), interpolate(vectors[:2], more, far))
            for count in (1, 2, 3, 4):
                stack = vectors[:count]
                factors = rng.dirichlet(np.ones(count))
                same(from_first(form(stack), factors), from_first(stack, factors))
                same(add_sum(form(base), form(stack), form(scale)), add_sum(base, stack, scale))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 5), (63, 3), (64, 64), (257, 65), (600, 130)], ids=str)
def test_columns_have_the_bits_of_turned_rows(shape, dtype):
    first, second = drawn(dtype, 2, *shape)
    found = column_gram(first, second)
    np.testing.assert_allclose(found[:, 1], (first.astype(float) * second).sum(0), rtol=0, atol=1e-11)
    more, far = np.random.default_rng(3).standard_normal((2, shape[1]))
    for form in FORMS:
        assert np.array_equal(column_gram(form(first), form(second)), found)
        expected = interpolate_columns(first, second, more, far)
        same(interpolate_columns(form(first), form(second), more, far), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_step_leaves_the_base_bit_for_bit(precision):
    base = np.array([-0.0, 1.0, 2.0], np.float32)
    found = add_step(base, np.array([0.0, -0.0, 0.25], np.float32), precision)
    assert found.tolist() == [0.0, 1.0, 2.25]
    assert np.signbit(found).tolist() == [True, False, False]
