"""Multi-SLERP."""

import math

import numpy as np
import pytest
import torch

from weightsmith.errors import ArgumentError
from weightsmith.merge.multislerp import multislerp
from weightsmith.method import Tile


def slow(vectors, weights, eps=1e-8):
    """The whole formula, with its tangent step."""
    lengths = [math.sqrt(math.fsum(v * v for v in x)) for x in vectors]
    units = [[v / (n + eps) for v in x] for x, n in zip(vectors, lengths, strict=True)]
    mean = [math.fsum(w * u for w, u in zip(weights, c, strict=True)) for c in zip(*units, strict=True)]
    size = math.hypot(*mean)
    mean = [m / size for m in mean]
    dots = [math.fsum(u * m for u, m in zip(x, mean, strict=True)) for x in units]
    step = [
        math.fsum(w * (u - d * m) for w, u, d in zip(weights, c, dots, strict=True))
        for c, m in zip(zip(*units, strict=True), mean, strict=True)
    ]
    far = math.hypot(*step) + eps
    along = math.fsum(w * n for w, n in zip(weights, lengths, strict=True))
    return [(m * math.cos(far) + s * math.sin(far) / far) * along for m, s in zip(mean, step, strict=True)]


def test_by_hand():
    # Unit vectors (1, 0) and (0, 1): halfway at 45 degrees, of the mean length 2.
    found = multislerp([np.array([1.0, 0.0]), np.array([0.0, 3.0])])
    np.testing.assert_allclose(found, [math.sqrt(2)] * 2, rtol=1e-7)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.4), (1.0, -0.3, 2.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_against_the_whole_formula(weights, normalize):
    models = np.random.default_rng(1).standard_normal((3, 60)) * np.array([[1.0], [2.0], [0.5]])
    factors = [w / sum(weights) for w in weights] if normalize else weights
    found = multislerp(list(models), coefficients=weights, normalize=normalize)
    np.testing.assert_allclose(found, slow(models.tolist(), factors), rtol=1e-9, atol=1e-12)


def test_the_length_is_the_mean_length():
    models = np.random.default_rng(2).standard_normal((4, 50)) * np.array([[1.0], [2.0], [3.0], [4.0]])
    found = multislerp(list(models))
    assert math.isclose(np.linalg.norm(found), np.linalg.norm(models, axis=1).mean(), rel_tol=1e-7)


def test_one_model_is_itself():
    model = np.array([0.1, -0.0, 3e-30])
    assert multislerp([model], coefficients=(7.0,)).tobytes() == model.tobytes()


def test_opposites():
    vector = np.arange(1.0, 5.0)
    found = multislerp([vector, -vector], coefficients=(1.0, 1.0))
    np.testing.assert_allclose(found, 0, atol=1e-15)
    with pytest.raises(ArgumentError, match="merge multislerp: coefficients; expected directions that do not cancel"):
        multislerp([vector, -vector, np.zeros(4)])


def test_coefficients_that_cancel_are_refused():
    with pytest.raises(ArgumentError, match="merge multislerp: coefficients"):
        multislerp([np.ones(2), np.ones(2)], coefficients=(1, -1))


def whole_formula(vectors, weights):
    """The whole formula in the dtype of the vectors, which torch rounds to after each step."""
    lengths = vectors.norm(dim=1, keepdim=True)
    units = vectors / (lengths + 1e-8)
    mean = (units * weights[:, None]).sum(0)
    mean = mean / mean.norm()
    tangents = units - (units * mean).sum(1, keepdim=True) * mean
    step = (tangents * weights[:, None]).sum(0)
    far = step.norm() + 1e-8
    return (mean * far.cos() + step * (far.sin() / far)) * (lengths[:, 0] * weights).sum()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_each_step_is_rounded_in_a_narrow_precision(precision):
    dtype = getattr(torch, precision)
    models = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 900)) * 0.1).to(dtype)
    weights = torch.tensor([0.7, 0.4, 0.2], dtype=dtype)
    expected = whole_formula(models, weights / weights.sum())
    for make in (lambda x: x, lambda x: x.float().numpy()):
        given = {"coefficients": (0.7, 0.4, 0.2), "tile": Tile(precision=precision)}
        found = multislerp([make(m) for m in models], **given)
        assert torch.equal(torch.as_tensor(found).to(dtype), expected)
