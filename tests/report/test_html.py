"""Pages: text stays text, pictures are inside, and nothing is asked of elsewhere."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.report import html as pages


class Strict(html.parser.HTMLParser):
    """Collects tags, and refuses those that close what is not open."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.addresses = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            assert attrs["alt"]
            self.images.append(attrs["src"])
        self.addresses += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_text_as_text(tmp_path):
    page = pages.page("A & B", [["<model>", "AUC"], ["LRMIL", "0.9"]],
                      [('a"b.png', "x < y")], ["5 < 6"])  # fmt: skip
    assert "<title>A &amp; B</title>" in page
    assert "<th>&lt;model&gt;</th>" in page
    assert "<td>LRMIL</td><td>0.9</td>" in page
    assert 'src="a%22b.png"' in page
    assert "<p>5 &lt; 6</p>" in page
    assert "<script" not in page
    assert "://" not in page
    Strict(page)
    pages.save(tmp_path / "index.html", page)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page


def test_pictures_are_inside_and_bounded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "small.png")
    page = pages.page("t", [["a"]], [("large.png", "large"), ("small.png", "small")], [],
                      folder=tmp_path)  # fmt: skip
    large, small = Strict(page).images
    assert large.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))) as picture:
        assert picture.size == (1400, 210)
    assert base64.b64decode(small.partition(",")[2]) == (tmp_path / "small.png").read_bytes()
    assert 'href="large.png"' in page  # whole, beside the page


def test_data_for_scripts_cannot_end_their_element():
    made = pages.data("slide", {"name": "</script><b>"})
    assert made.count("</script>") == 1
    assert "</script><b>" in re.sub("\\\\u003c", "<", made)


def test_contents_link_the_sections_that_have_something():
    sections = [pages.section("First & last", "<p>x</p>"), pages.section("Empty", "")]
    assert sections[1] == ""
    assert '<a href="#first-last">First &amp; last</a>' in pages.contents(sections)


@pytest.mark.parametrize(("cell", "unbroken"), [
    ("0.912 [0.850, 0.960]", True), ("a slide without any tissue at all", False), ("0.9", False),
    ("LR without distillation", True),
])  # fmt: skip
def test_figures_are_not_broken_over_lines(cell, unbroken):
    assert ('class="n"' in pages.table([["a"], [cell]])) == unbroken


def test_the_page_has_room_for_a_second_table():
    page = pages.page("t", [["model"]], [], ["note"], sections=[("A > B", [["x"], ["<1>"]])])
    assert page.count("<table>") == 2
    assert page.index("note") < page.index("<h2>A &gt; B</h2>") < page.index("<td>&lt;1&gt;</td>")
    assert "<h2>" not in pages.page("t", [["model"]], [], ["note"])
