"""Pages about single slides: their picture, what lies where, and what opens in a browser."""

import base64
import importlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.models import slide_views
from lrmil_jax.patches.shards import Shards
from lrmil_jax.report import heatmap, html, outlines, pyramid, slide_page
from tests.data import records
from tests.report.test_html import Strict

MASKS = [np.ones((2, 2), bool), np.array([[True, False], [True, True]]), np.ones((2, 2), bool)]


@pytest.fixture
def shards(tmp_path):
    path = records.write_regions(tmp_path / "s.array_record", MASKS)
    records.write_mosaics(path, MASKS)
    return Shards(path, records.GEOMETRY, threads=1)


def test_the_picture_is_made_of_the_patches_where_they_lie(shards):
    made = slide_views.mosaic(shards, 8, patches=3)
    # LR tiles of 8 px and side 16 at x 0, 16 and 32, each as grey as its number.
    assert made.picture.shape == (8, 24, 3)
    assert made.origin == (0, 32)
    assert made.downsample == 2
    np.testing.assert_array_equal(made.picture[:, :, 0], np.repeat([[0, 1, 2]], 8, 0).repeat(8, 1))
    smaller = slide_views.mosaic(shards, 8, patches=100_000)  # as if there were as many
    assert smaller.picture.shape == (4, 12, 3)
    assert smaller.downsample == 4


@pytest.mark.parametrize("mosaics", [True, False])
def test_patches_as_they_are_shown(shards, mosaics):
    rows = records.rows_of(MASKS)
    places = {"parent": rows.parent, "child": rows.child}
    chosen = [index for index in range(len(rows.parent)) if rows.parent[index] == 1]
    images = slide_views.patch_images(shards, places, chosen, geometry=records.GEOMETRY,
                                      mosaics=mosaics)  # fmt: skip
    if mosaics:  # child (v, u) is grey 20 + 50 v + 100 u; (0, 1) of this parent is not there
        np.testing.assert_allclose([image.mean() for image in images], [20, 70, 170], atol=2)
    else:
        assert [image.shape for image in images] == [(4, 4, 3)] * 3
        assert all((image == 1).all() for image in images)


def page(count=9, **changes):
    side = int(np.sqrt(count))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 64 + 128
    attention = np.random.default_rng(0).random(len(xy))
    values = {
        "name": "a & b", "facts": [("patient", "<p>")], "verdict": "tumour 0.61 (label benign)",
        "is_wrong": True, "picture": np.full((60, 1100, 3), 200, np.uint8), "origin": (128, 128),
        "downsample": 4.0, "mpp": 0.5, "xy": xy, "side": 64,
        "attention": attention / attention.sum(), "regions": xy[:2], "region_side": 64,
        "most": [slide_page.ShownPatch(3, np.zeros((200, 200, 3), np.uint8))],
    }  # fmt: skip
    return slide_page.SlidePage(**values | changes)


def test_the_page_holds_all_that_it_shows():
    made = page()
    text = slide_page.render(made)
    whole = Strict(text)
    assert all(one.startswith(("data:", "../index.html")) for one in whole.addresses)
    assert "<td>&lt;p&gt;</td>" in text
    assert "://" not in text
    data = json.loads(re.search(r'id="slide">(.*?)</script>', text)[1])
    xy = np.frombuffer(base64.b64decode(data["xy"]), "<i4").reshape(-1, 2)
    np.testing.assert_array_equal(xy, made.xy)
    attention = np.frombuffer(base64.b64decode(data["attention"]), "<f4")
    np.testing.assert_allclose(attention, made.attention, rtol=1e-6)
    assert 'data-patch="3"' in text
    assert f"{9 * made.attention[3]:.3g} times the even share" in text


def test_pages_link_those_beside_them():
    text = slide_page.render(page(), before="slide #1", after="a<b")
    links = [one for one in Strict(text).addresses if not one.startswith("data:")]
    assert links == ["../index.html#slides", "slide%20%231.html", "a%3Cb.html"]
    assert ">Previous: slide #1<" in text
    assert ">Next: a&lt;b<" in text
    alone = slide_page.render(page())
    assert "Previous:" not in alone
    assert "Next:" not in alone


def test_lesions_are_an_overlay_that_can_be_switched():
    ring = np.array([[128, 128], [192, 128], [192, 192], [128, 128]])
    other = ring[:3]  # rings are of any length
    text = slide_page.render(page(lesions=[ring, other]))
    assert '<input type="checkbox" id="lesions" checked>' in text
    data = json.loads(re.search(r'id="slide">(.*?)</script>', text)[1])
    assert data["lesions"] == [ring.tolist(), other.tolist()]
    assert 'id="lesions"' not in slide_page.render(page())


def test_outlines_of_a_mask_lie_on_the_slide():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    mask[15:20, 30:40] = False
    area, hole = outlines.outlines(mask, (600, 400))  # 10 level-0 px a mask px
    for ring, (left, top, right, bottom) in ((area, (200, 100, 500, 300)),
                                             (hole, (300, 150, 400, 200))):  # fmt: skip
        np.testing.assert_array_equal(ring[0], ring[-1])
        np.testing.assert_allclose(ring.min(0), (left, top), atol=5)  # half a px of the mask
        np.testing.assert_allclose(ring.max(0), (right, bottom), atol=5)


def test_outlines_are_closed_at_the_edge_and_small_lesions_stay():
    (whole,) = outlines.outlines(np.ones((8, 8), bool), (80, 80))
    np.testing.assert_allclose([whole.min(0), whole.max(0)], [[0, 0], [80, 80]], atol=5)
    large = np.zeros((5000, 5000), bool)
    large[2500, 2500] = True
    (dot,) = outlines.outlines(large, (5000, 5000))
    assert np.abs(dot - 2500).max() < 5
    assert outlines.outlines(np.zeros((8, 8), bool), (80, 80)) == []


def test_the_pyramid_leaves_white_tiles_out():
    picture = np.full((600, 1100, 3), 255, np.uint8)
    picture[520:580, 1030:1090] = 90
    levels = pyramid.levels(picture)
    assert [(one["width"], one["height"]) for one in levels] == [
        (1100, 600),
        (550, 300),
        (275, 150),
    ]
    assert list(levels[0]["tiles"]) == ["2_1"]
    with Image.open(io.BytesIO(base64.b64decode(levels[0]["tiles"]["2_1"]))) as tile:
        assert tile.size == (76, 88)
        assert abs(int(np.asarray(tile)[20, 20, 0]) - 90) < 4


def test_cards_link_pages_by_names_of_any_kind():
    card = slide_page.card(page(name="slide #1 & 2's"))
    assert 'href="slides/slide%20%231%20%26%202%27s.html"' in card
    assert "wrong: tumour 0.61" in card
    Strict(card)


def test_an_even_slide_does_not_glow():
    even = np.full(50, 0.02) * np.random.default_rng(0).uniform(0.95, 1.05, 50)
    assert np.ptp(heatmap.rank_scaled(even)) == 1
    assert np.ptp(heatmap.absolute_scaled(even / even.sum())) < 0.02
    hot = np.array([0.91] + [0.01] * 9)
    scaled = heatmap.absolute_scaled(hot)
    assert scaled[0] == pytest.approx(0.5 + np.log2(9.1) / 8)
    assert scaled[1] == pytest.approx(0.5 + np.log2(0.1) / 8)
    assert heatmap.absolute_scaled(np.eye(1, 40)[0]).tolist() == [1.0] + [0.0] * 39


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_chromium_opens_a_page_of_100_000_patches(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    bench_report = importlib.import_module("bench_report")
    path = tmp_path / "large.html"
    html.save(path, slide_page.render(page(100_489)))
    assert path.stat().st_size < 4e6
    milliseconds, console = bench_report.opened(shutil.which("chromium"), path)
    assert not console
    assert milliseconds < 2000
