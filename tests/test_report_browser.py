"""The report in a real browser, headless Chromium: no error, no request, nothing wider than window or paper."""

import re

import chromium
import pytest
from test_report_page import HOSTILE, write_run
from tinyrun import write_recipe

from knltrain.data import DataSet
from knltrain.report import write_report

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="no Chromium: apt-get install chromium")
LAPTOP, PHONE, PAPER = (1280, 800), (390, 844), (718, 1047)  # A4 without its margins
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
TIP = "document.querySelector('.tip').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports: of a run with pictures, of one of 4,000 steps on 512 ranks, of several, of one with hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    write_recipe(folder)
    runs = {"small": write_run(folder / "small"), "large": write_run(folder / "large", 4000, 512, 161)}
    facts = runs["small"] / "predictions.json"
    shards, digest = f'"data": "{folder}/shards"', f'"digest": "{DataSet(folder / "shards").digest}"'
    facts.write_text(facts.read_text().replace('"data": "nowhere"', shards).replace('"digest": "0"', digest))
    runs |= {"hostile": write_run(folder / "hostile", name=HOSTILE + "long" * 60)}
    pages = {name: write_report([run], None)[0] for name, run in runs.items()}
    return pages | {"several": write_report(list(runs.values()), folder / "several.html")[0]}


@pytest.mark.parametrize("name", ["small", "large", "hostile", "several"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_page__is_quiet_and_fits_the_window(browser, pages, name, size):
    browser.open(pages[name], *size)
    assert browser.value("document.documentElement.scrollWidth") <= size[0] == browser.value("innerWidth")
    outside = "[...document.querySelectorAll('h1, h2, h3, h4, p, figure, .card, figcaption')].filter(e => "
    assert not browser.value(outside + "e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)")
    assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.value("document.querySelectorAll('.pictures img').length") == (name in ("small", "several"))
    assert browser.heard == [("request", pages[name].as_uri())]


@pytest.mark.parametrize("name", ["small", "large"])
def test_pointer__is_told_the_numbers_under_it(browser, pages, name):
    browser.open(pages[name], *LAPTOP)
    told = {"svg.lines": r"epoch [\d.]+\nloss [\d.]+", "image.heat": r"cat\d+\.w\nepoch .*\n0\."}
    for selector, expected in told.items():
        browser.value(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
        box = browser.value(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        browser.point(box["left"] + box["width"] / 2, box["top"] + box["height"] / 2)
        assert re.match(expected, browser.value(TIP)), browser.value(TIP)
    assert [kind for kind, _ in browser.heard] == ["request"]


def test_page__is_dark_where_that_is_wanted(browser, pages):
    browser.open(pages["small"], *LAPTOP)
    light = browser.value(BACKGROUND)
    browser.open(pages["small"], *LAPTOP, scheme="dark")
    dark, ink = browser.value(BACKGROUND), browser.value("getComputedStyle(document.querySelector('h1')).color")
    assert brightness(dark) < 40 < 200 < min(brightness(light), brightness(ink))


def brightness(color):
    """The least of red, green and blue for a light colour, the most for a dark one, of `rgb(1, 2, 3)`."""
    parts = [int(part) for part in re.findall(r"\d+", color)[:3]]
    return min(parts) if sum(parts) > 384 else max(parts)


def test_page__is_printed_whole_and_on_white(browser, pages):
    browser.open(pages["small"], *PAPER, scheme="dark")
    assert len(re.findall(rb"/Type\s*/Page\b", browser.printed())) in (3, 4)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert brightness(browser.value(BACKGROUND)) == 255
    assert browser.value("document.documentElement.scrollWidth") <= PAPER[0]
    recipe = "[...document.querySelectorAll('details pre')].map(pre => pre.getBoundingClientRect().height > 10)"
    assert browser.value(recipe) == [True]  # what is folded on the screen is not lost
    browser.ask("Emulation.setEmulatedMedia", media="")


def test_browser__hears_what_a_bad_page_does(browser, tmp_path):
    """The checks above can fail: a script that throws, an image from the network, an overflow."""
    bad = "<script>nonsense()</script><img src='http://127.0.0.1:9/x.png'><div style='width: 3000px'>x</div>"
    (tmp_path / "bad.html").write_text(f"<!DOCTYPE html>{bad}")
    browser.open(tmp_path / "bad.html", *LAPTOP)
    assert {"exception", "request", "log"} <= {kind for kind, _ in browser.heard} and len(browser.heard) >= 4
    assert browser.value("document.documentElement.scrollWidth") >= 3000
