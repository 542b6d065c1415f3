"""Lengths and angles from inner products, and inner products of rows."""

import numpy as np
import pytest
import torch

from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.gram import cosines, norms, row_gram, symmetric
from weightsmith.tensor.pick import largest_magnitude, where_signs_agree
from weightsmith.tensor.vector import gram


def test_by_hand():
    # Vectors (3, 4), (6, 8), (-4, 3): inner products 25 50 0 / 100 0 / 25.
    full = symmetric(np.array([25.0, 50.0, 0.0, 100.0, 0.0, 25.0]))
    assert full.tolist() == [[25.0, 50.0, 0.0], [50.0, 100.0, 0.0], [0.0, 0.0, 25.0]]
    assert norms(full).tolist() == [5.0, 10.0, 5.0]
    np.testing.assert_allclose(cosines(full), [[1, 1, 0], [1, 1, 0], [0, 0, 1]], rtol=1e-15)


def test_a_vector_of_zeros_has_no_angle():
    full = symmetric(np.array([4.0, 0.0, 0.0]))
    assert cosines(full).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_cosines_stay_within_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = rng.standard_normal(7)
        vectors = np.stack([x, x * rng.uniform(0.1, 9), -x])
        found = cosines(vectors @ vectors.T)
        assert np.abs(found).max() <= 1
        assert np.isfinite(np.arccos(found)).all()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 1000, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_against_matrix_products(length, dtype):
    vectors = np.random.default_rng(length).standard_normal((3, 5 * length)).astype(dtype)
    found = row_gram(vectors, length)
    rows = vectors.astype(np.float64).reshape(3, 5, length)
    for r in range(5):
        np.testing.assert_allclose(symmetric(found)[r], rows[:, r] @ rows[:, r].T, rtol=0, atol=1e-11)
    assert np.array_equal(found, row_gram(vectors.view(Plain), length))
    assert np.array_equal(found, row_gram(torch.from_numpy(vectors), length))
    if length <= 4096:  # a row within one block is summed as a tensor of its size
        assert np.array_equal(found[:1], gram(np.ascontiguousarray(vectors[:, :length])))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_picking_has_the_same_bits_in_every_form(dtype):
    rng = np.random.default_rng(1)
    vectors = (rng.integers(-3, 4, (4, 5000)) / 4).astype(dtype)
    vectors[1, :50] = -0.0
    for form in (lambda x: x.view(Plain), torch.from_numpy):
        picked = np.asarray(largest_magnitude(form(vectors)))
        assert picked.tobytes() == largest_magnitude(vectors).tobytes()
        agreeing = np.asarray(where_signs_agree(form(vectors[0]), form(vectors[1])))
        assert agreeing.tobytes() == where_signs_agree(vectors[0], vectors[1]).tobytes()
    expected = np.where(np.sign(vectors[0]) == np.sign(vectors[1]), vectors[1], 0)
    assert np.array_equal(where_signs_agree(vectors[0], vectors[1]), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [1, 255, 256, 1280, 4096, 4097, 9001])
def test_products_of_any_number_of_vectors_have_the_bits_of_the_eager_form(count, size):
    vectors = np.random.default_rng(size).standard_normal((count, size)).astype(np.float32)
    found = gram(vectors)
    assert np.array_equal(found, gram(vectors.view(Plain)))
    assert np.array_equal(found, gram(torch.from_numpy(vectors)))
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(symmetric(found.sum(0)), wide @ wide.T, rtol=1e-12, atol=1e-10)
