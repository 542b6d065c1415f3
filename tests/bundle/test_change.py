"""Tasks that come and go: the others keep every byte, and one that is added is packed as it would have been at first."""

import json

import pytest

from weightsmith import WeightsmithError, add, remove
from weightsmith.checkpoint.read import open_checkpoint


def folders(bundle, content):
    return {n: raw for n, raw in content(bundle).items() if n != "bundle.json"}


@pytest.mark.parametrize("encoding", ["compeft", "lossless"])
def test_adding_is_packing(pack_all, family, content, encoding):
    wanted = folders(pack_all(encoding, out="all"), content)
    bundle = pack_all(encoding, models=("a", "b"))
    before = folders(bundle, content)
    done = add(bundle, {"c": family / "c"})
    found = folders(bundle, content)
    assert done.tasks == ("c",)
    assert {n: found[n] for n in before} == before
    assert found == wanted


def test_what_is_shared_stays(pack_all, family, content, read_task):
    bundle = pack_all("tall_masks", models=("a", "b"))
    before = folders(bundle, content)
    add(bundle, [f"new={family / 'c'}"], mask_lambda=(0.2,))
    after = folders(bundle, content)
    assert {n: after[n] for n in before} == before
    part = json.loads(next((bundle / "tasks").glob("*-new/part.json")).read_text())
    assert part["parameters"]["mask_lambda"] == [0.2]
    assert set(read_task(bundle, "new")) == set(read_task(bundle, "a"))


def test_another_encoding_that_shares_nothing(pack_all, family, tasks, read_task):
    bundle = pack_all("tall_masks", models=("a", "b"))
    add(bundle, {"c": family / "c"}, encoding="lossless")
    assert all(found.tobytes() == tasks["c"][n].tobytes() for n, found in read_task(bundle, "c").items())
    with pytest.raises(WeightsmithError, match="shares a part"):
        add(bundle, {"d": family / "c"}, encoding="emr")


def test_removing(pack_all, content, family):
    bundle = pack_all("lossless")
    before = folders(bundle, content)
    done = remove(bundle, "b")
    after = folders(bundle, content)
    assert after == {n: raw for n, raw in before.items() if "-b/" not in n}
    assert done.nbytes == sum(len(raw) for n, raw in before.items() if "-b/" in n)
    with pytest.raises(WeightsmithError, match="has no task 'b'"):
        open_checkpoint(f"{bundle}#b")
    add(bundle, {"b": family / "b"})
    assert folders(bundle, content) == before


@pytest.mark.parametrize(
    ("models", "told"),
    [({"a": "c"}, "has a task 'a'"), ({"x": "nothing"}, "does not exist"), ({"../y": "c"}, "task '../y'")],
)
def test_refused_without_a_trace(pack_all, family, content, models, told):
    bundle = pack_all("lossless", models=("a", "b"))
    before = content(bundle)
    with pytest.raises(WeightsmithError, match=told):
        add(bundle, {task: family / m for task, m in models.items()})
    assert content(bundle) == before


def test_a_fault_half_way_leaves_the_bundle_as_it_was(pack_all, family, content, tasks, save_arrays, tmp_path):
    bundle = pack_all("compeft", models=("a", "b"))
    before = content(bundle)
    bad = {n: a.copy() for n, a in tasks["c"].items()}
    bad["model.norm.weight"][0] = float("nan")
    with pytest.raises(WeightsmithError, match=r"model\.norm\.weight"):
        add(bundle, {"c": family / "c", "bad": save_arrays(tmp_path / "bad", bad)})
    assert content(bundle) == before


def test_a_change_by_someone_else_meanwhile(pack_all, family, monkeypatch):
    from weightsmith.bundle import change

    bundle = pack_all("lossless", models=("a", "b"))
    found, plan = change.plan_add(bundle, {"c": family / "c"})
    remove(bundle, "a")
    with pytest.raises(WeightsmithError, match="changed by another process"):
        change.execute_add(found, plan)
    assert list(change.read_bundle(bundle).tasks) == ["b"]
