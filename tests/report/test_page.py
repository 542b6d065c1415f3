import re

import pytest

from weightsmith.report.page import Page, Section, Tile, digest, folded, render, titled, words

HOSTILE = "<script>alert('x')</script>\"'&"


@pytest.fixture
def page():
    body = (titled(HOSTILE, words([(HOSTILE, HOSTILE)])), folded(HOSTILE, words([])))
    return Page(HOSTILE, HOSTILE, (Tile(HOSTILE, HOSTILE, HOSTILE),), (Section(HOSTILE, HOSTILE, body),))


def test_text_is_escaped_everywhere(page):
    found = render(page)
    assert found.count("<script") == 1
    assert found.count("&lt;script&gt;") == 12


def test_the_policy_names_the_page_s_own_style_and_script(page):
    found = render(page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', found)[1]
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", found, re.S)[1] for tag in ("style", "script"))
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src '{digest(style)}'",
        f"script-src '{digest(script)}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_page_needs_nothing_else(page):
    assert re.search(r"https?:|url\(|@import|\ssrc=|\shref=|\sstyle=", render(page)) is None


def test_the_policy_comes_before_anything_it_governs(page):
    found = render(page)
    assert found.index("Content-Security-Policy") < found.index("<style>") < found.index("<script>")


def test_halves_of_characters_and_controls_can_be_written():
    found = render(Page("a\ud800b\x1b", "c\udfffd"))
    assert "a\\ud800b\\x1b" in found.encode("utf-8").decode()
    assert "c\\udfffd" in found


def test_same_page_same_text(page):
    assert render(page) == render(page)
