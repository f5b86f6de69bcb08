"""Heatmaps: ranks, colours in their places, and pictures that open."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import rankdata

from lrmil_jax.report import heatmap


def test_ranks_run_from_0_to_1_and_ties_share_their_mean():
    np.testing.assert_allclose(
        heatmap.rank_scaled(np.array([0.7, 0.1, 0.1, 0.05])), [1, 0.5, 0.5, 0]
    )
    np.testing.assert_array_equal(heatmap.rank_scaled(np.array([0.3])), [0])
    np.testing.assert_allclose(heatmap.rank_scaled(np.full(4, 0.25)), 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_against_scipy_and_under_any_rising_map(seed):
    rng = np.random.default_rng(seed)
    attention = rng.integers(0, 8, 40).astype(float)
    ranks = heatmap.rank_scaled(attention)
    np.testing.assert_allclose(ranks, (rankdata(attention) - 1) / 39)
    np.testing.assert_array_equal(ranks, heatmap.rank_scaled(np.exp(attention)))
    # One patch with nearly all the attention hides no other.
    hot = heatmap.rank_scaled(np.array([*np.linspace(0, 1e-6, 9), 1.0]))
    np.testing.assert_allclose(np.sort(hot), np.linspace(0, 1, 10))


def test_patches_are_coloured_where_they_lie():
    thumbnail = np.full((20, 30, 3), 100, np.uint8)
    xy = np.array([[0, 0], [160, 80]])  # (x, y) in level-0 px: columns 16-23, rows 8-15
    picture = heatmap.blend(thumbnail, 10.0, xy, 80, np.array([0.1, 0.9]))
    blue, red = picture[4, 4].astype(int), picture[12, 20].astype(int)
    assert blue[2] > 100 > blue[0]
    assert red[0] > 100 > red[2]
    assert (picture[0:8, 0:8] == picture[4, 4]).all()
    assert (picture[8:16, 16:24] == picture[12, 20]).all()
    coloured = np.zeros((20, 30), bool)
    coloured[0:8, 0:8] = coloured[8:16, 16:24] = True
    assert (picture[~coloured] == 100).all()
    assert (thumbnail == 100).all()


def test_alpha_weighs_the_colour():
    thumbnail = np.full((8, 8, 3), 200, np.uint8)
    patches = (4.0, np.array([[0, 0]]), 32, np.array([1.0]))
    np.testing.assert_array_equal(heatmap.blend(thumbnail, *patches, alpha=0.0), thumbnail)
    full = heatmap.blend(thumbnail, *patches, alpha=1.0).astype(int)
    half = heatmap.blend(thumbnail, *patches, alpha=0.5).astype(int)
    assert np.abs(half - (full + 200) / 2).max() <= 1


def test_patches_over_the_edge_and_smaller_than_a_pixel():
    thumbnail = np.zeros((5, 5, 3), np.uint8)
    picture = heatmap.blend(thumbnail, 10.0, np.array([[40, 40], [0, 0]]), 100, np.array([1.0, 0]))
    assert picture.shape == (5, 5, 3)
    assert picture[4, 4].any()
    tiny = heatmap.blend(thumbnail, 100.0, np.array([[210, 330]]), 2, np.array([1.0]))
    assert np.argwhere(tiny.any(-1)).tolist() == [[3, 2]]


@pytest.mark.parametrize("shape", [(20, 30), (300, 40), (40, 900)])
def test_the_picture_is_a_png_of_sane_size(tmp_path, shape):
    thumbnail = np.full((*shape, 3), 180, np.uint8)
    path = tmp_path / "heatmaps" / "h.png"
    heatmap.save(path, thumbnail, 8.0, np.array([[0, 0], [64, 0]]), 64, np.array([0.4, 0.6]),
                 title="slide_1: tumour 0.900")  # fmt: skip
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 300 < picture.width < 2000
        assert picture.height < 8000
        values = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    # Both pictures and the bar are there: thumbnail's grey, blue and red.
    assert (values == 180).all(1).any()
    assert (values[:, 0] - values[:, 2] > 50).any()
    assert (values[:, 2] - values[:, 0] > 50).any()
