"""The HTML page: what it says, that it is well formed, and that it needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_reports import HOSTILE, report_of

from hadamard_fx.errors import ReportError
from hadamard_fx.plan import Plan
from hadamard_fx.report import Report
from hadamard_fx.report.page import page
from hadamard_fx.report.prices import prices

CSS = Path(__file__).resolve().parents[2] / "hadamard_fx" / "report" / "web" / "page.css"
VOID = {"meta", "input", "br", "img", "link"}


class Reading(HTMLParser):
    """Collects elements and text, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_says_everything():
    report = report_of()
    found = Reading(report.to_html())
    for words in ("8 rewritten", "67 %", "1.0 MiB → 256 KiB", "profile = hot", "reason 4", "s0≈256", HOSTILE):
        assert words in found.words
    assert "11 of 12, as chosen" in found.words
    for words in ("not exact, 1.00 ms: predicted slower <than> the choice", "makes rows; computes mul", "alone"):
        assert words in found.words
    assert len([row for row in found.all("tr") if "data-role" in row]) == 12
    assert len(found.all("svg")) == 3
    assert sum("own" in (box.get("class") or "") for box in found.all("rect")) == 1


def test_page_says_how_products_are_priced():
    report = report_of()
    algebra = str(report.formula(report.plan.decisions[0].gemm).expression)
    words = Reading(report.to_html()).words
    assert algebra in words and "Prices" in words
    kinds = {(str(d.scheme), d.gemm.role) for d in report.plan.decisions}
    assert len(prices(report.plan)) == len(kinds)
    assert "bandwidth" in algebra and "M" in algebra


def test_page_needs_nothing_else():
    html = report_of().to_html()
    found = Reading(html)
    assert not {tag for tag, _ in found.elements} & {"img", "link", "iframe", "object", "base"}
    assert not [a for _, a in found.elements for key in ("src", "href") if key in a]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", html)
    assert "default-src 'none'" in html
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a} <= set(ids)


def test_several_graphs_on_one_page():
    found = Reading(page([report_of(), replace(report_of(3), name="graph 1", graphs=None)]))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert ids == ["g0", "g0-title", "g1", "g1-title"]
    assert "was not recorded" in found.words


@pytest.mark.parametrize("report", [Report(Plan(())), replace(report_of(3), roofline=None, passes=(), graphs=None)])
def test_page_of_little(report):
    Reading(report.to_html())
    Reading(report._repr_html_())


def test_page_of_nothing():
    assert "nothing to report" in Reading(page([])).words


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme):
    """WCAG 2.1 AA: 4.5 for text, 3 for what pictures are made of."""
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[theme]))

    def contrast(one, other):
        bright, dark = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    for ground in ("page", "panel"):
        for words in ("text", "quiet", "warn", "chosen"):
            assert contrast(words, ground) >= 4.5, (words, ground)
        for shape in ("exact", "chosen", "own"):
            assert contrast(shape, ground) >= 3, (shape, ground)


def test_save(tmp_path):
    report = report_of()
    assert report.save(tmp_path / "new" / "x.html").read_text(encoding="utf-8") == report.to_html()
    assert Report.from_json(report.save(tmp_path / "x.JSON").read_text(encoding="utf-8")) == report
    with pytest.raises(ReportError, match=r"saved as \.html or \.json"):
        report.save(tmp_path / "x.txt")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ReportError, match="cannot be written"):
        report.save(tmp_path / "file" / "x.html")
    assert (tmp_path / "file").read_text() == "kept"


def test_notebook_is_small():
    html = report_of(1000)._repr_html_()
    assert "666 rewritten" in Reading(html).words
    assert len(html) < 200_000


def test_data_in_the_page_is_json():
    html = report_of().to_html()
    (stored,) = re.findall(r'<script type="application/json" class="graphs">(.*?)</script>', html, re.DOTALL)
    assert len(json.loads(stored)["before"]) == 14
