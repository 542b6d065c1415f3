"""Settings of the peer against a slow reading of its rules: value, gradient, conditions, levels."""

from __future__ import annotations

import math
from typing import Any

import pytest

from weightsmith.dialect.setting import in_force, read_level, setting_of
from weightsmith.dialect.tree import documents
from weightsmith.recipe.schedule import Schedule


def _level(text: str) -> Any:
    faults: list[tuple[int, str]] = []
    (root,) = documents(text, faults)
    level = read_level(root, "parameters", faults, [])
    assert faults == []
    return level


def slow_value(setting: Any, name: str, t: float) -> float | None:
    """The peer's rules, written down from the specification."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return float(setting)
    if not setting:
        return None
    if not isinstance(setting[0], dict):
        q = t * (len(setting) - 1)
        i = math.floor(q)
        j = min(i + 1, len(setting) - 1)
        return (1 - (q - i)) * float(setting[i]) + (q - i) * float(setting[j])
    for condition in setting:
        if condition.get("filter") in (None, "*") or condition["filter"] in name:
            return slow_value(condition["value"], name, t)
    return None


SETTINGS: list[tuple[str, Any]] = [
    ("w: 0.5", 0.5),
    ("w: 1e-3", 0.001),
    ("w: [0, 0.5, 1]", [0, 0.5, 1]),
    ("w: [{filter: mlp, value: [0.1, 0.9]}, {value: 0.2}]", [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.2}]),
    ("w: {filter: embed, value: 3}", {"filter": "embed", "value": 3}),
    ("w: [{filter: 's.1', value: 4}, {filter: '*', value: 5}]", [{"filter": "s.1", "value": 4}, {"value": 5}]),
    ("w: [{filter: '[q]*?', value: 4}, {value: 5}]", [{"filter": "[q]*?", "value": 4}, {"value": 5}]),
    ("w: []", []),
]
LAYERS = 5
NAMES = [("model.embed_tokens.weight", None), ("norm.[q]*?", None)]
NAMES += [(f"model.layers.{i}.{part}.weight", i) for i in range(LAYERS) for part in ("mlp", "attn")]


@pytest.mark.parametrize("first", SETTINGS, ids=lambda s: s[0])
@pytest.mark.parametrize("second", SETTINGS, ids=lambda s: s[0])
def test_two_levels_mean_what_they_mean_to_the_peer(first: tuple[str, Any], second: tuple[str, Any]) -> None:
    levels = [_level(first[0]), _level(second[0])]
    faults: list[tuple[int, str]] = []
    setting = setting_of(in_force(levels, "w"), "number", 0.75, "w", faults, [])
    assert faults == []
    for name, layer in NAMES:
        t = 0.0 if layer is None else layer / (LAYERS - 1)
        found = [slow_value(s, name, t) for s in (first[1], second[1])]
        expected = next((v for v in found if v is not None), 0.75)
        value = setting.value(name, layer, LAYERS) if isinstance(setting, Schedule) else setting
        assert value == pytest.approx(expected, rel=1e-15), name


def test_a_gradient_on_one_layer_takes_its_last_value_there_and_its_first_outside() -> None:
    setting = setting_of(in_force([_level("w: [0.25, 1]")], "w"), "number", None, "w", [], [])
    assert isinstance(setting, Schedule)
    assert setting.value("layers.0.w", 0, 1) == 1.0
    assert setting.value("norm", None, 1) == 0.25


def test_conditions_that_can_be_said_in_one_word_are() -> None:
    level = _level("w: [{filter: mlp, value: 0.5}, {value: '0.5'}]\nflag: [yes, true]\nn: 1.0e+1")
    assert setting_of(level["w"], "number", None, "w", [], []) == 0.5
    assert setting_of(level["flag"], "flag", False, "flag", [], []) is True
    assert setting_of(level["n"], "whole", 3, "n", [], []) == 10
    assert setting_of((), "number", None, "w", [], []) is None


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("w: .nan", "number", "expected a finite number, got 'nan'"),
        ("w: much", "number", "expected a finite number, got 'much'"),
        ("w: true", "number", "expected a finite number, got 'True'"),
        ("w: maybe", "flag", "expected true or false"),
        ("w: 1.5", "whole", "expected a whole number"),
        ("w: [true, false]", "flag", "a gradient is for numbers"),
    ],
)
def test_values_of_the_wrong_kind_are_faults(text: str, kind: str, told: str) -> None:
    faults: list[tuple[int, str]] = []
    setting_of(_level(text)["w"], kind, None, "w", faults, [])
    assert [line for line, _ in faults] == [1]
    assert told in faults[0][1]


def test_malformed_conditions_are_faults() -> None:
    faults: list[tuple[int, str]] = []
    (root,) = documents("a: [{filter: mlp}]\nb: [{value: 1}, 2]\nc: [1, null]\n", [])
    read_level(root, "parameters", faults, [])
    assert [line for line, _ in faults] == [1, 2, 3]


def test_a_filter_that_no_name_can_hold_is_told_and_left_out() -> None:
    notes: list[str] = []
    setting = setting_of(_level("w: [{filter: 'q|k', value: 1}, {value: 2}]")["w"], "number", None, "w", [], notes)
    assert setting == 2
    assert "'q|k'" in notes[0]
    assert "nor in mergekit" in notes[0]
