"""What a bundle stores: the published figures from their counts, and measured bytes beside the formula."""

import json

import numpy as np
import pytest

from weightsmith import Bundle, pack
from weightsmith.bundle.account import formula
from weightsmith.compress import ENCODINGS

# A vision transformer: numbers of the visual encoder, which are merged, and all others, which stay frozen.
MERGED, FROZEN = 87_849_216, 25_599_489


@pytest.mark.parametrize(("tasks", "individual", "bundle"), [(8, 23.31, 7.14), (14, 40.18, 7.67), (20, 57.04, 8.20)])
def test_the_published_figures(tasks, individual, bundle):
    found = formula("tall_masks", MERGED, FROZEN, tasks, 32)
    assert [round(bits / 1e9, 2) for bits in found] == [individual, bundle]


def test_each_further_task_costs_one_bit_per_number():
    more, fewer = (formula("tall_masks", MERGED, FROZEN, n, 32)[1] for n in (9, 8))
    assert more - fewer == MERGED


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
def test_formulas_give_bits_or_nothing(encoding):
    individual, bits = formula(encoding.name, 1000, 10, 4, 16)
    assert individual == 16 * 4010
    assert bits is None or 0 < bits < 1e6


def test_measured_beside_the_formula(tmp_path, save_arrays):
    """Four tasks of 400,000 numbers: base and shared vector in 32 bits, four masks; files come to what the formula says."""
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((400, 1000)).astype(np.float32), "frozen": np.ones(1000, np.float32)}
    models = {}
    for i in range(4):
        tuned = {**base, "w": base["w"] + (0.1 * rng.standard_normal((400, 1000))).astype(np.float32)}
        models[f"t{i}"] = save_arrays(tmp_path / f"t{i}", tuned)
    bundle = pack("tall_masks", base=save_arrays(tmp_path / "base", base), models=models, out=tmp_path / "out").out
    found = Bundle(bundle).account()
    assert (found.merged, found.frozen, found.bits) == (400_000, 1000, 32)
    assert found.individual_bytes == 4 * 4 * 401_000
    assert found.formula_bits == (64 + 4) * 400_000 + 32 * 1000
    pieces = sum(p for p, _, _ in found.tasks.values())
    assert 8 * (found.base_bytes + found.shared_bytes + pieces) == pytest.approx(found.formula_bits, rel=0.01)
    on_disk = sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file())
    assert found.bundle_bytes == on_disk + found.base_bytes


def test_a_damaged_task_is_told(pack_all):
    bundle = pack_all("compeft")
    next((bundle / "tasks").glob("*-b/part.json")).write_text("{}")
    found = Bundle(bundle).account()
    assert list(found.tasks) == ["a", "c"]
    assert "part.json" in found.damaged["b"]


@pytest.mark.parametrize("change", [{"encoding": "magic"}, {"parameters": {"density": 7}}])
def test_an_encoding_of_another_version_is_listed_without_its_formula(pack_all, change):
    bundle = pack_all("compeft")
    wanted = Bundle(bundle).account()
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = Bundle(bundle).account()
    assert found.formula_bits is None
    assert found.tasks == wanted.tasks
    assert found.formula_individual_bits == wanted.formula_individual_bits
