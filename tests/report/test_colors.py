import itertools
import re

import pytest

from weightsmith.report.colors import STEPS, contrast, from_oklch, scales, step_of, style_rules

CARD = {"light": "#ffffff", "dark": "#1e1e1b"}


def lightness(color):
    """OKLab's lightness of a color, by its definition (Ottosson)."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue))
    long = 0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue
    middle = 0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue
    brief = 0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue
    return 0.2104542553 * long ** (1 / 3) + 0.7936177850 * middle ** (1 / 3) - 0.0040720468 * brief ** (1 / 3)


def test_known_colors():
    assert from_oklch(0.0, 0.0, 0.0) == "#000000"
    assert from_oklch(0.45201, 0.31321, 264.05) == "#0000ff"


def test_colors_out_of_reach_keep_their_lightness():
    assert lightness(from_oklch(0.9, 0.4, 264.0)) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_amounts_move_away_from_the_page_in_even_steps(theme):
    found = scales(theme)
    steps = [lightness(found[f"c{i}"]) for i in range(STEPS)]
    signs = {a < b for a, b in itertools.pairwise(steps)}
    assert signs == {theme == "dark"}
    moves = [abs(a - b) for a, b in itertools.pairwise(steps)]
    assert max(moves) < 2 * min(moves)
    assert contrast(found["c16"], CARD[theme]) > 7 > 1.5 > contrast(found["c0"], CARD[theme])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_sides_of_zero_are_alike_in_lightness_and_unlike_in_hue(theme):
    found = scales(theme)
    below, above = found["d0"], found["d16"]
    assert lightness(below) == pytest.approx(lightness(above), abs=0.06)
    assert int(below[1:3], 16) > int(below[5:7], 16)  # more red than blue
    assert int(above[1:3], 16) < int(above[5:7], 16)
    middle = [int(found["d8"][i : i + 2], 16) for i in (1, 3, 5)]
    assert max(middle) - min(middle) < 12  # gray


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_upon_any_color_is_readable(theme):
    found = scales(theme)
    for kind in "cd":
        for i in range(STEPS):
            assert contrast(found[f"{kind}{i}"], found[f"t{kind}{i}"]) > 4.2, (kind, i)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_stand_out_from_the_page(theme):
    for i in range(8):
        assert contrast(scales(theme)[f"s{i}"], CARD[theme]) > 3, i


def test_every_color_is_declared_for_both_themes_and_for_paper():
    rules = style_rules()
    for name in scales("light"):
        assert len(re.findall(rf"--{name}:#", rules)) == 3, name


def test_steps_cover_the_scale_evenly():
    assert [step_of(i / 17, 0.0, 1.0) for i in range(17)] == list(range(17))
    assert step_of(-1.0, 0.0, 1.0) == 0
    assert step_of(1.0, 1.0, 1.0) == 8
