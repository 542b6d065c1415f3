"""mergekit's recipe files run: one document or several, planned from headers, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightsmith
from weightsmith.chain import plan_steps
from weightsmith.dialect import read_steps
from weightsmith.errors import ArgumentError, WeightsmithError
from weightsmith.run import execute

TEXT = """\
name: half
merge_method: linear
models: [{{model: {a}}}, {{model: {b}}}]
parameters: {{weight: 1}}
dtype: float32
---
merge_method: linear
models: [{{model: half}}, {{model: {base}}}]
parameters: {{weight: [{{filter: mlp, value: 1}}, {{value: {weight}}}]}}
dtype: float32
"""


@pytest.fixture
def steps_file(family: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """`steps_file(weight=3)` writes a recipe of two documents."""

    def write(weight: object = 3) -> Path:
        base, a, b = family
        path = tmp_path / "steps.yml"
        path.write_text(TEXT.format(base=base, a=a, b=b, weight=weight))
        return path

    return write


def test_a_document_uses_the_result_of_another(
    steps_file: Callable[..., Path],
    family: list[Path],
    tmp_path: Path,
    load_arrays: Callable[[Path], dict[str, np.ndarray]],
) -> None:
    out = tmp_path / "results" / "out"
    weightsmith.merge(steps_file(), out=out)
    base, a, b = (load_arrays(folder) for folder in family)
    for name, merged in load_arrays(out).items():
        half = (a[name].astype(np.float64) + b[name]) / 2
        np.testing.assert_allclose(merged, (half + base[name]) / 2, rtol=1e-5, atol=1e-6)
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["out"]


def test_verify_says_that_results_of_other_documents_are_not_kept(
    steps_file: Callable[..., Path], tmp_path: Path, command: Callable[..., Any]
) -> None:
    weightsmith.merge(steps_file(), out=tmp_path / "out")
    ran = command("verify", tmp_path / "out")
    assert ran.code == 0
    assert ", 0 weights computed anew" in ran.out
    assert (
        "digests and counts checked; not recomputed, because some inputs were results of other documents of its recipe"
        in ran.out
    )


def test_all_documents_are_planned_from_headers_alone(steps_file: Callable[..., Path], tmp_path: Path) -> None:
    first, second = plan_steps(read_steps(steps_file()))
    assert [w.name for w in second.works] == [w.name for w in first.works]
    assert second.bytes_written == first.bytes_written
    assert [c.reference for c in second.inputs][:1] == ["half"]
    assert not second.inputs[0].files[0].exists()


def test_a_fault_of_a_later_document_comes_before_any_merge(steps_file: Callable[..., Path], tmp_path: Path) -> None:
    path = steps_file(weight=".nan")
    with pytest.raises(ArgumentError, match="expected a finite number"):
        weightsmith.merge(path, out=tmp_path / "results" / "out")
    assert not (tmp_path / "results").exists()


def test_nothing_is_left_where_a_document_fails(
    steps_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*args: Any, **given: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise WeightsmithError("stopped")
        return execute(*args, **given)

    monkeypatch.setattr("weightsmith.run.execute", fail)
    with pytest.raises(WeightsmithError, match="stopped"):
        weightsmith.merge(steps_file(), out=tmp_path / "results" / "out")
    assert list((tmp_path / "results").iterdir()) == []


def test_commands_read_the_dialect(
    command: Callable[..., Any], steps_file: Callable[..., Path], tmp_path: Path
) -> None:
    shown = command("plan", steps_file(), "--json")
    assert shown.code == 0
    assert shown.out.count('"method": "linear"') == 2
    ran = command("merge", steps_file(), tmp_path / "out", "--quiet")
    assert ran.code == 0
    assert ran.err.count("read as mergekit's dialect: linear") == 1
    assert "merged by linear" in ran.out


def test_nothing_may_stand_beside_a_recipe(steps_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="nothing of that beside it"):
        weightsmith.merge(steps_file(), out=tmp_path / "out", dtype="float32")


def test_peer_exact_is_for_mergekits_recipes(command: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("method: linear\nmodels: [a, b]\n")
    ran = command("merge", path, tmp_path / "out", "--peer-exact")
    assert ran.code == 2
    assert "--peer-exact" in ran.err
