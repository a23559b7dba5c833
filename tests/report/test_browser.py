"""The HTML page in a real browser: keyboard, narrow windows, dark pages, a thousand products."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_reports import report_of


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as running:
        if found is None and not Path(running.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
        started = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open a page; errors of its script and requests that leave it fail the test."""
    wrong: list[str] = []
    opened = []

    def open_page(report, *, width=1280, scheme="light"):
        path = tmp_path / "report.html"
        report.save(path)
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.append(tab)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for tab in opened:
        tab.close()
    assert not wrong


def says(tab, count):
    """Wait until the page says how many products it shows. (A script of the test's own is what its policy forbids.)"""
    from playwright.sync_api import expect

    expect(tab.locator("output")).to_contain_text(count)


def shown_rows(tab):
    return tab.eval_on_selector_all(
        "table.products tbody tr:not([hidden])", "rows => rows.map(r => +r.cells[2].dataset.value)"
    )


def test_browser_sorts_and_filters(show):
    tab = show(report_of())
    assert shown_rows(tab) == list(range(64, 76))
    button = tab.get_by_role("button", name="M", exact=True)
    button.focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    assert shown_rows(tab) == list(range(75, 63, -1))
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.get_by_label("Search").fill("blocks.2 reason")
    says(tab, "3 of 12")
    tab.get_by_label("rewritten only").check()
    says(tab, "2 of 12")
    tab.get_by_role("combobox").first.select_option("grad_weight")
    says(tab, "1 of 12")
    assert shown_rows(tab) == [72]


def test_browser_shows_the_graph_by_keyboard(show):
    tab = show(report_of())
    tab.locator("tr.rewritten summary").first.focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    shown = tab.locator(".graph")
    assert "mm_1 = aten.mm(x, w)" in shown.inner_text()
    assert "▸ q_mm_1 = hadamard.quantized_mm(x, w)" in shown.inner_text()
    assert shown.locator("svg").count() == 2
    tab.get_by_role("button", name="back to the product").press("Enter")
    assert shown.inner_text() == ""
    assert tab.evaluate("document.activeElement.className") == "show-graph"


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_browser_keeps_to_the_width(show, width):
    tab = show(report_of(), width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_browser_follows_the_scheme(show):
    grounds = [
        show(report_of(3), scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]


def test_browser_is_smooth_with_a_thousand_products(show):
    """A generous bound, for a machine that other tests share: what is looked for is work that grows with the square."""
    tab = show(report_of(1000))
    sort = """column => {
      const began = performance.now();
      document.querySelectorAll("th button")[column].click();
      document.body.offsetHeight;  // lays the page out
      return performance.now() - began;
    }"""
    took = [tab.evaluate(sort, column) for column in (2, 0, 12)]
    assert min(took) < 300, took
    tab.locator('[data-filter="text"]').fill("blocks.33.")
    says(tab, "3 of 1000")
