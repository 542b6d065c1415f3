import html
import json
import re

from weightsmith.report.charts import Bar, Point, bars, columns, lines, scatter, stacks
from weightsmith.report.text import count, figure, percent


def rects(svg, kind):
    """x, y, width and height of every rectangle of a class."""
    found = re.findall(rf'<rect class="{kind}" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    return [tuple(map(float, r)) for r in found]


def test_bars_are_as_long_as_their_values():
    svg = bars([Bar("a", 1.0), Bar("b", 0.5)], percent, about="x", goal=(0.75, "goal"))
    (x, _, first, _), (other, _, second, _) = rects(svg, "one")
    assert x == other
    assert first == 2 * second == 640
    goal = float(re.search(r'class="goal" x1="([\d.]+)"', svg)[1])
    assert goal == x + 0.75 * first
    assert "<title>a: 100.0 %</title>" in svg


def test_stacks_divide_a_row_and_tell_its_total():
    svg = stacks([("layer 0", {"selfish": 1, "general": 3})], percent, about="x", unit="weights")
    (x, _, width, _), (after, _, rest, _) = *rects(svg, "selfish"), *rects(svg, "general")
    assert (width + 1.5) * 3 == rest + 1.5
    assert after == x + width + 1.5
    assert "4 weights" in svg
    assert "layer 0: 1 selfish (25.0 %)" in svg


def test_columns_stand_on_the_axis():
    svg = columns([Bar("0", 5, "catastrophic"), Bar("1", 10, "selfish")], count, about="x", axis="tasks")
    (_, y, _, tall), (_, top, _, taller) = *rects(svg, "catastrophic"), *rects(svg, "selfish")
    assert y + tall == top + taller == 200
    assert taller == 2 * tall


def test_lines_leave_gaps_where_there_is_no_value():
    svg = lines(["0", "1", "2", "3", "4"], {"a": [1.0, 2.0, None, 3.0, None]}, figure, about="x", axis="layer")
    assert len(re.findall("<polyline", svg)) == 1
    assert len(re.findall("<circle", svg)) == 1
    assert 'data-y="1|2|–|3|–"' in svg
    assert json.loads(html.unescape(re.search(r'data-x="([^"]*)"', svg)[1]))[3] == "layer 3"


def test_many_lines_are_faint_and_their_mean_is_not():
    series = {f"task {i}": [float(i), 0.0] for i in range(9)}
    svg = lines(["0", "1"], series, figure, about="x", axis="layer")
    assert svg.count('<polyline class="faint"') == 9
    assert svg.count('<polyline class="s0 mean"') == 1
    assert 'data-n="mean" data-y="4|0"' in svg


def test_a_logarithmic_axis_puts_tenfold_steps_at_equal_distances():
    svg = lines(["0", "1", "2"], {"a": [0.01, 0.1, 1.0]}, figure, about="x", axis="index", log=True)
    heights = [float(y) for y in re.search(r'points="([^"]*)"', svg)[1].replace(",", " ").split()[1::2]]
    assert heights == [220.0, 110.0, 0.0]


def test_points_lie_where_their_values_say():
    points = [Point(1e6, 0.5, "small"), Point(1e9, 1.0, "large")]
    svg = scatter(points, x=("bytes", figure), y=("accuracy", percent), about="x")
    (x, y), (right, top) = sorted((float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg))
    assert (x, y, right, top) == (70.0, 300.0, 770.0, 0.0)
    assert "small: bytes 1e+06, accuracy 50.0 %" in svg


def test_names_are_escaped_everywhere():
    name = "<script>\"'"
    pictures = (
        bars([Bar(name, 1.0, about=name, note=name)], percent, about=name),
        stacks([(name, {"selfish": 1})], percent, about=name, unit=name),
        columns([Bar(name, 1.0, about=name)], percent, about=name, axis=name),
        lines([name], {name: [1.0], "b": [2.0]}, percent, about=name, axis=name),
        scatter([Point(1.0, 1.0, name)], x=(name, percent), y=(name, percent), about=name),
    )
    for svg in pictures:
        assert "<script" not in svg
        assert "&lt;script&gt;" in svg
