"""The tree that strict reading builds; what it refuses in a recipe is in test_recipe.py."""

from __future__ import annotations

import time

import pytest

from weightsmith.strict_yaml import Faults, items_of, mapping, number_of, parse_tree, resolve, scalar, text_of


def fault_of(text: str) -> str:
    faults: Faults = []
    assert parse_tree(text, faults) is None
    ((line, fault),) = faults
    return f"line {line}: {fault}"


def test_nodes_know_their_lines_and_expanded_sizes() -> None:
    faults: Faults = []
    root = parse_tree("a: &x\n  - 1\n  - 'b'\nc: *x\n", faults)
    assert root is not None
    assert (root.line, root.kind, root.size, root.height, faults) == (1, "mapping", 9, 3, [])
    fields = mapping(root, "root", None, faults)
    assert [item.line for item in fields["a"].items] == [2, 3]
    assert fields["c"] is fields["a"]
    assert [(item.text, item.plain) for item in fields["a"].items] == [("1", True), ("b", False)]


@pytest.mark.parametrize(("limit", "fits"), [(9, True), (8, False)])
def test_the_budget_is_exact(limit: int, fits: bool) -> None:
    faults: Faults = []
    root = parse_tree("a: &x [1, b]\nc: *x\n", faults, max_nodes=limit)
    assert (root is not None, faults == []) == (fits, fits)


def test_faults_go_on_being_gathered() -> None:
    faults: Faults = []
    root = parse_tree("a: !t 1\nb: [yes]\nc: x\nd: {}\na: 2\n", faults)
    assert root is not None
    fields = mapping(root, "root", None, faults)
    assert scalar(items_of(fields["b"], "b", "a list", faults)[0], "b", faults) is None
    assert number_of(fields["c"], "c", faults) is None
    assert text_of(fields["d"], "d", faults) is None
    assert items_of(fields["d"], "d", "a list", faults) == []
    assert [(line, text.split(";")[0]) for line, text in faults] == [
        (1, "tag '!t' is refused"),
        (5, "root: key 'a' is given twice, first on line 1"),
        (2, "b: 'yes' is refused: write true or false, or put it in quotes where text is meant"),
        (3, "c: expected a number, got 'x'"),
        (4, "d: expected one value, got an empty mapping"),
        (4, "d: expected a list, got an empty mapping"),
    ]


def test_no_node_is_no_text() -> None:
    faults: Faults = []
    assert text_of(None, "x", faults) is None
    assert faults == []


@pytest.mark.parametrize("word", ["", "~", "null", "NULL"])
def test_words_for_nothing(word: str) -> None:
    assert resolve(word) == (None, "")


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 14)),
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} {{b: *a{n - 1}, c: *a{n - 1}}}\n" for n in range(1, 30)),
        "[" * 5000,
        "[" * 900_000,
        "a: [" + "1, " * 300_000 + "]",
        "- " * 5000 + "a",
        "\n".join(" " * depth + "a:" for depth in range(500)),
        "? " * 5000,
    ],
    ids=["aliases", "mappings", "deep", "deeper", "long", "dashes", "blocks", "keys"],
)
def test_bombs_are_refused_in_bounded_time(text: str) -> None:
    start = time.perf_counter()
    message = fault_of(text)
    assert time.perf_counter() - start < 10
    assert any(
        told in message
        for told in (
            "more than 20000 values, aliases expanded",
            "nested deeper than 16 levels",
        )
    )


def test_an_alias_bomb_is_refused_for_its_expanded_size() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 9))
    assert "YAML: more than 20000 values, aliases expanded" in fault_of(text)


def test_aliases_count_towards_the_depth() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))
    assert "line 15: YAML: nested deeper than 16 levels" in fault_of(text)
