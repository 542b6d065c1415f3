"""Arcee Fusion."""

import decimal
import math

import numpy as np
import pytest
import torch

from weightsmith.merge.arcee_fusion import arcee_fusion
from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.importance import row_divergence, row_importance


def softmax(row):
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) + 1e-8 for p in powers]


def slow(base, model):
    scores = []
    for b, x in zip(base, model, strict=True):
        p, q = softmax(x), softmax(b)
        divergence = sum(u * math.log(u / v) for u, v in zip(p, q, strict=True))
        scores.append([abs(u - v) * divergence for u, v in zip(x, b, strict=True)])
    ranked = sorted(s for row in scores for s in row)
    low, middle, high = (ranked[int(share * (len(ranked) - 1))] for share in (0.25, 0.5, 0.75))
    bound = middle + 1.5 * (high - low)
    return [
        [x if s >= bound else b for b, x, s in zip(*rows, strict=True)]
        for rows in zip(base, model, scores, strict=True)
    ]


def test_by_hand():
    # Only the last row's distribution changes much; of 12 importances its two are far above the rest.
    base = np.zeros((4, 3))
    model = base + np.array([[0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1], [2.0, -1.0, 0]])
    assert arcee_fusion(base, [model]).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [2.0, -1.0, 0]]


@pytest.mark.parametrize("shape", [(20, 30), (1, 500), (50, 2)])
def test_against_one_number_at_a_time(shape):
    rng = np.random.default_rng(1)
    base = rng.standard_normal(shape)
    model = base + rng.standard_normal(shape) * rng.uniform(0, 0.5, (shape[0], 1))
    found = arcee_fusion(base, [model])
    assert found.tolist() == slow(base.tolist(), model.tolist())
    assert 0 < (found == model).sum() < found.size


def test_every_entry_comes_from_one_of_the_two():
    base, model = np.random.default_rng(2).standard_normal((2, 30, 40)).astype(np.float32)
    found = arcee_fusion(base, [model])
    assert np.all((found == base) | (found == model))


def test_rows_of_one_entry_are_taken_over_whole():
    base, model = np.random.default_rng(3).standard_normal((2, 30, 1))
    assert np.array_equal(arcee_fusion(base, [model]), model)


@pytest.mark.parametrize(
    ("precision", "width"),
    [("float32", 0.02), ("float32", 1.0), ("float32", 40.0), ("bfloat16", 1.0), ("float16", 1.0)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 3, 64, 1000])
def test_the_loops_have_the_bits_of_the_eager_form(precision, dtype, length, width):
    base, change = np.random.default_rng(length).standard_normal((2, 7 * length)).astype(dtype)
    base *= dtype(width)
    other = base + change * dtype(0.008)  # rows near each other, and others
    found = row_divergence(base, other, length, precision)
    plain = row_divergence(base.view(Plain), other.view(Plain), length, precision)
    theirs = row_divergence(torch.from_numpy(base), torch.from_numpy(other), length, precision)
    assert found.dtype == dtype
    assert np.array_equal(found, np.asarray(plain))
    assert np.array_equal(found, theirs)
    scores = row_importance(base, other, found, length, precision)
    assert np.array_equal(
        scores, np.asarray(row_importance(base.view(Plain), other.view(Plain), found, length, precision))
    )


def exact_divergence(base, other):
    """The divergence of two rows, from 50 digits."""
    with decimal.localcontext(prec=50):
        rows = [[decimal.Decimal(float(v)).exp() for v in row] for row in (other, base)]
        p, q = ([v / sum(row) + decimal.Decimal("1e-8") for v in row] for row in rows)
        return float(sum(u * (u / v).ln() for u, v in zip(p, q, strict=True)))


@pytest.mark.parametrize("change", [1e-6, 1e-4, 0.02, 0.5])
@pytest.mark.parametrize("width", [0.02, 3.0])
def test_small_divergences_are_not_noise(change, width):
    rng = np.random.default_rng(4)
    base = (rng.standard_normal(100) * width).astype(np.float32)
    other = base + (rng.uniform(-1, 1, 100) * change).astype(np.float32)
    found = row_divergence(base.astype(float), other.astype(float), 100, "float32")
    assert found[0] == pytest.approx(exact_divergence(base, other), rel=1e-8)


def test_rows_that_differ_by_a_constant_do_not_diverge():
    base = np.random.default_rng(5).standard_normal((1, 64))
    assert row_divergence(base[0], base[0] + 0.01, 64, "float32")[0] < 1e-30
