"""Karcher mean."""

import math

import numpy as np
import pytest
import torch

from weightsmith.errors import ArgumentError
from weightsmith.merge.karcher import karcher
from weightsmith.merge.slerp import slerp
from weightsmith.method import Tile


def slow_karcher(models, weights, rounds=10, tol=1e-5):
    """The iteration on the vectors themselves."""
    lengths = [np.linalg.norm(x) for x in models]
    total = sum(weights)
    units = [(w / total, x / n) for w, x, n in zip(weights, models, lengths, strict=True) if n > 0]
    share = sum(w for w, _ in units)
    mean = sum(w * u for w, u in units)
    mean = mean / np.linalg.norm(mean)
    for _ in range(rounds):
        pull = np.zeros_like(mean)
        for w, u in units:
            along = float(np.clip(mean @ u, -1, 1))
            angle = math.acos(along)
            if math.sin(angle) > 1e-7:
                pull += w / share * angle / math.sin(angle) * (u - along * mean)
        size = np.linalg.norm(pull)
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) * pull / size
        mean = mean / np.linalg.norm(mean)
    return mean * sum(w / total * n for w, n in zip(weights, lengths, strict=True))


def test_by_hand():
    # Directions at right angles: their mean lies at 45 degrees; lengths 1 and 3: 2.
    found = karcher([np.array([1.0, 0.0]), np.array([0.0, 3.0])])
    np.testing.assert_allclose(found, [math.sqrt(2), math.sqrt(2)], rtol=1e-15)
    # Weights 2 : 1 on an arc of 90 degrees: 30 degrees from the first.
    found = karcher([np.array([1.0, 0.0]), np.array([0.0, 1.0])], coefficients=(2, 1), max_iter=100, tol=0.0)
    np.testing.assert_allclose(found, [math.cos(math.pi / 6), math.sin(math.pi / 6)], rtol=1e-14)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_iteration_on_vectors(count, seed):
    rng = np.random.default_rng(seed)
    models = rng.standard_normal((count, 50)) + 0.3
    weights = rng.uniform(0.1, 2, count)
    for rounds in (0, 1, 10):
        found = karcher(list(models), coefficients=tuple(weights), max_iter=rounds)
        np.testing.assert_allclose(found, slow_karcher(models, weights, rounds), rtol=0, atol=1e-12)
    found = karcher(list(models))
    np.testing.assert_allclose(found, slow_karcher(models, [1.0] * count), rtol=0, atol=1e-12)


def test_it_minimizes_the_squared_angles():
    rng = np.random.default_rng(5)
    models = [x / np.linalg.norm(x) for x in rng.standard_normal((4, 6)) + 1]

    def cost(x):
        return sum(math.acos(np.clip(x @ u / np.linalg.norm(x), -1, 1)) ** 2 for u in models)

    found = karcher(models, max_iter=50, tol=0.0)
    best = cost(found)
    for _ in range(200):
        assert cost(found + 1e-3 * rng.standard_normal(6)) > best


def test_two_of_one_length_meet_where_slerp_does():
    rng = np.random.default_rng(6)
    a, b = (x / np.linalg.norm(x) * 3 for x in rng.standard_normal((2, 40)))
    np.testing.assert_allclose(karcher([a, b]), slerp([a, b], t=0.5), rtol=0, atol=1e-14)


def test_lengths_are_averaged_apart():
    a, b = np.array([3.0, 4.0]), np.array([4.0, 3.0])
    assert np.linalg.norm(karcher([a, 3 * b])) == pytest.approx(10.0, rel=1e-15)
    assert np.linalg.norm(karcher([a, 3 * b], coefficients=(3, 1))) == pytest.approx(7.5, rel=1e-15)


def test_copies_come_back_bit_for_bit():
    rng = np.random.default_rng(7)
    for dtype in (np.float32, np.float64):
        for count in (1, 2, 3, 7):
            model = rng.standard_normal(100).astype(dtype)
            assert np.array_equal(karcher([model.copy() for _ in range(count)]), model)


def test_opposite_and_zero_inputs_give_numbers():
    x = np.array([3.0, 4.0])
    np.testing.assert_allclose(karcher([x, -x]), x, rtol=1e-15)  # no direction is better than the first's
    np.testing.assert_allclose(karcher([x, -x, x]), x, rtol=1e-14)
    near = karcher([x, -x + 1e-12])
    assert np.isfinite(near).all()
    assert np.linalg.norm(near) == pytest.approx(5.0)
    # A model of zeros has a share in the mean length alone.
    assert karcher([x, np.zeros(2)]).tolist() == [1.5, 2.0]
    assert karcher([np.zeros(2), np.zeros(2)]).tolist() == [0.0, 0.0]
    assert karcher([x, x], coefficients=(0, 1)).tolist() == x.tolist()


@pytest.mark.parametrize("wrong", [(-1.0, 2.0), (0.0, 0.0)])
def test_coefficients_that_are_no_weights(wrong):
    with pytest.raises(ArgumentError, match="merge karcher: coefficients"):
        karcher([np.ones(2), np.ones(2)], coefficients=wrong)


def narrow_karcher(models, rounds):
    """The iteration on tensors of a narrow dtype, as a tool computes it that never widens more than norms and angles."""
    norms = [x.float().norm() for x in models]
    units = [(x / n).to(x.dtype) for x, n in zip(models, norms, strict=True)]
    mean = torch.zeros_like(units[0])
    for unit in units:
        mean = mean + unit / len(units)
    mean = (mean / mean.float().norm()).to(mean.dtype)
    for _ in range(rounds):
        pull = torch.zeros_like(mean)
        for unit in units:
            along = (mean.float() @ unit.float()).to(mean.dtype).clamp(-1, 1)
            angle = along.arccos()
            if angle > 1e-5:
                pull = pull + (angle / angle.sin()) / len(units) * (unit - along * mean)
        size = pull.float().norm()
        if size < 1e-5:
            break
        mean = size.cos().to(mean.dtype) * mean + size.sin().to(mean.dtype) * (pull / size).to(mean.dtype)
        mean = (mean / mean.float().norm()).to(mean.dtype)
    return (sum(norms) / len(norms)).to(mean.dtype) * mean


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("spread", "rounds", "share"), [(0.01, 10, 0.0), (3.0, 0, 1e-3), (3.0, 1, 1e-3), (0.3, 10, 0.05)]
)
def test_in_a_narrow_dtype_each_step_is_rounded(dtype, spread, rounds, share):
    torch.manual_seed(0)
    start = torch.randn(4000)
    models = [(start + spread * torch.randn(4000)).to(dtype) for _ in range(4)]
    expected = narrow_karcher(models, rounds).float().numpy()
    tile = Tile(precision=str(dtype).removeprefix("torch."))
    given = [m.float().numpy() for m in models]
    found = karcher(given, max_iter=rounds, tile=tile)
    assert (found != expected).mean() <= share  # sums are formed in float32 there
    torch_found = karcher([m.float() for m in models], max_iter=rounds, tile=tile)
    assert np.array_equal(torch_found.numpy(), found)
    assert (found != karcher(given, max_iter=rounds)).mean() > 0.5


def test_in_a_narrow_dtype_one_model_comes_back_and_zeros_give_numbers():
    model = torch.randn(300, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).float().numpy()
    tile = Tile(precision="bfloat16")
    assert np.array_equal(karcher([model], tile=tile), model)
    assert karcher([model * 0, model * 0], tile=tile).tolist() == [0.0] * 300
    half = karcher([model, model * 0], tile=tile)  # a direction of its own, at half the length
    np.testing.assert_allclose(half, model / 2, rtol=0.02)
    np.testing.assert_allclose(karcher([model, -model], tile=tile), model, rtol=0.02)  # they cancel: the first's
