import re

from weightsmith.report.table import Column, table
from weightsmith.report.text import count

HEADS = (Column("tensor"), Column("kind"), Column("size", count, "how many"))


def test_cells_hold_text_and_the_number_to_sort_by():
    found = table(HEADS, [("a", "mlp", 1234567), ("b", None, None)], sortable=True)
    assert '<td class="n" data-v="1.23457e+06">1,234,567</td>' in found
    assert '<td>–</td><td class="n" data-v="">–</td>' in found
    assert found.count("<button") == 3
    assert 'title="how many"' in found


def test_plain_tables_do_not_sort():
    found = table(HEADS, [("a", "mlp", 1)])
    assert "<button" not in found
    assert "data-v" not in found


def test_long_tables_scroll_and_have_a_filter():
    rows = [(f"t{i}", "mlp", i) for i in range(31)]
    assert re.search(r'type="search".*31 rows.*class="wide tall"', table(HEADS, rows, sortable=True), re.S)
    assert "search" not in table(HEADS, rows[:30], sortable=True)


def test_names_are_escaped():
    found = table((Column("<b>", None, '"'), Column("x")), [("<script>", '"<i>')], sortable=True)
    assert "<script>" not in found
    assert "<i>" not in found
    assert 'title="&#34;"' in found


def test_infinity_is_written_as_the_page_reads_it():
    heads = (Column("tensor"), Column("drift", str))
    found = table(heads, [("a", float("inf")), ("b", float("-inf"))], sortable=True)
    assert 'data-v="Infinity"' in found
    assert 'data-v="-Infinity"' in found
