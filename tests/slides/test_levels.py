"""Scales of pyramid levels: the truth behind rounded or padded sizes, or no level at all."""

import numpy as np
import pytest

from lrmil_jax.slides.levels import StoredLevel, verify
from lrmil_jax.slides.slide import open_slide
from tests.slides.files import aperio, gradient, write_tiff

TILE = (256, 256)


def scales(*levels):
    """(downsample, evidence) of the levels below the finest."""
    found, notes = verify(levels)
    return [(level.downsample, level.evidence) for level in found[1:]], notes


@pytest.mark.parametrize(
    ("finest", "size", "tile", "stated", "expected"),
    [
        ((5000, 4400), (1250, 1100), TILE, None, (4.0, "whole number")),
        ((4002, 2000), (1000, 500), TILE, None, (4.0, "whole number")),  # 2 columns lost
        ((5000, 4400), (1280, 1280), TILE, None, (4.0, "padded")),
        ((5000, 4400), (1280, 1100), TILE, None, (4.0, "padded")),  # across alone
        ((5000, 5000), (1280, 1280), TILE, None, (4.0, "padded")),  # both axes say 3.91
        ((3000, 3300), (1024, 1280), TILE, None, (3.0, "padded")),
        ((5000, 4400), (2000, 1760), TILE, None, (2.5, "ratio")),
        ((5000, 4400), (1280, 1280), TILE, 4.001, (4.0, "padded")),
        ((5000, 4400), (512, 512), TILE, 16.01, (16.0, "stated")),
        ((5000, 4400), (512, 512), TILE, 12.5, (12.5, "stated")),
    ],
)
def test_scale(finest, size, tile, stated, expected):
    ((scale, evidence),), notes = scales(StoredLevel(finest), StoredLevel(size, tile, stated))
    assert (pytest.approx(scale, abs=1e-3), evidence) == expected
    assert notes == ()


@pytest.mark.parametrize(
    ("size", "tile", "stated"),
    [
        ((1280, 1280), None, None),  # 3.9 across, 3.4 down, and no tiles that explain it
        ((512, 512), TILE, None),  # 10 to 17
        ((512, 512), TILE, 40.0),  # the file contradicts itself
        ((1200, 400), TILE, None),  # another picture
    ],
)
def test_level_of_unknown_scale_is_left_out_and_told(size, tile, stated):
    levels, notes = scales(StoredLevel((5000, 4400)), StoredLevel(size, tile, stated))
    assert levels == []
    assert f"{size[0]} x {size[1]} px is left out" in notes[0]


def test_a_coarse_padded_level_follows_the_step_of_the_finer_ones():
    (_, last), notes = scales(
        StoredLevel((50_000, 44_000)),
        StoredLevel((12_544, 11_008), TILE),
        StoredLevel((3328, 2816), TILE),
    )
    assert last == (16.0, "progression") or last == (16.0, "padded")
    (*_, deepest), notes = scales(
        StoredLevel((5000, 4400)), StoredLevel((1280, 1280), TILE), StoredLevel((512, 512), TILE)
    )
    assert deepest == (16.0, "progression")
    assert notes == ()


@pytest.mark.parametrize("rounding", [np.floor, np.ceil, np.rint])
@pytest.mark.parametrize("padded", [False, True])
def test_no_level_is_more_than_two_of_its_pixels_off(rounding, padded):
    rng = np.random.default_rng(0)
    used = 0
    for _ in range(300):
        finest = np.exp(rng.uniform(np.log(600), np.log(120_000), 2)).astype(int)
        tile = int(rng.choice([128, 240, 256, 512]))
        steps = [2, 3, 4] if padded else [2, 3, 4, float(rng.uniform(1.3, 4.5))]
        true = float(rng.choice(steps)) ** np.arange(1, rng.integers(2, 5))
        sizes = [np.maximum(rounding(finest / scale), 1).astype(int) for scale in true]
        if padded:
            sizes = [np.ceil(size / tile).astype(int) * tile for size in sizes]
        stored = [StoredLevel(tuple(finest.tolist()), (tile, tile))]
        stored += [
            StoredLevel(tuple(size.tolist()), (tile, tile))
            for size in sizes
            if (size < finest).all()
        ]
        levels, notes = verify(stored)
        assert len(levels) + len(notes) == len(stored)
        used += len(levels) - 1
        for level in levels[1:]:
            off = abs(level.downsample / true[level.index - 1] - 1) * max(level.dimensions)
            assert off < 2, (stored, level)
    assert used > 400


def test_padding_is_no_part_of_the_slide_and_places_are_true(tmp_path):
    image = gradient(1100, 2500)
    padded = np.zeros((512, 768, 3), np.uint8)
    padded[:275, :625] = image[2::4, 2::4]
    path = write_tiff(
        tmp_path / "padded.svs", [image, padded], mpp=None, description=aperio(power=20, mpp=0.5)
    )
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 4.0)
        assert slide.levels[1].dimensions == (625, 275)
        assert slide.levels[1].evidence == "padded"
        tile = slide.read((2200, 800), 64, 256).astype(float)
        corner = slide.read((2400, 1000), 64, 256)
        assert set(slide.read_log) == {1}
    centre = 2200 + (np.arange(64) + 0.5) * 4
    np.testing.assert_allclose(tile[..., 0].mean(0), 40 + 180 * (centre - 0.5) / 2500, atol=1.5)
    assert (corner[26:, 26:] == 255).all()  # outside, though the file has black padding there
