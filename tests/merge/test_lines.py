"""LiNeS."""

import math

import numpy as np
import pytest

from weightsmith.merge.lines import lines
from weightsmith.merge.ties import ties
from weightsmith.method import Tile


def at(layer, layers=5):
    return Tile(name="w", layer=layer, layers=layers)


def test_by_hand():
    # Two tasks: alpha = 1/2. Of 5 layers, layer 3 has 1/2 + .8 * 3/4 = 1.1. The sum is (1, 2).
    taus = [np.array([1.0, 0.0]), np.array([0.0, 2.0])]
    np.testing.assert_allclose(lines(np.zeros(2), taus, beta=0.8, tile=at(3)), [1.1, 2.2], rtol=1e-15)


@pytest.mark.parametrize("layer", [None, 0, 1, 4])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.3])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_sum_against_the_formula(layer, alpha, beta, levels):
    base, taus = levels(1)
    scale = (1 / 3 if alpha is None else alpha) + beta * (layer or 0) / 4
    expected = [b + scale * sum(c) for b, c in zip(base.tolist(), taus.T.tolist(), strict=True)]
    found = lines(base, list(taus), alpha=alpha, beta=beta, tile=at(layer))
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layer", [None, 0, 2, 4])
def test_ties_against_the_formula(layer, levels):
    base, taus = levels(2)
    vector = ties(np.zeros(60), list(taus), density=0.3)
    alpha = math.fsum(abs(taus.sum(0))) / math.fsum(abs(vector)) / 3
    expected = base + (alpha + 0.5 * (layer or 0) / 4) * vector
    found = lines(base, list(taus), merged="ties", density=0.3, tile=at(layer))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("layer", [None, 0, 2, 4])
def test_alpha_one_beta_zero_adds_the_vector(layer, levels):
    base, taus = levels(3)
    assert np.array_equal(lines(base, list(taus), alpha=1.0, beta=0.0, tile=at(layer)), base + taus.sum(0))
    found = lines(base, list(taus), alpha=1.0, beta=0.0, merged="ties", tile=at(layer))
    np.testing.assert_allclose(found, ties(base, list(taus)), rtol=1e-15)


def test_alpha_zero_beta_zero_is_the_base(levels):
    base, taus = levels(3)
    assert np.array_equal(lines(base, list(taus), alpha=0.0, beta=0.0, tile=at(4)), base)


def test_first_and_last_layer_have_the_ends_exactly(levels):
    base, taus = levels(4, tasks=1)
    assert np.array_equal(lines(base, list(taus), alpha=0.25, beta=0.5, tile=at(0)), base + 0.25 * taus[0])
    assert np.array_equal(lines(base, list(taus), alpha=0.25, beta=0.5, tile=at(4)), base + 0.75 * taus[0])
    assert np.array_equal(lines(base, list(taus), alpha=0.25, beta=0.5, tile=at(2)), base + 0.5 * taus[0])


def test_outside_the_layers_and_in_a_model_of_one_layer_alpha_holds(levels):
    base, taus = levels(5, tasks=1)
    for tile in (at(None), at(0, layers=1), Tile()):
        assert np.array_equal(lines(base, list(taus), alpha=0.25, beta=9.0, tile=tile), base + 0.25 * taus[0])


def test_commutes_with_scaling_of_the_vector(levels):
    _, taus = levels(6)
    zero = np.zeros(60)
    for merged in ("sum", "ties"):
        found = lines(zero, list(4 * taus), merged=merged, tile=at(3))
        assert np.array_equal(found, 4 * lines(zero, list(taus), merged=merged, tile=at(3)))


def test_one_task_ties_at_full_density_is_the_sum(levels):
    base, taus = levels(7, tasks=1)
    found = lines(base, list(taus), merged="ties", density=1.0, tile=at(2))
    assert np.array_equal(found, lines(base, list(taus), tile=at(2)))


def test_vectors_of_zeros_have_a_scale():
    assert lines(np.ones(3), [np.zeros(3)] * 2, merged="ties", tile=at(2)).tolist() == [1.0, 1.0, 1.0]
