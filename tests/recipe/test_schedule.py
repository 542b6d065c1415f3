"""Parameters that differ between tensors: matching, curves over the layers, and what is refused."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import ArgumentError
from weightsmith.recipe.schedule import Rule, Schedule


def test_schedules_take_the_first_match_and_interpolate() -> None:
    schedule = Schedule((Rule("*.mlp.*", (0.0, 1.0, 0.0)), Rule("*.q.*", (2,)), Rule("*.Q.*", ("x",))))
    values = [schedule.value("l.mlp.w", layer, 5) for layer in range(5)]
    assert values == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert schedule.value("l.mlp.q.w", 4, 5) == 0.0
    assert schedule.value("l.q.w", 3, 5) == 2
    assert schedule.value("l.Q.w", 3, 5) == "x"
    assert schedule.value("l.mlp.w", None, 5) == 0.0
    assert Schedule((Rule("*", (0.25, 1.0)),)).value("w", 0, 1) == 1.0  # one layer is the end of the curve
    assert Schedule((Rule("*", (0.25, 1.0)),)).value("w", None, 1) == 0.25
    assert Schedule((Rule("*", (0.1, 0.1)),)).value("w", 1, 4) == 0.1
    assert Schedule((Rule("*", (0.0, 1.0)),)).value("w", 1, 4) == pytest.approx(1 / 3)


def test_schedules_refuse_what_they_do_not_cover() -> None:
    schedule = Schedule((Rule("*.mlp.*", (0.0, 1.0)),))
    with pytest.raises(ArgumentError, match=r"tensor 'norm\.w' matches no entry of the schedule.*'\*\.mlp\.\*'"):
        schedule.value("norm.w", None, 5)
    with pytest.raises(ArgumentError, match=r"has layer 5; expected a layer from 0 to 4"):
        schedule.value("l.mlp.w", 5, 5)
    with pytest.raises(ArgumentError, match="at least one rule"):
        Schedule(())
    for values, told in (((), "no value"), ((1, "a"), "not numbers"), ((1, True), "not numbers")):
        with pytest.raises(ArgumentError, match=told):
            Rule("*", values)
    with pytest.raises(ArgumentError, match="not finite"):
        Rule("*", (float("nan"),))


def test_a_hostile_glob_is_matched_in_bounded_time() -> None:
    schedule = Schedule((Rule("*a" * 100 + "b", (1,)), Rule("*", (2,))))
    start = time.perf_counter()
    assert schedule.value("a" * 2000, None, 0) == 2
    assert time.perf_counter() - start < 5


@pytest.mark.property
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.integers(1, 40), st.data())
def test_curves_stay_between_their_neighbors(values: list[float], layers: int, data: st.DataObject) -> None:
    schedule = Schedule((Rule("*", tuple(values)),))
    layer = data.draw(st.integers(0, layers - 1))
    got = schedule.value("w", layer, layers)
    place = len(values) - 1 if layers == 1 else layer / (layers - 1) * (len(values) - 1)
    around = values[int(place) : int(place) + 2] or values[-1:]
    assert isinstance(got, float)
    assert min(around) - 1e-6 <= got <= max(around) + 1e-6
    assert schedule.value("w", None, layers) == values[0]
    assert schedule.value("w", 0, layers) == (values[0] if layers > 1 else values[-1])
    assert schedule.value("w", layers - 1, layers) == values[-1]
