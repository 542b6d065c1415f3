import re

import pytest

import weightsmith
from weightsmith.errors import ArgumentError, ResourceError
from weightsmith.report import check_report, notebook, page_of, write_report
from weightsmith.report.page import Page, render


def test_a_report_replaces_an_older_one_and_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    write_report(Page("one", ""), path)
    write_report(Page("two", ""), path)
    assert path.read_text(encoding="utf-8") == render(Page("two", ""))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(ArgumentError, match="an older report"):
        write_report(Page("three", ""), tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_places_that_cannot_hold_a_report(tmp_path):
    with pytest.raises(ResourceError, match="folder"):
        check_report(tmp_path / "none" / "report.html")
    with pytest.raises(ArgumentError, match="expected a file"):
        check_report(tmp_path)
    check_report(tmp_path / "new.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(ResourceError, match="No space left"):
        write_report(Page("one", ""), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_other_results_have_no_report():
    with pytest.raises(ArgumentError, match="compare, localize, merge or pack"):
        page_of(3)


def test_the_display_of_a_notebook_is_the_page_in_a_frame(checkpoints):
    base, other = checkpoints
    found = weightsmith.compare(base, other)
    shown = found._repr_html_()
    assert shown == notebook(found)
    assert re.match(r'<iframe sandbox="allow-scripts" title="base beside other" srcdoc="&lt;!doctype html&gt;', shown)
    assert "<script" not in shown


def test_a_merge_is_shown_too(checkpoints, tmp_path):
    base, other = checkpoints
    result = weightsmith.merge("task_arithmetic", base=base, models=[other], out=tmp_path / "merged")
    assert "merged by task arithmetic" in result._repr_html_()
    write_report(result, tmp_path / "report.html")
    assert "Difference by depth" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def checkpoints(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    names = ("model.layers.0.mlp.up.weight", "model.layers.1.mlp.up.weight")
    for label, scale in (("base", 1.0), ("other", 1.5)):
        (tmp_path / label).mkdir()
        save_file({n: np.full((4, 4), scale, np.float32) for n in names}, tmp_path / label / "model.safetensors")
    return tmp_path / "base", tmp_path / "other"
