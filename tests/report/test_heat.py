import html
import json
import re

import pytest

from weightsmith.report.heat import Scale, fit, heat_map, matrix
from weightsmith.report.text import figure, percent


def attribute(svg, name):
    return html.unescape(re.search(rf' {name}="([^"]*)"', svg)[1])


def boxes(svg):
    """Every cell as (class, x, y), read from the paths."""
    found = []
    for color, path in re.findall(r'<path class="(\w+)" d="([^"]*)"', svg):
        found += [(color, float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path)]
    return sorted(found, key=lambda box: (box[2], box[1]))


def test_cells_stand_in_their_places_with_their_colors():
    svg = heat_map(["a", "b"], ["0", "1"], [[0.0, 1.0], [0.5, None]], Scale(0.0, 1.0, percent), measure="density")
    found = boxes(svg)
    assert [color for color, _, _ in found] == ["c0", "c16", "c8", "none"]
    left, top, width, height = map(float, attribute(svg, "data-at").split())
    assert [(x, y) for _, x, y in found] == [
        (left, top),
        (left + width, top),
        (left, top + height),
        (left + width, top + height),
    ]


def test_hovering_has_rows_columns_and_values():
    svg = heat_map(["a"], ["0", "1"], [[0.25, None]], Scale(0.0, 1.0, percent), measure="density", row="task")
    assert json.loads(attribute(svg, "data-r")) == ["task a"]
    assert json.loads(attribute(svg, "data-c")) == ["layer 0", "layer 1"]
    assert attribute(svg, "data-v") == "25.0 %|–"
    assert attribute(svg, "data-m") == "density"


def test_numbers_stand_in_wide_cells_only():
    wide = heat_map(["a"], ["0"], [[0.25]], Scale(0.0, 1.0, percent), measure="m")
    narrow = heat_map(["a"], [str(i) for i in range(100)], [[0.25] * 100], Scale(0.0, 1.0, percent), measure="m")
    assert ">25.0<" in wide
    assert ">25.0<" not in narrow


def test_a_map_of_300_layers_is_as_wide_as_one_of_30():
    few, many = (
        heat_map(["a"], [str(i) for i in range(n)], [[0.5] * n], Scale(0.0, 1.0, percent), measure="m")
        for n in (30, 300)
    )
    assert float(attribute(many, "width")) == pytest.approx(float(attribute(few, "width")), rel=0.02)


def test_a_matrix_around_zero_uses_both_sides():
    svg = matrix(["a", "b"], [[None, -0.5], [0.5, None]], fit([-0.5, 0.5], figure, around_zero=True), measure="cosine")
    assert [color for color, _, _ in boxes(svg)] == ["none", "d0", "d16", "none"]


def test_scales_fit_their_values():
    assert (fit([0.25, None, 0.5], percent).low, fit([0.25, None, 0.5], percent).high) == (0.0, 0.5)
    assert fit([-1.0, 3.0], percent).low == -1.0
    around = fit([-1.0, 3.0], percent, around_zero=True)
    assert (around.low, around.high) == (-3.0, 3.0)
    assert fit([1e-6], percent, around_zero=True, least=0.1).high == 0.1
    assert fit([], percent).high == 1.0
    assert fit([0.0], percent).high == 1.0


def test_labels_are_escaped():
    svg = heat_map(['<b>"x'], ["0"], [[1.0]], Scale(0.0, 1.0, percent), measure="a<b")
    assert "<b>" not in svg
    assert json.loads(attribute(svg, "data-r")) == ['<b>"x']
