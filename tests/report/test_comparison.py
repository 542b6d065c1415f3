import html
import math
import re

from weightsmith.compare import Comparison, Row
from weightsmith.distance import Distance, add_distances
from weightsmith.report.comparison import comparison_page
from weightsmith.report.page import render


def distance(length, base=2.0, differing=3):
    """A distance of this length over 4 numbers, from a vector of length `base`."""
    return Distance(4, differing, 4 - differing, 4, 0, 0, length, (length, length**2, base**2, base**2, base**2))


def comparison(rows, **others):
    total = add_distances([r.distance for r in rows if r.distance is not None])
    return Comparison("/models/a", "org/b", rows=tuple(rows), total=total, **{"only_a": (), "only_b": (), **others})


def row(name, found, dtype="F32"):
    return Row(name, ((2, 2), (2, 2)), (dtype, dtype), found)


def values(page, measure):
    found = re.search(rf'data-m="{measure}"[^>]*? data-v="([^"]*)"', render(page))[1]
    return [line.split("|") for line in html.unescape(found).split(";")]


def test_differences_are_added_up_by_layer_and_kind():
    rows = [
        row("model.layers.0.mlp.up.weight", distance(0.3)),
        row("model.layers.0.mlp.down.weight", distance(0.4)),
        row("model.layers.1.self_attn.q_proj.weight", distance(1.0, differing=1)),
    ]
    page = comparison_page(comparison(rows))
    both = 100 * 0.5 / math.sqrt(8)
    assert values(page, "relative difference") == [["–", "50.0 %"], [f"{both:.1f} %", "–"]]
    assert values(page, "share of numbers that differ") == [["–", "25.0 %"], ["75.0 %", "–"]]
    assert 'data-v="0.25">25.0 %</td></tr>' in render(page)


def test_titles_and_overview():
    page = comparison_page(comparison([row("w", distance(0.5)), row("x", distance(0.0, differing=0))], only_b=("new",)))
    assert page.title == "a beside org/b"
    assert page.lead == "Different: 1 of 2 common tensors in values, 1 only in b."
    tiles = {tile.title: tile.value for tile in page.tiles}
    assert tiles["Tensors in both"] == "2"
    assert tiles["Numbers that differ"] == "37.5 %"
    assert tiles["Only in one"] == "1"
    assert "new" in render(page)


def test_the_histogram_counts_every_tensor_once():
    lengths = (0.0, 0.002, 0.02, 0.02, 0.2, 2.0)
    rows = [row(f"t{i}", distance(length, differing=bool(length))) for i, length in enumerate(lengths)]
    section = next(s for s in comparison_page(comparison(rows)).sections if s.title == "How the tensors spread")
    counts = [int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", section.body[0])]
    assert sum(counts) == 6
    assert counts[0] == 1


def test_identical_models_have_a_table_and_no_pictures():
    page = comparison_page(comparison([row("w", distance(0.0, differing=0))]))
    assert [s.title for s in page.sections] == ["Tensors"]


def test_tensors_that_are_no_numbers_and_other_shapes():
    rows = [
        Row("ids", ((4,), (4,)), ("I64", "I64"), None, 8),
        Row("wide", ((2, 2), (2, 3)), ("F32", "BF16"), None, None),
        row("nan", Distance(4, 4, 0, 0, 4, 4, 0.0)),
    ]
    found = render(comparison_page(comparison(rows)))
    assert "2 × 2 | 2 × 3" in found
    assert "F32 | BF16" in found
    assert ">ids<" in found


def test_a_base_of_zeros_has_no_relative_difference():
    zero = Distance(4, 4, 0, 4, 0, 0, 1.0, (4.0, 4.0, 0.0, 4.0, 0.0))
    found = render(comparison_page(comparison([row("model.layers.0.w", zero), row("model.layers.1.w", distance(0.5))])))
    assert "∞" in found
    assert "nan" not in found.split("</style>")[1].split("<script>")[0].replace("nan/inf", "")


def test_names_are_escaped():
    name = "<script>alert('x')</script>\"'"
    rows = [row(name, distance(0.5)), row("model.layers.0." + name, distance(0.3))]
    found = render(comparison_page(comparison(rows, only_a=(name,), only_b=(name + "2",), notes=(name,))))
    assert found.count("<script") == 1
