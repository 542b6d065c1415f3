"""Ranks within rows."""

import numpy as np
import pytest
import torch

from weightsmith.errors import MismatchError
from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.ranks import rank_chances, row_absolute_sums, row_ranks, thin_rows


def slow_ranks(row):
    order = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
    return [order.index(i) for i in range(len(row))]


@pytest.mark.parametrize("length", [1, 2, 8, 60])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_a_full_sort(length, dtype):
    rng = np.random.default_rng(length)
    for values in (rng.standard_normal((2, 240)) * 10.0 ** rng.integers(-30, 30, 240), rng.integers(-3, 4, (2, 240))):
        vectors = values.astype(dtype)
        expected = [[r for row in v.reshape(-1, length).tolist() for r in slow_ranks(row)] for v in vectors]
        for form in (vectors, vectors.view(Plain), torch.from_numpy(vectors)):
            assert row_ranks(form, length).tolist() == expected


def test_chances_are_linear_in_the_rank_and_average_the_density():
    vectors = np.random.default_rng(1).standard_normal((2, 300)).astype(np.float32)
    chances = rank_chances(row_ranks(vectors, 100), 100, (0.6, 0.3), (0.1, 0.0), "float32")
    np.testing.assert_allclose(chances[0].reshape(3, 100).mean(1), 0.6, rtol=1e-5)
    np.testing.assert_allclose(np.sort(chances[0][:100]), np.linspace(0.5, 0.7, 100), rtol=1e-5)
    assert np.all(chances[1] == np.float32(0.3))
    largest = np.abs(vectors[0, :100]).argmax()
    assert chances[0, largest] == chances[0, :100].max()


def test_rows_of_one_have_the_density():
    chances = rank_chances(np.zeros((3, 4), np.float32), 1, (0.5, 1.5, 0.25), (0.1, 0.1, 0.1), "float32")
    assert chances.tolist() == [[0.5] * 4, [1.5] * 4, [0.25] * 4]


def test_row_norms():
    vectors = np.random.default_rng(2).standard_normal((2, 5 * 130)).astype(np.float32)
    found = row_absolute_sums(vectors, 130)
    np.testing.assert_allclose(found, np.abs(vectors.astype(float)).reshape(2, 5, 130).sum(-1).T, rtol=1e-14)
    assert np.array_equal(found, row_absolute_sums(vectors.view(Plain), 130))


def cases(length):
    rng = np.random.default_rng(length)
    size = length * 5
    yield rng.standard_normal((2, size)) * 10.0 ** rng.integers(-30, 30, size)
    yield rng.integers(-3, 4, (2, size)) / 8
    yield rng.choice([0.0, -0.0], (2, size))
    yield 1 + rng.integers(0, 2, (2, size)) * 2.0**-23
    yield rng.choice([0.0, 1e-45, -3e37, 2.0], (2, size))


@pytest.mark.parametrize("length", [1, 2, 63, 1000, 5000])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("inverse", [False, True])
def test_thinned_rows_have_the_bits_of_the_eager_forms(length, precision, inverse):
    for vectors in cases(length):
        vectors = vectors.astype(np.float32)
        given = (length, (0.6, 0.3), (0.1, 0.2), (5, 2**64 - 9))
        options = {"start": 7 * length, "inverse": inverse, "precision": precision}
        found = thin_rows(vectors, *given, **options)
        eager = np.asarray(thin_rows(vectors.view(Plain), *given, **options))
        assert found.tobytes() == eager.tobytes()
        assert found.tobytes() == thin_rows(torch.from_numpy(vectors), *given, **options).numpy().tobytes()


def test_a_row_that_is_not_whole_is_refused():
    with pytest.raises(MismatchError, match="whole rows of 3"):
        thin_rows(np.ones((1, 7), np.float32), 3, (0.5,), (0.1,), (1,), start=0, inverse=True, precision="float32")
