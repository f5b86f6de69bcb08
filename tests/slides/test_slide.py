"""Opening, um/px, levels, resampling and damage, on files of many layouts."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lrmil_jax.errors import ConfigError, SlideError, TileError
from lrmil_jax.slides import open_slide
from tests.slides.files import aperio, damage_tile, gradient, write_tiff

READERS = [name for name in ("tifffile", "openslide") if importlib.util.find_spec(name) is not None]


def texture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 250, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]


@pytest.fixture
def pyramid(tmp_path):
    image = gradient(1100, 1500)
    return write_tiff(tmp_path / "p.tif", [image, image[2::4, 2::4]])


@pytest.mark.parametrize("reader", READERS)
def test_attributes(pyramid, reader):
    with open_slide(pyramid, reader=reader) as slide:
        assert slide.path == pyramid
        assert slide.mpp == pytest.approx(0.5, rel=1e-4)
        assert slide.mpp_source == "file"
        assert slide.objective is None
        assert slide.dimensions == (1500, 1100)
        assert slide.level_downsamples == (1.0, 4.0)
        assert slide.reader.startswith(reader)
        assert slide.read_log == {}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [1028, 257, 256, 100])
def test_region_is_where_it_should_be(pyramid, reader, size):
    with open_slide(pyramid, reader=reader) as slide:
        region = slide.read((300, 64), size, 1028).astype(float)
    # The image is linear in x and y, so any correct resampling gives the colour at each centre.
    centre = (np.arange(size) + 0.5) * 1028 / size
    red = 40 + 180 * (300 + centre - 0.5) / 1500
    green = 40 + 180 * (64 + centre - 0.5) / 1100
    inner = slice(2, -2)  # the filter is one-sided at the rim
    np.testing.assert_allclose(region[inner, inner, 0].mean(0), red[inner], atol=1.5)
    np.testing.assert_allclose(region[inner, inner, 1].mean(1), green[inner], atol=1.5)


def test_readers_agree(pyramid):
    if len(READERS) < 2:
        pytest.skip("needs openslide")
    with open_slide(pyramid, reader="tifffile") as a, open_slide(pyramid, reader="openslide") as b:
        for xy, size, side in [((0, 0), 256, 1024), ((-100, 900), 256, 512), ((7, 13), 99, 99)]:
            np.testing.assert_array_equal(a.read(xy, size, side), b.read(xy, size, side))


def test_level_choice_and_read_log(pyramid):
    with open_slide(pyramid) as slide:
        assert slide.source_level(256, 1024) == 1
        assert slide.source_level(256, 977) == 1  # the level is 4.8 % coarser than wanted
        assert slide.source_level(256, 972) == 0  # 5.3 %
        assert slide.source_level(256, 256) == 0
        assert slide.source_level(512, 256) == 0  # finer than the slide
        slide.read((0, 0), 256, 1024)
        assert slide.read_log == {1: 256 * 256}
        slide.read((0, 0), 256, 256)
        assert slide.read_log == {1: 256 * 256, 0: 256 * 256}


def test_one_level_file_decodes_block_and_lr_tile_once(tmp_path):
    path = write_tiff(tmp_path / "one.tif", [gradient(1100, 1500)])
    with open_slide(path) as slide:
        block = slide.read((256, 0), 1024, 1024)
        tile = slide.read((256, 0), 256, 1024)
        assert slide.read_log == {0: 1024 * 1024}
    expected = Image.fromarray(block).resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(tile, np.asarray(expected))


def test_result_does_not_depend_on_what_was_read_before(pyramid):
    with open_slide(pyramid) as slide:
        alone = slide.read((130, 70), 64, 257)
    with open_slide(pyramid) as slide:
        slide.read((0, 0), 1024, 1024)
        np.testing.assert_array_equal(slide.read((130, 70), 64, 257), alone)
        alone[:] = 0  # what was handed out is the caller's
        slide.read((130, 70), 257, 257)[:] = 0
        assert slide.read((130, 70), 257, 257).min() > 0


@pytest.mark.parametrize("reader", READERS)
def test_white_outside(pyramid, reader):
    with open_slide(pyramid, reader=reader) as slide:
        region = slide.read((1500 - 128, 1100 - 64), 256, 256)
        assert (region[64:] == 255).all()
        assert (region[:, 128:] == 255).all()
        assert (region[:64, :128] != 255).all()
        assert (slide.read((-300, -300), 64, 256) == 255).all()
        assert (slide.read((-256, 0), 128, 512)[:, :63] == 255).all()


def test_odd_downsample_does_not_drift(tmp_path):
    image = gradient(2000, 4002)
    small = np.asarray(Image.fromarray(image).reduce(4))[:500, :1000]  # 2 columns lost: 4.002
    path = write_tiff(tmp_path / "odd.tif", [image, small], compression=None)
    with open_slide(path, 0.5) as slide:
        assert slide.level_downsamples == (1.0, 4.0)
        tile = slide.read((3584, 512), 64, 256).astype(float)
    centre = 3584 + (np.arange(64) + 0.5) * 4
    np.testing.assert_allclose(tile[..., 0].mean(0), 40 + 180 * (centre - 0.5) / 4002, atol=1)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg"])
@pytest.mark.parametrize("tile", [None, 128])
def test_plain_single_level_tiff(tmp_path, compression, tile):
    image = gradient(700, 900)
    path = write_tiff(tmp_path / "plain.tif", [image], compression=compression, tile=tile)
    with open_slide(path) as slide:
        got = slide.read((100, 200), 256, 256)
    np.testing.assert_allclose(got.astype(int), image[200:456, 100:356].astype(int), atol=6)


def test_grey_and_transparent_pixels(tmp_path):
    grey = write_tiff(tmp_path / "grey.tif", [gradient(600, 600)[..., 0]], compression="deflate")
    with open_slide(grey) as slide:
        region = slide.read((0, 0), 256, 256)
    assert (region == region[..., :1]).all()
    rgba = np.dstack([gradient(600, 600), np.zeros((600, 600), np.uint8)])
    clear = write_tiff(
        tmp_path / "clear.tif",
        [rgba],
        compression="deflate",
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    with open_slide(clear) as slide:
        assert (slide.read((0, 0), 256, 256) == 255).all()


def test_aperio_ycbcr_jpeg2000_has_true_colours(tmp_path):
    image = np.full((512, 512, 3), (200, 100, 150), np.uint8)
    stored = np.asarray(Image.fromarray(image).convert("YCbCr"))
    path = write_tiff(
        tmp_path / "j2k.svs",
        [stored],
        compression="APERIO_JP2000_YCBC",
        description=aperio(power=20, mpp=0.5),
        photometric="rgb",
        compressionargs={"codecformat": "j2k", "mct": False},
    )
    with open_slide(path) as slide:
        np.testing.assert_allclose(
            slide.read((0, 0), 256, 256).mean((0, 1)), [200, 100, 150], atol=2
        )


def test_tile_that_was_never_written_is_white(tmp_path):
    path = tmp_path / "sparse.tif"
    image = gradient(512, 512)
    tiles = [image[:256, :256], None, image[256:, :256], image[256:, 256:]]
    encoded = (t for t in tiles)
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            (t if t is not None else np.zeros((256, 256, 3), np.uint8) for t in encoded),
            shape=image.shape,
            dtype=np.uint8,
            tile=(256, 256),
            photometric="rgb",
            metadata=None,
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
        )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("TileByteCounts", "TileOffsets"):
            tag = tiff.pages[0].tags[name]
            values = list(tag.value)
            values[1] = 0
            tag.overwrite(values)
    with open_slide(path) as slide:
        assert (slide.read((256, 0), 256, 256) == 255).all()
        assert (slide.read((0, 0), 256, 256) != 255).all()


# ---------------------------------------------------------------- um/px


@pytest.mark.parametrize(
    ("description", "mpp", "reason"),
    [
        (None, None, "does not say its um/px"),
        (None, 25400 / 72, "352.778 um/px"),
        (None, 0.05, "0.05 um/px"),
        (aperio(power=20, mpp=0), None, "0 um/px"),
        (aperio(power=20, mpp=12), None, "12 um/px"),
        (aperio(power=40, mpp=0.51), None, "objective power 40x"),
        (aperio(power=20, mpp=0.24), None, "objective power 20x"),
        (aperio(power=20, mpp=None), None, "does not say its um/px"),
    ],
)
def test_bad_um_per_px_is_refused_unless_given(tmp_path, description, mpp, reason):
    path = write_tiff(tmp_path / "s.svs", [gradient(300, 300)], mpp=mpp, description=description)
    with pytest.raises(SlideError, match="um/px") as error:
        open_slide(path)
    assert reason in str(error.value)
    assert str(path) in str(error.value)
    with open_slide(path, 0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "override")


@pytest.mark.parametrize("mpp", [0.0, 0.09, 10.1, -1.0, float("nan"), float("inf")])
def test_absurd_override_is_refused(pyramid, mpp):
    with pytest.raises(SlideError, match="um/px"):
        open_slide(pyramid, mpp)


@pytest.mark.parametrize(("power", "mpp"), [(20, 0.5015), (20, 0.25), (40, 0.2325), (5, 2.0)])
def test_plausible_um_per_px(tmp_path, power, mpp):
    description = aperio(power=power, mpp=mpp)
    path = write_tiff(tmp_path / "s.svs", [gradient(300, 300)], mpp=None, description=description)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(mpp)
        assert slide.objective == power


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, gradient(300, 300), resolution=(20000, 40000), resolutionunit="CENTIMETER"
    )
    with pytest.raises(SlideError, match="not square"):
        open_slide(path)


def test_ome_physical_size(tmp_path):
    path = tmp_path / "s.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.33, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": 330.0, "PhysicalSizeYUnit": "nm"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(gradient(600, 600), tile=(256, 256), photometric="rgb", metadata=metadata)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.33)


# ---------------------------------------------------------------- bad files


def test_not_a_slide(tmp_path):
    empty, text, cut = (tmp_path / n for n in ("empty.svs", "text.svs", "cut.tif"))
    empty.write_bytes(b"")
    text.write_text("not a slide " * 100)
    whole = write_tiff(tmp_path / "whole.tif", [gradient(600, 600)])
    size = whole.stat().st_size
    for path, reason in [
        (tmp_path / "gone.svs", "no such slide"),
        (tmp_path, "a folder"),
        (empty, "empty"),
        (text, "not a slide"),
    ]:
        with pytest.raises(SlideError, match=reason) as error:
            open_slide(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    for kept in (4, 100, size // 2, size - 10):
        cut.write_bytes(whole.read_bytes()[:kept])
        with pytest.raises(SlideError, match=r"truncated|cut short"):
            open_slide(cut)


def test_sixteen_bit_is_refused(tmp_path):
    path = write_tiff(
        tmp_path / "s.tif", [gradient(300, 300).astype(np.uint16)], compression="deflate"
    )
    with pytest.raises(SlideError, match="not 8-bit"):
        open_slide(path, reader="tifffile")


def test_unknown_reader(pyramid):
    with pytest.raises(ConfigError, match="unknown"):
        open_slide(pyramid, reader="bioformats")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("how", ["zeros", "half", "noise"])
def test_damaged_tile(tmp_path, reader, levels, how):
    if reader == "openslide" and how != "zeros":
        pytest.skip("openslide decodes what is left of a damaged JPEG stream")
    image = texture(1024, 1280)
    path = write_tiff(tmp_path / "s.tif", [image, image[2::4, 2::4]][:levels])
    damage_tile(path, level=0, index=5 + 2, how=how)  # second row, third column
    with open_slide(path, reader=reader) as slide:
        good = slide.read((0, 0), 256, 256)
        with pytest.raises(TileError, match=r"\(256, 256\), side 512") as error:
            slide.read((256, 256), 512, 512)
        assert str(path) in str(error.value)
        np.testing.assert_array_equal(slide.read((0, 0), 256, 256), good)
        slide.read((256, 256), 256, 256)  # the neighbour
        with pytest.raises(TileError):
            slide.read((512, 256), 256, 256)


def test_thumbnail_lists_what_it_cannot_read(tmp_path):
    image = texture(1100, 1280)
    path = write_tiff(tmp_path / "s.tif", [image])
    expected = np.asarray(Image.fromarray(tifffile.imread(path)).reduce(8)).astype(int)
    damage_tile(path, level=0, index=7, how="zeros")
    with open_slide(path) as slide:
        thumbnail = slide.thumbnail(4.0)
    assert thumbnail.downsample == 8.0
    assert thumbnail.image.shape == (138, 160, 3)
    bad = np.zeros((138, 160), bool)
    for x, y, side in thumbnail.unreadable:
        assert side <= 256
        bad[y // 8 : (y + side) // 8, x // 8 : (x + side) // 8] = True
    assert bad[32:64, 64:96].all()  # the tile
    assert bad.mean() < 0.3  # and little besides
    assert (thumbnail.image[bad] == 255).all()
    good = ~bad
    good[137:] = False  # the last row hangs over the edge
    np.testing.assert_allclose(thumbnail.image[good].astype(int), expected[good], atol=1)


def test_thumbnail_comes_from_the_coarse_level(pyramid):
    with open_slide(pyramid) as slide:
        slide.thumbnail(8.0)
        assert set(slide.read_log) == {1}


@pytest.mark.skipif(not os.environ.get("LRMIL_TEST_SLIDES"), reason="LRMIL_TEST_SLIDES is not set")
def test_real_slide():
    path = Path(os.environ["LRMIL_TEST_SLIDES"]) / "CMU-1-Small-Region.svs"
    regions = []
    for reader in READERS:
        with open_slide(path, reader=reader) as slide:
            assert slide.mpp == pytest.approx(0.499)
            assert slide.objective == 20
            assert slide.dimensions == (2220, 2967)
            regions.append(slide.read((1028, 1028), 256, 1028))
    for region in regions[1:]:
        np.testing.assert_allclose(region.astype(int), regions[0].astype(int), atol=3)
