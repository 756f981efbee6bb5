"""The report page: self-contained, escaped, rectangular tables."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from spatialdiff.report import PIXELS_PER_INCH, Page, png


class Links(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self, html):
        super().__init__()
        self.links, self.tags, self.words, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.links += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def figure():
    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([0, 1])
    return drawn


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = Page("Title", "Lead.").section("A").text("one", "two").figure(figure(), "Caption.")
    page.table(["a", "b"], [["1", "2"]], "Numbers.").items(["x"]).code("k: v", "Config").provenance(
        "seed: 1", 1, {"torch": "2"}
    )
    html = page.save(tmp_path / "report.html").read_text()
    found = Links(html)
    assert len(found.links) == 1
    assert found.links[0].startswith("data:image/png;base64,iVBOR")
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert found.open == []


def test_text_is_escaped():
    html = Page("<b>").text("a < b & c").table(["<x>"], [["<script>"]], best=[(0, 0)]).code("<pre>").html()
    words = Links(html).words
    assert "a < b & c" in words
    assert "<script>" in words
    assert "<script>" not in html


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Page("t").table(["a", "b"], [["1"]])


def test_marked_cells_and_rows():
    html = Page("t").table(["a"], [["1"], ["2"], ["3"]], best=[(1, 0)], reference=[2], rules=[2]).html()
    assert '<td class="best">2</td>' in html
    assert html.count('class="best"') == 1
    assert '<tr class="reference rule"><td>3</td>' in html


def test_pictures_are_shown_at_one_scale(tmp_path):
    """Width on the page by the inches of the picture, from a figure or its file; 3 pixels for rounding."""
    widths = []
    for width in (2.0, 6.0):
        drawn = Figure(figsize=(width, 2.0), facecolor="white")
        drawn.add_axes((0.0, 0.0, 1.0, 1.0)).set_axis_off()
        (tmp_path / "a.png").write_bytes(png(drawn))
        pages = [Page("t").figure(picture).html() for picture in (drawn, tmp_path / "a.png")]
        assert pages[0] == pages[1]
        widths.append(int(re.search(r'style="width: (\d+)px"', pages[0])[1]))
    assert widths[1] - widths[0] == pytest.approx(4.0 * PIXELS_PER_INCH, abs=3)
    assert "width:" not in Page("t").figure(b"\x89PNG without a resolution").html().split("</style>")[1]
