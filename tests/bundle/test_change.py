"""Tasks that come and go: the others keep every byte, and one that is added is packed as it would have been at first."""

import fcntl
import json
import os
import shutil

import pytest

from weightsmith import WeightsmithError, add, remove, unpack, verify
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.errors import ArgumentError, CheckpointError, ResourceError


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


@pytest.mark.parametrize(("packed", "stated"), [("emr", "rmm"), ("rmm", "tall_masks")])
def test_a_shared_part_of_another_encoding_than_stated(packed, stated, pack_all, family):
    bundle = pack_all(packed, models=("a", "b"))
    manifest = bundle / "bundle.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "encoding": stated, "parameters": {}}))
    with pytest.raises(CheckpointError, match=f"what {stated} shares"):
        add(bundle, {"c": family / "c"})


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


def test_two_at_once(pack_all, family, content):
    """While one process changes a bundle, another is refused; it clears nothing of the first one's."""
    bundle = pack_all("lossless", models=("a",))
    (bundle / ".partial-0" / "tasks").mkdir(parents=True)
    before = content(bundle)
    handle = os.open(bundle, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for change in (lambda: add(bundle, {"b": family / "b"}), lambda: remove(bundle, "a")):
        with pytest.raises(ResourceError, match="is being changed by another process"):
            change()
    assert content(bundle) == before
    assert (bundle / ".partial-0").is_dir()
    os.close(handle)
    add(bundle, {"b": family / "b"})
    assert verify(bundle).is_sound


def test_what_a_killed_change_left_is_cleared_by_the_next(pack_all, family):
    bundle = pack_all("lossless", models=("a", "b"))
    shutil.copytree(bundle / "tasks", bundle / ".partial-12345678" / "tasks")
    (bundle / ".bundle.json.new").write_text("{")
    found = verify(bundle).findings
    assert len(found) == 2
    assert all("the next add or remove clears it" in text for text in found)
    remove(bundle, "b")
    assert verify(bundle).is_sound
    assert {p.name for p in bundle.iterdir()} == {"bundle.json", "tasks"}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_the_manifest_is_replaced(pack_all, family, monkeypatch, moment):
    from weightsmith.bundle import change

    bundle = pack_all("lossless", models=("a",))
    write = change.write_manifest

    def interrupted(path, content):
        if moment == "after":
            write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(change, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(bundle, {"b": family / "b"})
    result = verify(bundle)
    assert result.is_sound, result.findings
    assert list(change.read_bundle(bundle).tasks) == ["a"] + ["b"] * (moment == "after")


def test_a_task_whose_folder_is_gone_can_be_removed(pack_all):
    bundle = pack_all("lossless", models=("a", "b"))
    shutil.rmtree(next((bundle / "tasks").glob("*-b")))
    assert remove(bundle, "b").nbytes == 0
    assert verify(bundle).is_sound


def test_nothing_is_written_into_a_bundle(pack_all, family, content):
    from weightsmith import merge
    from weightsmith.bundle import pack

    bundle = pack_all("lossless", models=("a",))
    before = content(bundle)
    for write in (
        lambda out: pack("lossless", base=family / "base", models=[f"a={bundle}#a"], out=out),
        lambda out: unpack(bundle, out),
        lambda out: merge("linear", models=[f"{bundle}#a", family / "b"], out=out),
    ):
        for place in ("x", "tasks/x"):
            with pytest.raises(ArgumentError, match="a folder outside bundles"):
                write(bundle / place)
    assert content(bundle) == before
