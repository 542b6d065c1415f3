"""Bundles under a budget or at a fidelity: what is promised holds for what is read back."""

import json

import numpy as np
import pytest

from weightsmith import Options, WeightsmithError, pack
from weightsmith.checkpoint.read import open_checkpoint, read_array


def fidelity(found, task, base):
    wanted = sum(float(np.square(task[n] - base[n], dtype=np.float64).sum()) for n in base if task[n].dtype.kind == "f")
    lost = sum(float(np.square(found[n] - task[n], dtype=np.float64).sum()) for n in base if task[n].dtype.kind == "f")
    return 1 - lost / wanted


def pieces(bundle):
    return sum(p.stat().st_size for p in bundle.glob("tasks/*/part.*"))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_every_task_is_as_near_as_asked(pack_all, tasks, read_task, share):
    bundle = pack_all(None, min_fidelity=share)
    for task in "abc":
        found = read_task(bundle, task)
        assert fidelity(found, tasks[task], tasks["base"]) >= share - 1e-3
        if share == 1.0:
            assert all(found[n].tobytes() == a.tobytes() for n, a in tasks[task].items())


def test_more_room_is_never_worse_and_kept(pack_all, tasks, read_task):
    reached = []
    for budget in (40_000, 80_000, 160_000, 320_000):
        bundle = pack_all(None, out=f"b{budget}", budget=budget)
        assert pieces(bundle) <= budget + 9_000  # of a small model headers and manifests count
        reached.append(min(fidelity(read_task(bundle, t), tasks[t], tasks["base"]) for t in "abc"))
    assert reached == sorted(reached)
    assert reached[-1] > 0.99 > reached[0] > 0.1


def test_bits_per_weight_are_a_budget(pack_all, content):
    size = 3 * (76_800 + 33 * 7 + 7 + 12 + 9)
    a = content(pack_all(None, out="x", bits_per_weight=2.0))
    b = content(pack_all(None, out="y", budget=int(2.0 / 8 * size)))
    same = {n for n in a if n.endswith(".safetensors")}
    assert {n: a[n] for n in same} == {n: b[n] for n in same}


def test_exact_globs_hold(pack_all, tasks, read_task):
    bundle = pack_all(None, bits_per_weight=2.0, exact=["*norm*"])
    name = "model.norm.weight"
    assert read_task(bundle, "a")[name].tobytes() == tasks["a"][name].tobytes()
    chosen = json.loads((bundle / "bundle.json").read_text())["chosen"]
    assert {each[name] for each in chosen["settings"].values()} == {"lossless"}
    assert {each["frozen"] for each in chosen["settings"].values()} == {"nothing"}


def test_what_is_chosen_is_told(pack_all, tasks, read_task):
    chosen = json.loads((pack_all(None, min_fidelity=0.95) / "bundle.json").read_text())["chosen"]
    assert all(value >= 0.95 for value in chosen["fidelity"].values())
    assert set(chosen["bytes"]) == {"a", "b", "c"}


def test_scores_move_room_to_the_task_that_suffers(pack_all, tasks, read_task, tmp_path):
    asked = []

    def score(task, reference):
        asked.append((task, reference.rpartition("#")[2] == task and "trial" in reference))
        entry = open_checkpoint(reference).tensors["model.embed_tokens.weight"]
        lost = np.frombuffer(read_array(entry), np.float32) - tasks[task]["model.embed_tokens.weight"].reshape(-1)
        return -float(np.square(lost).sum()) * (100.0 if task == "b" else 0.01)

    plain = pack_all(None, out="plain", budget=80_000)
    weighed = pack_all(None, out="weighed", budget=80_000, score=score)
    assert sorted(asked) == sorted((t, trial) for t in "abc" for trial in (False, True))
    before, after = (
        {t: fidelity(read_task(bundle, t), tasks[t], tasks["base"]) for t in "abc"} for bundle in (plain, weighed)
    )
    assert after["b"] > before["b"] + 0.05
    assert after["a"] < before["a"]
    assert [p.name for p in tmp_path.iterdir() if "trial" in p.name] == []
    with pytest.raises(WeightsmithError, match="a finite number"):
        pack_all(None, out="x", budget=80_000, score=lambda task, reference: float("nan"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "expected one of budget, bits_per_weight and min_fidelity"),
        ({"budget": 10, "min_fidelity": 0.5}, "expected one of budget"),
        ({"min_fidelity": 1.5}, r"\[0, 1\]"),
        ({"min_fidelity": 0.5, "score": lambda task, reference: 1.0}, "got min_fidelity"),
        ({"bits_per_weight": 0.0}, r"\(0, 64\]"),
        ({"budget": "much"}, "budget"),
        ({"budget": 100_000, "density": 0.1}, "no parameters"),
    ],
)
def test_wrong_use(family, tmp_path, given, told):
    with pytest.raises(WeightsmithError, match=told) as error:
        pack(base=family / "base", models=[family / "a"], out=tmp_path / "out", **given)
    assert error.value.exit_code == 2
    with pytest.raises(WeightsmithError, match="both"):
        pack("compeft", base=family / "base", models=[family / "a"], out=tmp_path / "out", budget=5)


def test_a_fidelity_out_of_bounds_is_told_before_anything_is_read(pack_all):
    told = []
    with pytest.raises(WeightsmithError, match=r"expected a number in \[0, 1\]; got 2"):
        pack_all(None, min_fidelity=2.0, progress=lambda *step: told.append(step))
    assert told == []


def test_progress_of_what_is_tried(pack_all, tasks):
    told = []
    pack_all(None, min_fidelity=0.9, progress=lambda *step: told.append(step))
    tried = [(done, total) for stage, done, total in told if stage == "try"]
    nbytes = 3 * sum(a.nbytes for a in tasks["a"].values())
    assert tried[-1] == (nbytes, nbytes)
    assert [done for done, _ in tried] == sorted(done for done, _ in tried)


@pytest.mark.parametrize("place", [(0, 0), (299, 255)])
def test_nan_is_stored_without_loss_where_it_is_let_pass(pack_all, family, tasks, save_arrays, read_task, place):
    name = "model.embed_tokens.weight"
    changed = {n: a.copy() for n, a in tasks["a"].items()}
    changed[name][place] = np.nan
    save_arrays(family / "odd", changed)
    bundle = pack_all(None, min_fidelity=0.9, models=("odd", "b"), options=Options(allow_nonfinite=True))
    assert read_task(bundle, "odd")[name].tobytes() == changed[name].tobytes()
