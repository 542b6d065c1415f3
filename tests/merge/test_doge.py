"""DOGE."""

import numpy as np
import pytest
import torch

from weightsmith.merge.doge import correction, doge, shared_subspace
from weightsmith.method import Matrices


def draw(shape, tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) * 0.1 for _ in range(tasks)]


def mask(tau, density):
    order = np.argsort(-np.abs(tau), axis=None, kind="stable")[: max(1, round(density * tau.size))]
    found = np.zeros(tau.size)
    found[order] = 1
    return found.reshape(tau.shape)


def subspace_of(taus, divisor):
    rank = min(taus[0].shape)
    left = np.concatenate([np.linalg.svd(t, full_matrices=False)[0][:, : rank // len(taus)] for t in taus], 1)
    return np.linalg.svd(left, full_matrices=False)[0][:, : rank // divisor]


def slow(taus, eta, density, divisor, steps, rate):
    """Follow the card, line by line, with gradients found automatically."""
    factors = [eta / np.linalg.norm(t) for t in taus]
    shared = torch.from_numpy(subspace_of(taus, divisor))
    stack = [torch.from_numpy(t) for t in taus]
    delta = torch.nn.Parameter(torch.zeros_like(stack[0]))
    adam = torch.optim.Adam([delta], lr=rate * np.sqrt(np.mean(np.square(taus))), eps=1e-30)
    for _ in range(steps):
        merged = sum(f * (t + delta) for f, t in zip(factors, stack, strict=True))
        loss = sum(((t * (t - merged)).sum(1) ** 2).sum() for t in stack)
        adam.zero_grad()
        loss.backward()
        delta.grad -= shared @ (shared.T @ delta.grad)
        adam.step()
    moved = delta.detach().numpy()
    return sum(f * (t + moved) * mask(t, density) for f, t in zip(factors, taus, strict=True))


def test_by_hand():
    # lambda = 1 / 5 and 1 / 2; half of each kept: the 4, the 2.
    taus = [np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])]
    found = doge(np.zeros((1, 2)), taus, eta=1.0, density=0.5, steps=0)
    np.testing.assert_allclose(found, [[0.0, 4 / 5 + 2 / 2]], atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (13, 30), (30, 13), (1, 7), (7, 1), (2, 2)])
def test_against_automatic_gradients(shape):
    base, taus = draw(shape)
    given = {"eta": 0.3, "density": 0.6, "steps": 25, "rate": 0.1}
    expected = slow(taus, divisor=3, **given)
    found = doge(base, taus, subspace=3, lambda_=0.5, **given)
    np.testing.assert_allclose(found, base + 0.5 * expected, atol=1e-6)
    if shape[1] > 1:
        still = doge(base, taus, subspace=3, lambda_=0.5, **{**given, "steps": 0})
        assert np.abs(found - still).max() > 1e-3


def test_no_steps_and_no_mask_give_task_vectors_of_equal_length():
    base, taus = draw((9, 14))
    found = doge(base, taus, steps=0, density=1.0, eta=0.07)
    np.testing.assert_allclose(found, base + sum(0.07 * t / np.linalg.norm(t) for t in taus), atol=1e-12)


@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
def test_subspace_is_that_of_decompositions_and_a_projector(shape):
    _, taus = draw(shape)
    found = shared_subspace(Matrices(3, shape, lambda t: taus[t]), 6)
    expected = subspace_of(taus, 6)
    assert found.shape == (shape[0], 4)
    projector = found @ found.T
    np.testing.assert_allclose(projector, expected @ expected.T, atol=1e-8)
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-10)


def test_first_step_follows_the_sign_of_the_projected_gradient():
    rng = np.random.default_rng(1)
    stack = rng.standard_normal((10, 2, 12))
    shared = np.linalg.qr(rng.standard_normal((10, 3)))[0]
    factors = np.array([0.3, 0.2])
    delta = correction(stack, factors, shared, 1, 0.01)
    merged = (factors[:, None] * stack).sum(1)
    errors = (stack * (stack - merged[:, None])).sum(2)
    gradient = -2 * factors.sum() * (errors[:, :, None] * stack).sum(1)
    projected = gradient - shared @ (shared.T @ gradient)
    np.testing.assert_allclose(shared.T @ projected, 0, atol=1e-10)
    np.testing.assert_allclose(delta, -0.01 * np.sign(projected), rtol=1e-4)


def test_loss_falls():
    rng = np.random.default_rng(2)
    stack, factors = rng.standard_normal((10, 3, 40)), np.array([0.3, 0.2, 0.25])
    values = []
    for steps in (0, 5, 50, 400):
        delta = correction(stack, factors, np.zeros((10, 0)), steps, 0.01)
        merged = (factors[:, None] * (stack + delta[:, None])).sum(1)
        values.append(np.square((stack * (stack - merged[:, None])).sum(2)).sum())
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01 * values[0]


def test_a_zero_task_and_no_task():
    base, taus = draw((8, 8), 2)
    zero = np.zeros((8, 8))
    assert np.isfinite(doge(base, [*taus, zero])).all()
    assert np.array_equal(doge(base, [zero, zero]), base)


def test_scale_does_not_matter_where_eta_follows_it():
    _, taus = draw((8, 10))
    found = [doge(np.zeros((8, 10)), [t * s for t in taus], eta=s, steps=20) / s for s in (1.0, 2.0**-40)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_vectors_keep_the_base():
    assert doge(np.ones(2), [np.array([1.0, 2.0]), np.array([3.0, 0.0])]).tolist() == [1.0, 1.0]
