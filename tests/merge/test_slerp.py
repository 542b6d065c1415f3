"""Spherical interpolation."""

import math

import numpy as np
import pytest

from weightsmith.merge.slerp import LINEAR_ABOVE, slerp


def test_by_hand():
    # A right angle: at t = 1/3, sin 60 = .8660 of the first and sin 30 = .5 of the second, each over sin 90 = 1.
    found = slerp([np.array([2.0, 0.0]), np.array([0.0, 4.0])], t=1 / 3)
    np.testing.assert_allclose(found, [2 * math.sqrt(3) / 2, 4 * 0.5], rtol=1e-14)


def slow(a, b, t):
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
    if abs(cosine) > LINEAR_ABOVE:
        return [x + t * (y - x) for x, y in zip(a, b, strict=True)]
    angle = math.acos(cosine)
    left, right = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [left * x + right * y for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, -0.5, 1.5])
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
def test_against_one_number_at_a_time(t, spread):
    rng = np.random.default_rng(1)
    first = rng.standard_normal(40)
    second = first + spread * rng.standard_normal(40)
    np.testing.assert_allclose(slerp([first, second], t=t), slow(first.tolist(), second.tolist(), t), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_ends_are_the_models_bit_for_bit(dtype):
    first, second = np.random.default_rng(2).standard_normal((2, 33)).astype(dtype)
    first[0] = -0.0
    assert slerp([first, second], t=0.0).tobytes() == first.tobytes()
    assert slerp([first, second], t=1.0).tobytes() == second.tobytes()


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_equal_norms_are_kept(t):
    first, second = np.random.default_rng(3).standard_normal((2, 50))
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    np.testing.assert_allclose(np.linalg.norm(slerp([first, second], t=t)), np.linalg.norm(first), rtol=1e-12)


def test_the_angle_grows_evenly():
    first, second = np.array([1.0, 0.0]), np.array([math.cos(1.2), math.sin(1.2)])
    for t in (0.25, 0.5, 0.75):
        x, y = slerp([first, second], t=t)
        assert math.isclose(math.atan2(y, x), 1.2 * t, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(4), np.zeros(4)),
        (np.zeros(4), np.ones(4)),
        (np.ones(4), np.zeros(4)),
        (np.arange(4.0), -np.arange(4.0)),
        (np.ones(4), np.ones(4)),
        (np.full(4, 1e-200), np.full(4, 1e-200)),
        (np.array([1.0]), np.array([-3.0])),
    ],
)
@pytest.mark.parametrize("t", [0.25, 0.5])
def test_without_an_angle_it_is_linear(first, second, t):
    np.testing.assert_allclose(slerp([first, second], t=t), first + t * (second - first), rtol=1e-15, atol=0)


def test_swapping_the_models_turns_t_around():
    first, second = np.random.default_rng(4).standard_normal((2, 50))
    np.testing.assert_allclose(slerp([first, second], t=0.3), slerp([second, first], t=0.7), rtol=1e-13)
