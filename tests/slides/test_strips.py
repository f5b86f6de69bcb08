"""Images in strips: each is decoded once, however the slide is read, and large ones are refused."""

import collections

import numpy as np
import pytest
import tifffile

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import open_slide, tiff_tiles
from tests.slides.files import damage_tile, gradient, write_tiff

IMAGE = gradient(1100, 1500)


@pytest.fixture
def decoded(monkeypatch):
    """How often each strip or tile is decoded; with a cache of 60 rows for what is in tiles."""
    counts = collections.Counter()
    decode = tiff_tiles.TiledLevel._tile

    def count(level, index):
        counts[index] += 1
        return decode(level, index)

    monkeypatch.setattr(tiff_tiles.TiledLevel, "_tile", count)
    monkeypatch.setattr(tiff_tiles, "_CACHE_BYTES", 3 * 1500 * 60)
    return counts


@pytest.mark.parametrize(
    ("rows", "compression"), [(1, "lzw"), (7, "deflate"), (64, "jpeg"), (64, "lzw")]
)
def test_lattice_and_thumbnail_decode_each_strip_once(tmp_path, decoded, rows, compression):
    path = write_tiff(
        tmp_path / "s.tif", [IMAGE], compression=compression, tile=None, rowsperstrip=rows
    )
    with open_slide(path) as slide:
        thumbnail = slide.thumbnail(8.0)
        assert max(decoded.values()) <= 2  # blocks share the strip between them
        expected = IMAGE[:1088, :1488].reshape(68, 16, 93, 16, 3).mean((1, 3))
        np.testing.assert_allclose(thumbnail.image[:68, :93], expected, atol=4)
    decoded.clear()
    with open_slide(path) as slide:
        for y in range(0, 1100, 256):
            for x in range(0, 1500, 256):
                block = slide.read((x, y), 256, 256)
                inside = IMAGE[y : y + 256, x : x + 256].astype(int)
                got = block[: inside.shape[0], : inside.shape[1]].astype(int)
                np.testing.assert_allclose(got, inside, atol=8 if compression == "jpeg" else 0)
        assert max(decoded.values()) <= 2


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_one_strip_that_is_not_compressed_is_read_in_parts(tmp_path, monkeypatch, planar):
    monkeypatch.setattr(tiff_tiles, "_MAX_CHUNK_BYTES", 1 << 20)
    path = tmp_path / "s.tif"
    samples = IMAGE if planar == "contig" else np.moveaxis(IMAGE, -1, 0).copy()
    options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, samples, photometric="rgb", planarconfig=planar, **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((1000, 500), 300, 300), IMAGE[500:800, 1000:1300])


def test_strips_that_are_too_large_are_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_tiles, "_MAX_CHUNK_BYTES", 1 << 20)
    path = write_tiff(tmp_path / "s.tif", [IMAGE], compression="lzw", tile=None, rowsperstrip=1100)
    with pytest.raises(SlideError, match="strips of 4 MiB") as error:
        open_slide(path)
    assert "vips tiffsave" in str(error.value)


def test_wide_strips_are_told_of(tmp_path):
    wide = np.full((32, 17000, 3), 90, np.uint8)
    path = write_tiff(tmp_path / "s.tif", [wide], compression="lzw", tile=None)
    with open_slide(path) as slide:
        assert "strips as wide as the slide" in slide.notes[0]


def test_damaged_strip_is_listed(tmp_path):
    path = write_tiff(tmp_path / "s.tif", [IMAGE], tile=None, rowsperstrip=64)
    damage_tile(path, level=0, index=3, how="zeros")
    with open_slide(path) as slide:
        thumbnail = slide.thumbnail(8.0)
    listed = np.zeros((1100 // 16, 1500 // 16), bool)
    for x, y, side in thumbnail.unreadable:
        listed[y // 16 : (y + side) // 16, x // 16 : (x + side) // 16] = True
    assert listed[12:16].all()
    assert not listed[:12].any()
    assert (thumbnail.image[12:16] == 255).all()
    assert (thumbnail.image[:12] < 255).any(-1).all()
    assert (thumbnail.image[28:68, :93] < 255).any(-1).all()  # damage is told in blocks of 256 px
