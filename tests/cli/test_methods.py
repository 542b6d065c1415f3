"""`weightsmith methods`: the list, and one method explained."""

from __future__ import annotations

import json

import pytest

from weightsmith.merge import METHODS


def test_every_method_has_one_line(command):
    lines = command("methods").out.splitlines()
    assert len(lines) == len(METHODS)
    for line, method in zip(lines, METHODS, strict=True):
        assert line.split(maxsplit=1) == [method.name, method.summary]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_method_is_explained(command, method):
    text = command("methods", method.name).out
    assert text.startswith(f"{method.name} - {method.summary}")
    assert "result =" in text
    assert "Differs from the paper:" in text
    assert "Cost:" in text
    assert f"Source: {method.source}" in text
    assert text.endswith(f"Example: {method.example}\n")
    assert "Args:" not in text
    assert ">>>" not in text
    for parameter in method.parameters.values():
        assert f"  --{parameter.name.rstrip('_').replace('_', '-')}" in text


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_method_as_json(command, method):
    told = json.loads(command("methods", method.name, "--json").out)
    assert told["name"] == method.name
    assert told["inputs"] == list(method.inputs)
    assert [p["name"] for p in told["parameters"]] == list(method.parameters)
    assert all(p["help"] and p["kind"] for p in told["parameters"])
