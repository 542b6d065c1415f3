"""Lenient YAML: what PyYAML would read, within bounds, with lines."""

from __future__ import annotations

import time
from typing import Any

import pytest

from weightsmith.dialect.tree import documents, fields_of, number, value_of
from weightsmith.strict_yaml import Node


def _plain(text: str) -> Node:
    return Node(1, "scalar", text, plain=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", "1e-5"),
        ("1.0e-5", 1e-5),
        ("010", 8),
        ("1_000", 1000),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("./a", "./a"),
        ("0.5", 0.5),
    ],
)
def test_words_mean_what_they_mean_to_pyyaml(text: str, value: object) -> None:
    faults: list[tuple[int, str]] = []
    assert value_of(_plain(text), "t", faults) == value
    assert type(value_of(_plain(text), "t", faults)) is type(value)
    assert value_of(Node(1, "scalar", text), "t", faults) == text
    assert faults == []


@pytest.mark.parametrize("value", [True, "x", ".nan", "nan", "inf", float("nan"), "1" * 200])
def test_what_is_no_finite_number_is_none(value: Any) -> None:
    assert number(value) is None


def test_numbers_may_be_text() -> None:
    assert (number("1e-3"), number("  2"), number(3), number(-0.5)) == (0.001, 2.0, 3, -0.5)


def test_documents_keep_the_lines_of_the_file() -> None:
    text = "# head\n---\na: 1\nb:\n  c: 2\n---\n# nothing but words\n---\nd: |\n  --- no start\n  x\n"
    faults: list[tuple[int, str]] = []
    found = documents(text, faults)
    assert [(n.line, n.items[0].text) for n in found] == [(3, "a"), (9, "d")]
    assert found[1].items[1].text == "--- no start\nx\n"
    assert faults == []


def test_a_damaged_document_is_told_with_its_line() -> None:
    faults: list[tuple[int, str]] = []
    documents("a: 1\n---\nb: [1,\nc", faults)
    assert faults[0][0] >= 3
    assert "YAML" in faults[0][1]


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " * 50_000, "- " * 100_000, "&a [*a]"])
def test_hostile_text_ends_soon(text: str) -> None:
    faults: list[tuple[int, str]] = []
    began = time.perf_counter()
    documents(text, faults)
    assert faults
    assert time.perf_counter() - began < 5


def test_merge_keys_come_below_the_mappings_own() -> None:
    (root,) = documents("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n", [])
    faults: list[tuple[int, str]] = []
    found = fields_of(root.items[3], "use", (), faults, [])
    assert {key: node.text for key, node in found.items()} == {"x": "1", "y": "3"}
    assert faults == []


def test_keys_that_nobody_reads_are_told_with_the_nearest() -> None:
    (root,) = documents("a: 1\nmodles: 2\nskipped: 3\n", [])
    notes: list[str] = []
    found = fields_of(root, "recipe", ("a", "models"), [], notes, others=("skipped",))
    assert list(found) == ["a"]
    assert notes == ["line 2: recipe: 'modles' has no effect, nor in mergekit; did you mean 'models'?"]


def test_a_key_given_twice_is_a_fault() -> None:
    (root,) = documents("a: 1\na: 2\n", [])
    faults: list[tuple[int, str]] = []
    fields_of(root, "recipe", (), faults, [])
    assert faults == [(2, "recipe: key 'a' is given twice, first on line 1")]
