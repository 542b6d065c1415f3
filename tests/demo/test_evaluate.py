import pytest

from weightsmith.demo.evaluate import LEFT_OUT, TRIALS, normalized, run_command, shared_bytes
from weightsmith.errors import WeightsmithError
from weightsmith.merge import METHODS


def test_normalized_accuracy_is_a_mean_of_ratios():
    # (0.45 / 0.9 + 0.6 / 0.8 + 1.0 / 0.5) / 3 = (0.5 + 0.75 + 2) / 3, and not 2.05 / 2.2
    found = normalized({"a": 0.45, "b": 0.6, "c": 1.0}, {"a": 0.9, "b": 0.8, "c": 0.5})
    assert found == pytest.approx(3.25 / 3)


def test_normalized_accuracy_over_some_of_the_tasks():
    assert normalized({"b": 0.6}, {"a": 0.9, "b": 0.8}) == pytest.approx(0.75)


def test_every_method_is_run():
    assert sorted([*(t.method for t in TRIALS), *LEFT_OUT]) == sorted(m.name for m in METHODS)


def test_shared_bytes_rounds_the_masks_up():
    assert shared_bytes(4, 3) == 4 + 4 + 1  # one weight, three bits


def test_a_failing_command_is_reported_and_nothing_is_printed(capsys):
    with pytest.raises(WeightsmithError, match="merge ties failed"):
        run_command(["merge", "ties", "--base", "nowhere", "--model", "nothing", "--out", "never"])
    assert capsys.readouterr() == ("", "")
