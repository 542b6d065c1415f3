"""Units on axes: by hand, and merging against a version that holds the weights and recomputes every distance."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from weightsmith.tensor.permute import UnitAxis, add_products, best_order, merge_closest, merged, permuted, unfold


def test_blocks_and_repeats_by_hand():
    fused = np.arange(12)  # repeat 2: units (0 1)(2 3)(4 5), then (6 7)(8 9)(10 11)
    where = UnitAxis(0, repeat=2, block=2)
    assert where.units(fused.shape) == 3
    assert unfold(fused, where).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert permuted(fused, where, np.array([2, 0, 1])).tolist() == [4, 5, 0, 1, 2, 3, 10, 11, 6, 7, 8, 9]


@pytest.mark.parametrize("where", [UnitAxis(0), UnitAxis(1), UnitAxis(2, 2, 3), UnitAxis(1, 1, 2), UnitAxis(0, 2)])
def test_permuting_is_permuting_the_unfolded_rows(where):
    array = np.random.default_rng(0).integers(0, 99, (4, 6, 12))
    order = np.random.default_rng(1).permutation(where.units(array.shape))
    found = permuted(array, where, order)
    assert found.shape == array.shape
    assert np.array_equal(unfold(found, where), unfold(array, where)[order])
    assert np.array_equal(permuted(found, where, np.argsort(order)), array)


@pytest.mark.parametrize("summed", [True, False])
def test_merging_against_a_loop(summed):
    array, where, labels = np.random.default_rng(0).normal(size=(3, 12, 2)), UnitAxis(1, 2, 2), np.array([0, 1, 0])
    found = merged(array, where, labels, summed=summed)
    cut = array.reshape(3, 2, 3, 2, 2)
    both = cut[:, :, 0] + cut[:, :, 2]
    expected = np.stack([both if summed else both / 2, cut[:, :, 1]], axis=2).reshape(3, 8, 2)
    assert np.allclose(found, expected, rtol=1e-15)


def test_products_have_the_same_bits_for_any_number_of_threads(monkeypatch):
    import threadpoolctl

    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 700, 300)).astype(np.float32)
    monkeypatch.setattr("weightsmith.tensor.permute.PRODUCT_BYTES", 8 * 700 * 64)
    made = []
    for threads in (1, 3):
        total = np.zeros((700, 700))
        with ThreadPoolExecutor(threads) as pool, threadpoolctl.threadpool_limits(1, "blas"):
            add_products(total, first, second, pool)
        made.append(total)
    assert np.array_equal(*made)
    assert np.allclose(made[0], first.astype(np.float64) @ second.T.astype(np.float64), rtol=1e-12, atol=1e-12)


def test_best_order_is_the_best_of_all():
    from itertools import permutations

    scores = np.random.default_rng(3).normal(size=(6, 6))
    order = best_order(scores)
    best = max(permutations(range(6)), key=lambda p: sum(scores[i, j] for i, j in enumerate(p)))
    assert order.tolist() == list(best)


def slowly_merged(x, y, beta, most):
    """The same, holding the weights: one pair at a time, every distance computed anew."""
    alive = {i: (1, x[i].copy(), y[i].copy()) for i in range(len(x))}
    labels = list(range(len(x)))

    def gap(i, j):
        return np.square(alive[i][1] - alive[j][1]).sum() + np.square(alive[i][2] - alive[j][2]).sum()

    bound = beta * max(gap(i, j) for i in alive for j in alive)
    for _ in range(most):
        pairs = [(gap(i, j), i, j) for i in alive for j in alive if i < j]
        if not pairs or min(pairs)[0] > bound:
            break
        _, i, j = min(pairs)
        (n, a, o), (m, b, p) = alive[i], alive.pop(j)
        alive[i] = n + m, (n * a + m * b) / (n + m), o + p
        labels = [i if k == j else k for k in labels]
    return np.unique(labels, return_inverse=True)[1].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beta", "most"), [(0.1, 20), (0.3, 20), (0.6, 20), (1.0, 5), (1.0, 20), (0.0, 20), (0.5, 0)])
def test_merging_the_closest_against_the_slow_version(seed, beta, most):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(6, 9))
    x = centers[rng.integers(0, 6, 21)] + 0.3 * rng.normal(size=(21, 9))
    y = rng.normal(size=(21, 4)) * 0.2
    found = merge_closest(x @ x.T, y @ y.T, np.arange(21), beta, most)
    assert found.tolist() == slowly_merged(x, y, beta, most)
    if beta == 0.3:
        assert 1 < len(set(found)) < 21  # so the case tells something


def test_copies_go_first_however_many():
    x, y = np.array([[1.0], [1.0], [1.0], [2.0]]), np.array([[3.0], [3.0], [3.0], [1.0]])
    copies = np.array([0, 0, 0, 3])
    assert merge_closest(x @ x.T, y @ y.T, copies, 0.0, 3).tolist() == [0, 0, 0, 1]
    assert merge_closest(x @ x.T, y @ y.T, copies, 0.0, 1).tolist() == [0, 0, 1, 2]
