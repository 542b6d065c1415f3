"""Agreement: how many tasks need each weight, against a count written out."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith import Options, agreement
from weightsmith.errors import MismatchError


def counted(base, models, mask_lambda):
    vectors = [m.astype("float64") - base for m in models]
    total = sum(vectors)
    needed = sum((np.abs(v) > mask_lambda * np.abs(total - v)).astype(int) for v in vectors)
    return [int((needed == n).sum()) for n in range(len(models) + 1)]


def test_a_worked_example(tmp_path, save_arrays):
    # tau = (3, 0.5, 0), sums without each task as in the docstring; lambda 0.4:
    # entry 0: |3| > 0.4 * 1 and |1| > 0.4 * 3 is false: one task. Entry 1: |2| > 0.4 * 1.5 and |1.5| > 0.4 * 2: two.
    # Entry 2: neither moved: none.
    base = np.zeros(3, "float32")
    first, second = np.array([3.0, 2.0, 0.0], "float32"), np.array([1.0, -1.5, 0.0], "float32")
    folders = [save_arrays(tmp_path / n, {"w": a}) for n, a in (("base", base), ("a", first), ("b", second))]
    assert agreement(folders[0], folders[1:]) == {"w": [1, 1, 1]}
    assert agreement(folders[0], folders[1:], mask_lambda=0.3) == {"w": [1, 0, 2]}


@pytest.mark.parametrize("mask_lambda", [0.2, 0.4, 1.0])
def test_counts_of_every_tensor_for_any_cut(tmp_path, save_arrays, mask_lambda):
    shapes = {"layers.0.w": (400_003,), "layers.1.w": (31, 7), "scalar": (), "layers.2.v": (5,)}
    rng = np.random.default_rng(0)
    base = {n: np.asarray(rng.integers(-64, 64, s) / 64, "float32") for n, s in shapes.items()}
    models = [
        {n: np.asarray(a + rng.integers(-8, 9, a.shape) / 64, "float32") for n, a in base.items()} for _ in range(3)
    ]
    for model in models:
        model["steps"] = np.arange(3)
    folders = [save_arrays(tmp_path / f"m{i}", {"steps": np.arange(3), **m}) for i, m in enumerate([base, *models])]
    expected = {n: counted(base[n].astype("float64"), [m[n] for m in models], mask_lambda) for n in base}
    for options in (None, Options(threads=1, memory_bytes=200_000_000), Options(threads=4)):
        found = agreement(folders[0], folders[1:], mask_lambda=mask_lambda, options=options)
        assert "steps" not in found
        for name, counts in expected.items():
            assert sum(found[name]) == base[name].size, name
            close = np.abs(np.array(found[name]) - counts).max()
            assert close <= 0.001 * base[name].size, f"{name}: {found[name]}, expected about {counts}"


def test_inputs_that_do_not_fit_are_refused(tmp_path, save_arrays):
    folders = [save_arrays(tmp_path / f"m{i}", {"w": np.ones(3 + i, "float32")}) for i in range(2)]
    with pytest.raises(MismatchError, match="'w' has shape"):
        agreement(folders[0], [folders[1]])
