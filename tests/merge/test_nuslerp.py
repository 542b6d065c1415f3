"""Spherical interpolation by weights."""

import math

import numpy as np
import pytest
import torch

from weightsmith.merge.nuslerp import nuslerp
from weightsmith.merge.slerp import slerp
from weightsmith.method import Tile


def slow(a, b, weights):
    t = 0.5 if abs(sum(weights)) < 1e-6 else weights[1] / sum(weights)
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    left, right = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [left * x + right * y for x, y in zip(a, b, strict=True)]


def test_by_hand():
    # A right angle, t = 1 / 3: sin 60 of the first and sin 30 of the second.
    found = nuslerp([np.array([2.0, 0.0]), np.array([0.0, 4.0])], coefficients=(2.0, 1.0))
    np.testing.assert_allclose(found, [2 * math.sqrt(3) / 2, 4 * 0.5], rtol=1e-14)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.1), (-1.0, 3.0), (1.0, -1.0)])
def test_against_one_number_at_a_time(weights):
    first, second = np.random.default_rng(1).standard_normal((2, 40))
    found = nuslerp([first, second], coefficients=weights)
    np.testing.assert_allclose(found, slow(first.tolist(), second.tolist(), weights), rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 12), (3, 4, 5), (1, 60)])
def test_rows_against_one_row_at_a_time(shape):
    first, second = np.random.default_rng(2).standard_normal((2, *shape))
    found = nuslerp([first, second], coefficients=(0.3, 0.9), scope="row")
    for place in np.ndindex(shape[:-1]):
        expected = slow(first[place].tolist(), second[place].tolist(), (0.3, 0.9))
        np.testing.assert_allclose(found[place], expected, rtol=1e-11)


def test_it_is_slerp_where_there_is_an_angle():
    first, second = np.random.default_rng(3).standard_normal((2, 50))
    np.testing.assert_allclose(
        nuslerp([first, second], coefficients=(1, 3)), slerp([first, second], t=0.75), rtol=1e-12
    )


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_without_an_angle_it_is_linear(scope):
    for first, second in ((np.ones(4), 3 * np.ones(4)), (np.zeros(4), np.zeros(4)), (np.ones(4), -np.ones(4))):
        found = nuslerp([first, second], coefficients=(1, 3), scope=scope)
        np.testing.assert_allclose(found, 0.25 * first + 0.75 * second, rtol=1e-7)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_each_step_is_rounded_in_a_narrow_precision(scope):
    rng = np.random.default_rng(4)
    first, second = (torch.from_numpy(rng.standard_normal((20, 64)) * 0.1).to(torch.bfloat16) for _ in range(2))
    x, y = (first, second) if scope == "row" else (first.reshape(1, -1), second.reshape(1, -1))
    units = [v / v.norm(dim=-1, keepdim=True) for v in (x, y)]
    angle = (units[0] * units[1]).sum(-1, keepdim=True).acos()
    expected = ((0.25 * angle).sin() * x + (0.75 * angle).sin() * y) / angle.sin()
    for make in (lambda v: v, lambda v: v.float().numpy()):
        tile = Tile(precision="bfloat16")
        found = nuslerp([make(first), make(second)], coefficients=(1, 3), scope=scope, tile=tile)
        assert torch.equal(torch.as_tensor(found).to(torch.bfloat16), expected.reshape(20, 64))
