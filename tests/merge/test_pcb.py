"""PCB-Merging."""

import math

import numpy as np
import pytest
import torch

from weightsmith.merge.pcb import CLIPS, pcb
from weightsmith.tensor.arrays import Plain
from weightsmith.tensor.competition import competition


def unit(values):
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


def slow_pcb(taus, variant, density, clip=None, factors=None):
    """Lists, sorts, math.exp and math.tanh: one number at a time."""
    tasks, size = taus.shape
    cut = math.floor((CLIPS[variant] if clip is None else clip) * size)
    clipped, scaled = [], []
    for tau in taus.tolist():
        order = sorted(abs(v) for v in tau)
        low, high = order[cut], order[size - 1 - cut]
        clipped.append([min(max(abs(v), low), high) for v in tau])
        scaled.append(unit(clipped[-1]))
    sign = np.sign(taus)
    total = (sign * np.array(scaled)).sum(0) if variant == "vision" else taus.sum(0)
    scores = []
    for tau, x in zip(taus.tolist(), scaled, strict=True):
        balance = [math.exp(tasks * y * y) * math.tanh(v * s) for v, y, s in zip(tau, x, total.tolist(), strict=True)]
        bound = sorted(balance, reverse=True)[max(1, round(density * size)) - 1]
        scores.append(unit([max(b, bound) for b in balance]))
    scores, factors = np.array(scores), np.ones(tasks) if factors is None else np.array(factors)
    merged = (scores * factors[:, None] * sign * np.array(clipped)).sum(0)
    return merged / np.maximum(scores.sum(0), 1e-12)


def test_by_hand():
    # Nothing is clipped (floor(.0001 * 4) = 0); x = 1, 1/4, 1/8, 0 and 1/2, 0, 1, 0.
    # Sums 6, 0, -3.5, 1. The two largest balances of task 1 are its first and third entry, of task 2 too, and of each
    # pair the smaller is the threshold: task 1 keeps its first entry, task 2 its third.
    taus = [np.array([4.0, 1.0, -0.5, 0.0]), np.array([2.0, -1.0, -3.0, 1.0])]
    assert pcb(np.ones(4), taus, density=0.5).tolist() == [5.0, 1.0, -2.0, 1.0]
    assert pcb(np.ones(4), taus, density=0.5, coefficients=(0.5, 2.0), lambda_=2.0).tolist() == [5.0, 1.0, -11.0, 1.0]


@pytest.mark.parametrize("variant", list(CLIPS))
@pytest.mark.parametrize("density", [1e-9, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("size", [2, 3, 60, 1003])
def test_against_one_number_at_a_time(variant, density, size):
    for seed, tasks, scale in ((0, 1, 1.0), (1, 3, 0.01), (2, 5, 4.0)):
        taus = np.random.default_rng(seed).standard_normal((tasks, size)) * scale
        for clip in (None, 0.0, 0.2):
            found = pcb(np.zeros(size), list(taus), variant=variant, density=density, clip=clip)
            expected = slow_pcb(taus, variant, density, clip)
            # Where tanh saturates, scores hang on the last digits of what lies between threshold and maximum.
            np.testing.assert_allclose(found, expected, rtol=1e-8 if scale <= 1 else 1e-5, atol=1e-10 * scale)


def test_factors_against_one_number_at_a_time():
    taus = np.random.default_rng(3).standard_normal((3, 200))
    factors = (1.2, -0.5, 0.8)
    expected = 1 + 0.7 * slow_pcb(taus, "language", 0.2, factors=factors)
    found = pcb(np.ones(200), list(taus), density=0.2, coefficients=factors, lambda_=0.7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_variants_differ():
    taus = list(np.random.default_rng(4).standard_normal((3, 400)))
    language, vision, same = (
        pcb(np.zeros(400), taus, variant=v, clip=c) for v, c in (("language", 0.0), ("vision", 0.0), ("vision", None))
    )
    assert not np.array_equal(language, vision)
    assert not np.array_equal(same, vision)


def test_one_task_is_its_model_but_for_the_least_entry():
    tau = np.random.default_rng(5).standard_normal(300)
    found = pcb(np.zeros(300), [tau], density=1.0, clip=0.0)
    kept = np.abs(tau) > 1e-3  # where the score exceeds 1e-12 by far
    kept[np.argmin(np.abs(tau))] = False
    assert kept.sum() > 290
    np.testing.assert_allclose(found[kept], tau[kept], rtol=1e-12)
    assert found[np.argmin(np.abs(tau))] == 0


def test_order_of_tasks_does_not_matter(levels):
    base, taus = levels(6, tasks=4)
    for variant in CLIPS:
        found = pcb(base, list(taus[[2, 0, 3, 1]]), variant=variant)
        np.testing.assert_allclose(found, pcb(base, list(taus), variant=variant), rtol=0, atol=1e-13)


def test_a_task_of_zeros_only_raises_the_power():
    taus = np.random.default_rng(7).standard_normal((2, 100))
    more = np.concatenate([taus, np.zeros((1, 100))])
    found = pcb(np.zeros(100), list(more), density=0.3)
    np.testing.assert_allclose(found, slow_pcb(more, "language", 0.3), rtol=0, atol=1e-9)
    assert not np.allclose(found, pcb(np.zeros(100), list(taus), density=0.3))
    kept = slow_pcb(taus, "language", 0.3) != 0
    assert np.array_equal(found != 0, kept) or (found != 0).sum() <= 60


def test_support_is_bounded_by_the_density():
    taus = list(np.random.default_rng(8).standard_normal((4, 1000)))
    assert 0 < np.count_nonzero(pcb(np.zeros(1000), taus, density=0.05)) <= 4 * 50


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 30.0])
def test_compiled_and_eager_balance_have_the_same_bits(normalized, dtype, scale):
    rng = np.random.default_rng(9)
    vectors = (rng.standard_normal((3, 3000)) * scale).astype(dtype)
    vectors[:, ::7] = 0
    low, high = np.quantile(np.abs(vectors.astype(float)), [0.3, 0.9], axis=1)
    high[1] = low[1]
    found = competition(vectors, low, high, normalized)
    eager = competition(vectors.view(Plain), low, high, normalized)
    theirs = competition(torch.from_numpy(vectors), low, high, normalized)
    assert found.dtype == dtype
    assert np.array_equal(found, np.asarray(eager))
    assert np.array_equal(found, theirs.numpy())
    assert found.any()


def test_exp_and_tanh_are_what_they_should_be():
    vectors = np.random.default_rng(10).standard_normal((2, 5000)) * np.array([[1.0], [9.0]])
    low, high = np.zeros(2), np.array([4.0, 30.0])
    x = np.minimum(np.abs(vectors), high[:, None]) / high[:, None]
    expected = np.exp(2 * (x * x - 1)) * np.tanh(vectors * vectors.sum(0))
    np.testing.assert_allclose(competition(vectors, low, high, False), expected, rtol=4e-12)


def test_many_tasks_do_not_overflow():
    taus = np.random.default_rng(11).standard_normal((100, 50)).astype(np.float32)
    assert np.isfinite(pcb(np.zeros(50, np.float32), list(taus), density=0.5)).all()
