"""WUDI."""

import numpy as np
import pytest
import torch

from weightsmith.merge.wudi import wudi


def loss(merged, taus):
    return sum(np.linalg.norm((merged - t) @ t.T) ** 2 / np.linalg.norm(t) ** 2 for t in taus)


def draw(shape, tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) * 0.1 for _ in range(tasks)]


def test_by_hand():
    # Inputs (3, 0) of task 1 must give 3 * 3, so x_1 = 3; inputs (1, 2) of task 2 give 5 = 3 + 2 x_2.
    taus = [np.array([[3.0, 0.0]]), np.array([[1.0, 2.0]])]
    np.testing.assert_allclose(wudi(np.ones((1, 2)), taus, solver="closed"), [[4.0, 2.0]], atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (1, 7), (7, 1), (1, 1), (4, 3, 5)])
def test_closed_form_against_a_pseudo_inverse(shape):
    base, taus = draw(shape)
    flat = [t.reshape(shape[0], -1) for t in taus]
    inputs = sum(t.T @ t / np.linalg.norm(t) ** 2 for t in flat)
    right = sum(t @ t.T @ t / np.linalg.norm(t) ** 2 for t in flat)
    expected = (right @ np.linalg.pinv(inputs, rcond=1e-10)).reshape(shape)
    np.testing.assert_allclose(wudi(base, taus, solver="closed", lambda_=0.7), base + 0.7 * expected, atol=1e-8)


def test_closed_form_minimizes_the_loss():
    _, taus = draw((10, 8))
    found = wudi(np.zeros((10, 8)), taus, solver="closed")
    rng = np.random.default_rng(1)
    best = loss(found, taus)
    assert all(loss(found + 1e-3 * rng.standard_normal(found.shape), taus) > best for _ in range(20))


@pytest.mark.parametrize("shape", [(12, 12), (6, 20)])
def test_iterations_against_automatic_gradients(shape):
    _, taus = draw(shape)
    rms = np.sqrt(np.mean(np.square(taus)))
    theirs = torch.nn.Parameter(torch.from_numpy(sum(taus)))
    adam = torch.optim.Adam([theirs], lr=0.02 * rms, eps=1e-30)
    stack = [torch.from_numpy(t) for t in taus]
    for _ in range(40):
        value = sum((((theirs - t) @ t.T) ** 2).sum() / t.norm() ** 2 for t in stack)
        adam.zero_grad()
        value.backward()
        adam.step()
    found = wudi(np.zeros(shape), taus, steps=40)
    np.testing.assert_allclose(found, theirs.detach().numpy(), atol=1e-5 * rms)
    start = sum(taus)
    assert np.abs(found - start).max() > 5 * 0.02 * rms  # the steps did something


def test_iterations_bring_the_loss_down_towards_the_closed_form():
    _, taus = draw((16, 16))
    zero = np.zeros((16, 16))
    values = [loss(wudi(zero, taus, steps=n), taus) for n in (0, 10, 100, 1000)]
    assert values == sorted(values, reverse=True)
    best = loss(wudi(zero, taus, solver="closed"), taus)
    assert best < values[-1] < best + 0.05 * (values[0] - best)


@pytest.mark.parametrize("solver", ["iterative", "closed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_task_stays(solver, dtype):
    base, (tau,) = draw((10, 14), 1)
    zero = np.zeros(base.shape, dtype)
    np.testing.assert_allclose(wudi(zero, [tau.astype(dtype)], solver=solver), tau, atol=1e-6)


@pytest.mark.parametrize("solver", ["iterative", "closed"])
def test_tasks_with_orthogonal_inputs_are_added(solver):
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((20, 12)))[0]
    taus = [rng.standard_normal((15, 4)) @ basis[:, i : i + 4].T for i in (0, 4, 8)]
    # Adam makes steps of rounding errors, but none leads away.
    near = 1e-7 if solver == "closed" else 0.02 * np.sqrt(np.mean(np.square(taus)))
    np.testing.assert_allclose(wudi(np.zeros((15, 20)), taus, solver=solver), sum(taus), atol=near)


@pytest.mark.parametrize("solver", ["iterative", "closed"])
def test_a_zero_task_changes_nothing_but_the_unit(solver):
    base, taus = draw((8, 8), 2)
    zero = np.zeros((8, 8))
    # The root mean square counts all task vectors: 2 of 3 differ from zero.
    more = wudi(base, [*taus, zero], solver=solver, rate=0.02 * 1.5**0.5)
    np.testing.assert_allclose(more, wudi(base, taus, solver=solver), atol=1e-9)


def test_scale_does_not_matter():
    _, taus = draw((8, 10))
    found = [wudi(np.zeros((8, 10)), [t * s for t in taus], steps=30) / s for s in (1.0, 2.0**-40)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_vectors_get_the_mean():
    assert wudi(np.ones(2), [np.array([1.0, 2.0]), np.array([3.0, 0.0])], lambda_=0.5).tolist() == [2.0, 1.5]
