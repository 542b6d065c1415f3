"""The loss barrier: by hand on a quadratic, and what it refuses."""

import numpy as np
import pytest

from weightsmith import barrier
from weightsmith.errors import ArgumentError, MismatchError


@pytest.fixture
def pair(tmp_path, save_raw):
    def numbers(*values):
        return "F32", (len(values),), np.array(values, np.float32).tobytes()

    return [
        save_raw(
            tmp_path / n / "model.safetensors", {"w": numbers(x), "steps": ("I64", (1,), bytes([x + 5] + [0] * 7))}
        )
        for n, x in (("a", -1), ("b", 3))
    ]


def test_by_hand(pair):
    seen = []

    def loss(weights):
        seen.append(weights["w"].item())
        assert weights["steps"].item() == 4  # counters are the first's
        return 9 - weights["w"].item() ** 2

    found = barrier(*pair, loss, points=5)
    assert seen == [-1, 0, 1, 2, 3]
    assert found.losses == (8, 9, 8, 5, 0)
    assert (found.height, found.at) == (4.0, 0.5)  # line: 8 6 4 2 0
    assert found.shares == (0, 0.25, 0.5, 0.75, 1)


def test_never_below_zero_and_25_points(pair):
    found = barrier(*pair, lambda weights: weights["w"].item() ** 2)
    assert (found.height, len(found.losses)) == (0.0, 25)


def test_the_callback_may_change_its_arrays(pair):
    def loss(weights):
        value = weights["w"].item()
        weights["w"] *= 0
        return value

    assert barrier(*pair, loss, points=3).losses == (-1, 1, 3)


def test_refusals(pair, tmp_path, save_raw):
    with pytest.raises(ArgumentError, match="finite number"):
        barrier(*pair, lambda weights: float("nan"))
    with pytest.raises(ArgumentError, match="at least 2"):
        barrier(*pair, lambda weights: 0.0, points=1)
    other = save_raw(tmp_path / "c" / "model.safetensors", {"w": ("F32", (2,), bytes(8)), "v": ("F32", (1,), bytes(4))})
    with pytest.raises(MismatchError) as caught:
        barrier(pair[0], other, lambda weights: 0.0)
    assert all(told in str(caught.value) for told in ("'v'", "'steps'", "(1,) and (2,)"))
