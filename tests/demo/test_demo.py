import importlib
import json

import pytest

from weightsmith.demo import demo
from weightsmith.demo.evaluate import TRIALS
from weightsmith.demo.model import Shape
from weightsmith.demo.storing import CHOSEN, ENCODED, SHARE
from weightsmith.demo.tasks import TASKS
from weightsmith.demo.train import Settings
from weightsmith.errors import ArgumentError, WeightsmithError

pytest.importorskip("torch")
pytest.importorskip("sklearn")

package = importlib.import_module("weightsmith.demo")  # `weightsmith.demo` itself is the function
BRIEF = Settings(
    shape=Shape(width=32, layers=2, attention_heads=2, inner=64), base_images=16, base_epochs=1, expert_epochs=1
)


def brief(out, *, seed=0, force=False, say=None, trials=TRIALS):
    return package._demo(out, seed, say, force, BRIEF, TASKS[-3:], trials)


def without_seconds(found):
    if isinstance(found, dict):
        return {k: without_seconds(v) for k, v in found.items() if not k.endswith("seconds")}
    return [without_seconds(v) for v in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    said = []
    return out, brief(out, say=said.append), said


def test_everything_is_written_and_measured(made):
    out, results, said = made
    written = ["bundles", "checkpoints", "localize.html", "merged", "report.html", "results.json"]
    assert sorted(p.name for p in out.iterdir()) == written
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == sorted(["base", *(t.name for t in TASKS[-3:])])
    assert sorted(p.name for p in (out / "merged").iterdir()) == sorted(t.method for t in TRIALS)
    assert json.loads((out / "results.json").read_text()) == results
    assert [row["method"] for row in results["methods"]] == ["base", "experts", *(t.method for t in TRIALS)]
    assert all(0 <= row["mean_accuracy"] <= 1 for row in results["methods"])
    assert results["methods"][1]["normalized_accuracy"] == 1
    assert sum(results["agreement"]["total"].values()) == results["trained"]["weights"]
    assert any("consensus" in line for line in said)
    assert list(out.parent.iterdir()) == [out]


def test_bytes_are_those_of_the_files(made):
    out, results, _ = made
    rows = {row["method"]: row for row in results["methods"]}
    assert rows["ties"]["bytes"] == (out / "merged/ties/model.safetensors").stat().st_size
    each = [(out / "merged/wise_ft" / t.name / "model.safetensors").stat().st_size for t in TASKS[-3:]]
    assert rows["wise_ft"]["bytes"] == sum(each)
    assert rows["tall_masks"]["bytes_are"] == "formula"


def test_every_bundle_is_written_and_measured(made):
    out, results, _ = made
    assert [row["encoding"] for row in results["bundles"]] == [*ENCODED, CHOSEN]
    assert sorted(p.name for p in (out / "bundles").iterdir()) == sorted([*ENCODED, CHOSEN])
    rows = {row["encoding"]: row for row in results["bundles"]}
    assert rows["lossless"]["accuracy"] == results["methods"][1]["accuracy"]
    base = (out / "checkpoints/base/model.safetensors").stat().st_size
    for name, row in rows.items():
        stored = sum(p.stat().st_size for p in (out / "bundles" / name).rglob("*.safetensors"))
        assert row["stored_bytes"] == stored
        assert row["bytes"] == base + stored
        assert row["bits_per_weight"] == pytest.approx(8 * stored / (3 * results["trained"]["weights"]))
    assert rows[CHOSEN]["stored_bytes"] <= SHARE * rows["tall_masks"]["stored_bytes"]


def test_tasks_in_the_lossless_bundle_are_the_experts_bit_for_bit(made):
    from weightsmith import compare

    out = made[0]
    for task in TASKS[-3:]:
        found = compare(out / "checkpoints" / task.name, f"{out}/bundles/lossless#{task.name}")
        assert not found.differs


def test_the_page_of_the_tasks_holds_their_scores(made):
    text = (made[0] / "localize.html").read_text()
    assert "The causal check" in text
    assert TASKS[-1].name in text


def test_same_seed_same_results_apart_from_seconds(made, tmp_path):
    assert without_seconds(brief(tmp_path / "elsewhere")) == without_seconds(made[1])


def test_an_older_demo_is_replaced_only_by_force(tmp_path):
    out = tmp_path / "out"
    brief(out, trials=TRIALS[:1])
    with pytest.raises(ArgumentError, match="--force"):
        brief(out, trials=TRIALS[:1])
    brief(out, seed=1, force=True, trials=TRIALS[:1])
    assert json.loads((out / "results.json").read_text())["seed"] == 1


@pytest.mark.parametrize("beside", ["notes.txt", "results.json"])
def test_what_no_demo_wrote_is_never_removed(tmp_path, beside):
    (tmp_path / beside).write_text('{"mine": 1}')
    with pytest.raises(ArgumentError, match="no demo wrote"):
        demo(tmp_path, force=True)
    assert (tmp_path / beside).read_text() == '{"mine": 1}'


def test_a_strange_file_in_an_older_demo_stops_the_force(tmp_path):
    (tmp_path / "results.json").write_text('{"weightsmith_demo": 1}')
    (tmp_path / "mine").write_text("")
    with pytest.raises(ArgumentError, match="also mine"):
        demo(tmp_path, force=True)


def test_a_failure_leaves_nothing_behind_and_an_older_demo_in_place(tmp_path, monkeypatch):
    def fail(*_):
        raise WeightsmithError("no")

    old = tmp_path / "old"
    old.mkdir()
    (old / "results.json").write_text('{"weightsmith_demo": 1}')
    monkeypatch.setattr(package, "_train", fail)
    for out in (tmp_path / "new", old):
        with pytest.raises(WeightsmithError, match="no"):
            brief(out, force=True)
    assert list(tmp_path.iterdir()) == [old]
    assert [p.name for p in old.iterdir()] == ["results.json"]


def test_the_merged_models_pass_verify(made):
    from weightsmith.cli import main

    assert main(["verify", str(made[0] / "merged/ties")]) == 0


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seeds_are_refused(tmp_path, seed):
    with pytest.raises(ArgumentError, match="seed"):
        demo(tmp_path / "out", seed=seed)
