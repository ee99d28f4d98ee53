"""report.html in a real browser."""

import itertools

import numpy as np
import pytest
from browser import NAMES, Browser, find_browser
from garbage_runs import synthetic_run

from garbage.report.write import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"no browser is installed: {', '.join(NAMES)}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """Reports of a run with checkpoint and photos, and of only log and predictions of twelve classes."""
    bare = synthetic_run(tmp_path_factory.mktemp("bare"))
    write_report(bare)
    return {"whole": run / "report.html", "bare": bare / "report.html"}


@pytest.mark.parametrize("page", ["whole", "bare"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_it_opens_offline_without_complaint(browser, pages, tmp_path, page, width, scheme):
    browser.open(pages[page], width, scheme)
    assert browser.complaints() == []
    assert {url.partition(":")[0] for url in browser.requests()} == {"file", "data"}
    images = browser.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt, i.clientWidth])")
    assert len(images) >= (20 if page == "whole" else 8)
    assert all(complete and natural > 0 and alt and shown > 40 for complete, natural, alt, shown in images)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
    small = (
        "[...document.querySelectorAll('p, td, th, figcaption, dt')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(browser.evaluate(small)) >= 12

    screenshot = browser.screenshot()
    screenshot.save(tmp_path / "page.png")
    assert screenshot.width == width and screenshot.height > 2000
    assert len(screenshot.getcolors(1 << 24)) > 1000
    background = sum(screenshot.getpixel((2, screenshot.height - 2))) / 3
    assert background > 200 if scheme == "light" else background < 60


def test_text_of_plots_stands_out_in_both_schemes(browser, pages):
    """The same pixel of a plot's axis is dark on light, and light on dark."""
    brightness = {}
    for scheme in ("light", "dark"):
        browser.open(pages["bare"], 1280, scheme)
        box = browser.evaluate(
            "(b => [b.x, b.y + scrollY, b.width, b.height])(document.images[0].getBoundingClientRect())"
        )
        x, y, width, height = map(int, box)
        plot = browser.screenshot().crop((x, y, x + width, y + height)).convert("L")
        brightness[scheme] = plot.getextrema(), int(np.median(np.asarray(plot)))
    (darkest, _), background = brightness["light"]
    assert background > 240 and darkest < 80
    (_, lightest), background = brightness["dark"]
    assert background < 60 and lightest > 180


def test_every_section_is_linked_and_headings_are_in_order(browser, pages):
    browser.open(pages["whole"], 1280, "light")
    assert browser.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert browser.evaluate("[...document.querySelectorAll('section')].every(s => s.textContent.length > 40)")
