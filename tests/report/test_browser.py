"""Pages as a real browser shows them: they render, sort and tell values; nothing leaves them, and no name runs."""

import json

import pytest

from weightsmith.report.colors import scales
from weightsmith.report.localization import localization_page
from weightsmith.report.page import render

HOSTILE = (
    "<script>document.title='run'</script>",
    "\"><img src=x onerror=document.title='run'>",
    "';document.title='run';//",
    "</title></style></script><svg onload=document.title='run'>",
    '{{ 7 * 7 }}|;["x"]',
    "снег ☃ \u202egnp.exe",
)


@pytest.fixture
def page(tmp_path, small):
    path = tmp_path / "report.html"
    path.write_text(render(localization_page(small)), encoding="utf-8")
    return path


def column(browser, at):
    return json.loads(
        browser.run(
            f"JSON.stringify([...document.querySelectorAll('.tall tbody tr')].map(r => r.cells[{at}].textContent))"
        )
    )


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_renders_without_complaint_or_request(browser, page, dark):
    browser.open(page, dark=dark)
    assert browser.run("document.querySelectorAll('svg').length") > 15
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 21, 19)" if dark else "rgb(246, 246, 243)"
    )
    assert browser.run("document.querySelector('.map path.c16').getBoundingClientRect().width") > 5
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_nothing_is_wider_than_a_small_window(browser, page):
    browser.open(page, width=400)
    assert browser.run("document.documentElement.scrollWidth") <= 400


def test_text_stays_within_its_picture(browser, page):
    browser.open(page)
    outside = """[...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
        }).map(text => svg.getAttribute('aria-label') + ': ' + text.textContent);
    }).join('\\n')"""
    assert browser.run(outside) == ""


def test_headings_sort_numbers_and_words(browser, page, small):
    browser.open(page)
    names = [t["name"] for t in small["tensors"]]
    assert column(browser, 0) == names
    heads = "document.querySelectorAll('.tall thead button')"
    browser.run(f"{heads}[2].click()")
    sizes = [int(text.replace(",", "")) for text in column(browser, 2)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    browser.run(f"{heads}[2].click()")
    assert [int(text.replace(",", "")) for text in column(browser, 2)] == sorted(sizes)
    browser.run(f"{heads}[0].click()")
    assert column(browser, 0) == sorted(names)
    assert browser.run("document.querySelector('.tall th[aria-sort]').getAttribute('aria-sort')") == "ascending"


def test_the_filter_leaves_rows_that_hold_the_text(browser, page):
    browser.open(page)
    browser.run("""(() => { const field = document.querySelector('.filter input'); field.value = 'LAYERS.1.';
        field.dispatchEvent(new Event('input')); })()""")
    shown = browser.run(
        "[...document.querySelectorAll('.tall tbody tr')].filter(r => r.offsetHeight).map(r => r.cells[0].textContent).join()"
    )
    assert shown
    assert all("layers.1." in name for name in shown.split(","))
    assert browser.run("document.querySelector('.filter span').textContent") == f"{len(shown.split(','))} rows"


def test_hovering_tells_the_value_of_a_cell(browser, page, small):
    browser.open(page)
    cells = "[...document.querySelectorAll('svg.map')].find(m => m.dataset.m.startsWith('cosine'))"
    place = [float(x) for x in browser.run(f"{cells}.dataset.at").split()]
    width, height = (float(browser.run(f"{cells}.getAttribute('{side}')")) for side in ("width", "height"))
    across, down = (place[0] + 1.5 * place[2]) / width, (place[1] + 0.5 * place[3]) / height
    value = f"{small['matrices']['cosine'][0][1]:.3f}".replace("-", "\N{MINUS SIGN}")
    assert browser.hover(cells, across, down) == f"task digits, task letters\ncosine of the task vectors: {value}"


def test_hovering_tells_the_values_of_lines(browser, page, small):
    browser.open(page)
    drift = "document.querySelector('svg.lines')"
    shown = browser.hover(drift, 70 / 954, 0.5)
    first = small["layers"][0]["drift"]
    assert shown == f"layer embedding\ndigits: {100 * first[0]:.1f} %\nletters: {100 * first[1]:.1f} %"


def test_hovering_tells_what_a_bar_stands_for(browser, page, small):
    browser.open(page)
    bar = "document.querySelector('rect.selfish')"
    share = small["model"]["agreement"][1] / sum(small["model"]["agreement"])
    assert f"needed by 1 of 2 tasks: {100 * share:.1f} %" in browser.hover(bar)
    assert browser.hover("document.querySelector('h1')") is None


def test_hostile_names_do_not_run(browser, tmp_path, small):
    tasks = list(HOSTILE)
    small = {**small, "base": HOSTILE[0], "notes": [HOSTILE[3]], "not_compared": {HOSTILE[1]: HOSTILE[2]}}
    small["lineage"] = [{**small["lineage"][0], "task": name} for name in tasks]
    for i, part in enumerate(small["tensors"]):
        part["name"] = HOSTILE[i % len(HOSTILE)] + str(i)
    small["layers"][0]["name"] = small["kinds"][0]["name"] = small["cells"][0]["kind"] = HOSTILE[3]
    small["tasks"] = tasks[:2]
    path = tmp_path / "hostile.html"
    path.write_text(render(localization_page(small)), encoding="utf-8")
    browser.open(path)
    for map_ in range(browser.run("document.querySelectorAll('svg.map').length")):
        browser.hover(f"document.querySelectorAll('svg.map')[{map_}]", 0.6, 0.5)
    browser.run("document.querySelectorAll('.tall thead button')[0].click()")
    assert browser.run("document.title") != "run"
    assert browser.run("document.querySelectorAll('img, [onload], [onerror]').length") == 0
    assert browser.run("document.scripts.length") == 1
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]


def test_the_policy_stops_what_a_page_does_not_own(browser, tmp_path, page):
    """The policy is strict: a script, a style or an image slipped into the page is refused, and the browser says so."""
    path = tmp_path / "tampered.html"
    slipped = (
        "<script>document.title = 'run'</script><style>body { color: red }</style><img src='http://127.0.0.1:9/x.png'>"
    )
    path.write_text(page.read_text(encoding="utf-8").replace("<main>", "<main>" + slipped), encoding="utf-8")
    browser.open(path)
    assert browser.run("document.title") != "run"
    assert browser.run("getComputedStyle(document.body).color") == "rgb(20, 20, 15)"
    assert [c for c in browser.complaints() if "Content Security Policy" in json.dumps(c)]


def test_paper_is_light_and_shows_forty_rows(browser, tmp_path, made):
    page = tmp_path / "report.html"
    page.write_text(render(localization_page(made(6, ["digits"]))), encoding="utf-8")
    browser.open(page, dark=True)
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    palest = browser.run("getComputedStyle(document.documentElement).getPropertyValue('--c0')")
    assert palest == scales("light")["c0"]
    assert browser.run("[...document.querySelectorAll('.tall tbody tr')].filter(r => r.offsetHeight).length") == 40
    browser.call("Emulation.setEmulatedMedia", media="")
