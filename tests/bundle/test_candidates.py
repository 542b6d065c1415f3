"""What tensors could be stored as, measured on their frames, and the choice between them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.budget import Demand, choose_limits
from weightsmith.bundle import candidates
from weightsmith.bundle.candidates import EXACT, NOTHING, TASK, Measured, Setting, choose, measure
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.compress.compeft import compeft
from weightsmith.compress.low_rank import low_rank
from weightsmith.device import Device
from weightsmith.engine.stream import Job, Worker
from weightsmith.errors import ArgumentError
from weightsmith.tensor.frames import FRAME, add_masked, add_ternary, encode_frame

MATRIX = "layers.0.mlp.up_proj.weight"


@pytest.fixture
def measured(tmp_path):
    """A function of base and task tensors that measures them from files."""

    def run(base, task):
        for name, tensors in (("base", base), ("task", task)):
            (tmp_path / name).mkdir(exist_ok=True)
            save_file(tensors, tmp_path / name / "model.safetensors")
        opened = [open_checkpoint(tmp_path / name) for name in ("base", "task")]
        job = Job(None, 0, "float32", choose_limits(Demand(3, 100, 4), 1 << 30, 1), Device())
        with Worker(job, 3, FRAME) as worker:
            return {n: measure(worker, opened[0].tensors.get(n), e) for n, e in opened[1].tensors.items()}

    return run


def draw(shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def stated(name):
    return candidates.OVERHEAD + candidates.LETTER * len(name)


def at(found, setting):
    """Return error and size of a setting by its label."""
    labels = [s.label for s in found.settings]
    place = labels.index(setting)
    return found.errors[place], found.sizes[place]


def test_errors_and_sizes_are_those_of_the_stored_frames(measured):
    base, tau = draw((300, 250)), draw((300, 250), 1, 0.1)
    task = base + tau
    found = measured({MATRIX: base}, {MATRIX: task})[MATRIX]
    tau = (task - base).reshape(-1)
    part = compeft(tau, density=0.1, scope="tensor")
    frames = [encode_frame("ternary", {"signs": part.arrays["signs"][s : s + FRAME]}, {}) for s in (0, FRAME)]
    rebuilt = base.reshape(-1).copy()
    for start, data in zip((0, FRAME), frames, strict=True):
        add_ternary(rebuilt[start : start + FRAME], data, part.settings["scale"])
    error, size = at(found, "compeft density=0.1")
    assert error == pytest.approx(np.square((rebuilt - task.reshape(-1)).astype(np.float64)).sum(), rel=1e-6)
    assert size == sum(map(len, frames)) + 2 * 4 + stated(MATRIX)
    assert found.norm == pytest.approx(np.square(tau.astype(np.float64)).sum(), rel=1e-6)
    assert at(found, "nothing") == (pytest.approx(found.norm), stated(MATRIX))
    assert at(found, "lossless")[0] == 0
    assert at(found, "rounded step=0.25")[0] == pytest.approx(found.norm * 0.25**2 / 12, rel=0.02)
    errors = [at(found, f"rounded step={s}")[0] for s in candidates.STEPS]
    assert errors == sorted(errors)
    assert "bitdelta" in [s.label for s in found.settings]


def test_low_ranks_are_found(measured):
    base = draw((90, 120))
    task = base + draw((90, 5), 1) @ draw((5, 120), 2)
    found = measured({MATRIX: base}, {MATRIX: task})[MATRIX]
    values = np.linalg.svd((task - base).astype(np.float64), compute_uv=False)
    error, size = at(found, "low_rank rank=2")
    assert error == pytest.approx((values[2:] ** 2).sum(), rel=1e-3)
    assert size == 2 * 2 * (90 + 120) + stated(MATRIX)
    exact = min(e for s, e in zip(found.settings, found.errors, strict=True) if s.encoding is low_rank)
    assert exact < 1e-5 * found.norm
    embedding = measured({"embed_tokens.weight": base}, {"embed_tokens.weight": task})["embed_tokens.weight"]
    assert low_rank not in [s.encoding for s in embedding.settings]


def test_large_matrices_are_tried_where_a_part_promises_low_rank(measured, monkeypatch):
    monkeypatch.setattr(candidates, "LARGE", 1)
    monkeypatch.setattr(candidates, "RANKS", (2, 4))
    base = draw((60, 300))
    low, full = base + draw((60, 4), 1) @ draw((4, 300), 2), base + draw((60, 300), 3)
    for task, is_tried in ((low, True), (full, False)):
        found = measured({MATRIX: base}, {MATRIX: task})[MATRIX]
        assert (low_rank in [s.encoding for s in found.settings]) == is_tried


def test_what_equals_base_costs_nothing(measured):
    same = draw((70_000,))
    found = measured({"w": same}, {"w": same})["w"]
    assert found == Measured((NOTHING,), (0.0,), (stated("w"),), 0.0)


def test_other_tensors_are_stored_without_loss(measured):
    numbers, whole = draw((40,)), np.arange(40)
    found = measured({"a": numbers, "b": whole}, {"a": numbers.reshape(8, 5), "b": whole + 1, "c": numbers})
    assert all(f.settings == (EXACT,) for f in (found["b"], found["c"]))
    assert found["c"].sizes[0] > 40 + stated("c")


def test_rounding_to_the_stored_dtype_counts(measured):
    base = np.full((64, 64), 1000, np.float16)
    task = base + np.where(np.arange(64) % 2, 0.5, 0).astype(np.float16)  # one step of float16 at 1000
    found = measured({MATRIX: base}, {MATRIX: task})[MATRIX]
    # Half of the entries moved by 0.5, rms 0.354: two steps of 0.265 give them exactly once they are rounded.
    assert found.norm == 64 * 32 * 0.25
    assert at(found, "rounded step=0.75")[0] == 0
    assert at(found, "compeft density=0.5")[0] == 0


def test_a_sample_is_close_to_the_whole_and_not_too_small(measured, monkeypatch):
    base, task = draw((10 * FRAME + 5,)), draw((10 * FRAME + 5,), 1)
    sampled = measured({"w": base}, {"w": base + 0.01 * task})["w"]
    monkeypatch.setattr(candidates, "SAMPLE", 99)
    whole = measured({"w": base}, {"w": base + 0.01 * task})["w"]
    np.testing.assert_allclose(sampled.errors[2:], whole.errors[2:], rtol=0.02)
    for a, b in zip(sampled.sizes[1:], whole.sizes[1:], strict=True):
        assert b - 64 <= a <= 1.02 * b
    assert sampled.norm == pytest.approx(whole.norm, rel=0.01)


def test_few_frames_are_evenly_spread(monkeypatch):
    monkeypatch.setattr(candidates, "SAMPLE", 3)
    assert candidates._sampled(2) == [0, 1]
    assert candidates._sampled(12) == [0, 5, 10]


def cell(errors, sizes, norm):
    settings = (NOTHING, Setting(compeft, {"density": 0.1}), EXACT)
    return Measured(settings, errors, sizes, norm)


def test_choice_by_hand():
    # Task b has half the norm, so its error counts twice.
    found = {"a": {"w": cell((8.0, 2.0, 0.0), (0, 10, 30), 8.0)}, "b": {"w": cell((4.0, 2.0, 0.0), (0, 10, 30), 4.0)}}
    chosen = choose(found, budget=40 + 2 * TASK)
    assert {t: s["w"].label for t, s in chosen.settings.items()} == {"a": "compeft density=0.1", "b": "lossless"}
    assert chosen.fidelity == {"a": 0.75, "b": 1.0}
    assert chosen.size == 40 + 2 * TASK
    chosen = choose(found, min_fidelity=0.5)
    assert {t: s["w"].label for t, s in chosen.settings.items()} == dict.fromkeys("ab", "compeft density=0.1")
    assert chosen.counts() == {"compeft density=0.1": 2}
    assert choose(found, min_fidelity=1.0).fidelity == {"a": 1.0, "b": 1.0}
    assert choose(found, min_fidelity=0.0).size == 2 * TASK
    # Scores that fell for task a alone turn the choice.
    chosen = choose(found, budget=40 + 2 * TASK, drops={"a": 0.3, "b": 0.0}, errors={"a": 2.0, "b": 2.0})
    assert chosen.settings["a"]["w"].label == "lossless"


def test_wrong_use_is_refused():
    found = {"a": {"w": Measured((EXACT,), (0.0,), (30,), 1.0)}}
    for given in ({}, {"budget": 1, "min_fidelity": 0.5}, {"min_fidelity": 1.5}, {"budget": 29 + TASK}):
        with pytest.raises(ArgumentError):
            choose(found, **given)


def test_beats_masks_of_the_sum_in_size_and_error(measured):
    tasks = 8
    base = draw((128, 256))
    taus = [draw((128, 256), 1 + t, 0.01) for t in range(tasks)]
    found = {str(t): measured({MATRIX: base}, {MATRIX: base + tau}) for t, tau in enumerate(taus)}
    total = sum(taus)
    lost, size = 0.0, 4 * base.size
    for tau in taus:
        mask = np.abs(tau) > 0.4 * np.abs(total - tau)
        data, out = encode_frame("mask", {"mask": mask.reshape(-1)}, {}), np.zeros(base.size, np.float32)
        add_masked(out, data, total.reshape(-1), 1.0)
        lost += float(np.square(out - tau.reshape(-1)).sum())
        size += len(data)
    chosen = choose(found, budget=size // 2)
    own = sum((1 - f) * m[MATRIX].norm for f, m in zip(chosen.fidelity.values(), found.values(), strict=True))
    assert chosen.size < 0.5 * size
    assert own < 0.5 * lost
