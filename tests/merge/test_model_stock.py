"""Model Stock."""

import math

import numpy as np
import pytest
import torch

from weightsmith.merge.model_stock import model_stock
from weightsmith.method import Tile


def slow_share(taus, clamp):
    """t, one pair and one number at a time."""
    count = len(taus)
    found = []
    for s in range(count):
        for t in range(s + 1, count):
            a, b = taus[s].tolist(), taus[t].tolist()
            dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
            lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
            found.append(dot / lengths if lengths else 0.0)
    cosine = sum(found) / len(found)
    bottom = 1 + (count - 1) * cosine
    share = count * cosine / bottom if abs(bottom) >= 1e-6 else 0.0
    return min(max(share, 0.0), 1.0) if clamp else share


def test_by_hand():
    # cos = .6, T = 2: t = 1.2 / 1.6 = .75; mean (.8, .4).
    taus = [np.array([1.0, 0.0]), np.array([0.6, 0.8])]
    np.testing.assert_allclose(model_stock(np.ones(2), taus), [1.6, 1.3], rtol=1e-15)
    # Three at right angles but for one pair at cos .6: c = .2, t = .6 / 1.4.
    taus = [np.array([2.0, 0.0, 0.0]), np.array([0.6, 0.8, 0.0]), np.array([0.0, 0.0, 5.0])]
    np.testing.assert_allclose(model_stock(np.zeros(3), taus), 0.6 / 1.4 * np.sum(taus, 0) / 3, rtol=1e-14)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_against_one_pair_at_a_time(tasks, clamp, levels):
    for seed in range(4):
        base, taus = levels(seed, tasks=tasks)
        expected = base + slow_share(taus, clamp) * taus.mean(0)
        np.testing.assert_allclose(model_stock(base, list(taus), clamp=clamp), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 12), (3, 4, 5), (60, 1), (60,)])
def test_rows_against_one_row_at_a_time(shape, levels):
    base, taus = levels(8)
    base, taus = base.reshape(shape), taus.reshape(3, *shape)
    expected = base.copy()
    for place in np.ndindex(shape[:-1]):
        expected[place] += slow_share([t[place] for t in taus], True) * np.mean([t[place] for t in taus], 0)
    found = model_stock(base, list(taus), scope="row")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, 5000])
def test_rows_in_torch_have_the_same_bits(length):
    rng = np.random.default_rng(length)
    base, *taus = rng.standard_normal((4, 3, length)).astype(np.float32)
    found = model_stock(base, taus, scope="row")
    theirs = model_stock(torch.from_numpy(base), [torch.from_numpy(t) for t in taus], scope="row")
    assert np.array_equal(found, theirs.numpy())
    alone = np.stack([model_stock(b, list(t), scope="row") for b, t in zip(base, np.stack(taus, 1), strict=True)])
    assert np.array_equal(found, alone)


def test_the_same_direction_is_the_mean_and_right_angles_give_the_base(levels):
    base, taus = levels(9)
    same = [taus[0], 2 * taus[0], 3 * taus[0]]
    np.testing.assert_allclose(model_stock(base, same), base + 2 * taus[0], rtol=0, atol=1e-13)
    apart = [np.array([1.0, 0.0, 0.0]), np.array([0.0, 2.0, 0.0]), np.array([0.0, 0.0, -3.0])]
    assert model_stock(np.ones(3), apart).tolist() == [1.0, 1.0, 1.0]


def test_clamping_keeps_opposite_runs_at_the_base():
    taus = [np.array([1.0, 0.0]), np.array([-0.6, 0.8])]  # cos = -.6: t = -1.2 / .4 = -3
    assert model_stock(np.zeros(2), taus).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(model_stock(np.zeros(2), taus, clamp=False), [-0.6, -1.2], rtol=1e-14)
    against = [np.array([1.0, 2.0]), np.array([-1.0, -2.5])]
    exact = [np.array([1.0, 2.0]), np.array([-2.0, -4.0])]  # the divisor is 0
    assert model_stock(np.zeros(2), exact, clamp=False).tolist() == [0.0, 0.0]
    assert np.isfinite(model_stock(np.zeros(2), against, clamp=False)).all()


def test_the_length_of_a_task_vector_does_not_change_the_share(levels):
    _, taus = levels(10)
    zero = np.zeros(60)
    scaled = [taus[0], 1e-6 * taus[1]]
    share = slow_share(taus[:2], True)
    assert share > 0
    np.testing.assert_allclose(model_stock(zero, scaled), share * np.mean(scaled, 0), rtol=0, atol=1e-13)


def narrow_stock(base, models):
    """Row by row in a narrow dtype throughout, torch rounding each step."""
    offsets = [m - base for m in models]
    found = []
    for s in range(len(models)):
        for t in range(s + 1, len(models)):
            lengths = offsets[s].norm(dim=-1) * offsets[t].norm(dim=-1)
            found.append(((offsets[s] * offsets[t]).sum(-1) / lengths.clamp(min=1e-6)).clamp(-1, 1))
    cosine = torch.stack(found).mean(0)[..., None]
    share = len(models) * cosine / (1 + (len(models) - 1) * cosine)
    return share * (sum(models) / len(models)) + (1 - share) * base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_in_a_narrow_dtype_each_step_is_rounded(dtype, scope):
    torch.manual_seed(1)
    shape = (50, 96) if scope == "row" else (960,)
    base = torch.randn(shape).to(dtype)
    shift = torch.randn(shape) / 30
    models = [(base + shift + torch.randn(shape) / 30).to(dtype) for _ in range(3)]
    expected = narrow_stock(base, models).float().numpy()
    tile = Tile(precision=str(dtype).removeprefix("torch."))
    given = base.float().numpy(), [(m.float() - base.float()).numpy() for m in models]
    found = model_stock(*given, clamp=False, scope=scope, tile=tile)
    rows = (found != expected).reshape(-1, shape[-1]).any(1)
    assert rows.mean() <= (0.1 if scope == "row" else 0)  # a share may round the other way: float32 sums have an order
    theirs = model_stock(torch.from_numpy(given[0]), [torch.from_numpy(t) for t in given[1]], scope=scope, tile=tile)
    assert np.array_equal(model_stock(*given, scope=scope, tile=tile), theirs.numpy())
    assert (found != model_stock(*given, clamp=False, scope=scope)).mean() > 0.5
