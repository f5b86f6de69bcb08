"""Colours of a TIFF: right, or refused by name."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import open_slide
from tests.slides.files import damage_tile, gradient, write_tiff

IMAGE = gradient(300, 400)
COLOUR = np.full((256, 256, 3), (200, 100, 150), np.uint8)


def write(path, samples, **options):
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "zstd", **options}
    tags = {name: options.pop(name) for name in ("tags",) if name in options}
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            samples,
            metadata=None,
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
            extratags=tags.get("tags"),
            **options,
        )
    return path


def set_tag(path, name, value):
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[name].overwrite(value)


def mean_colour(path):
    with open_slide(path) as slide:
        return slide.read((0, 0), 200, 200).mean((0, 1))


def ycbcr(path, **options):
    """Real YCbCr samples under tag 262 = 6, not subsampled."""
    samples = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    tags = [(530, 3, 2, (1, 1), True), *options.pop("tags", ())]
    write(path, samples, tags=tags, **options)
    set_tag(path, "PhotometricInterpretation", 6)
    return path


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits", "lzma"])
@pytest.mark.parametrize("tile", [(256, 256), None])
def test_ycbcr_samples_are_converted(tmp_path, compression, tile):
    path = ycbcr(tmp_path / "s.tif", compression=compression, tile=tile)
    np.testing.assert_allclose(mean_colour(path), COLOUR[0, 0], atol=2)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_ycbcr_jpeg(tmp_path, subsampling):
    samples = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    options = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": subsampling}
    path = write(tmp_path / "s.tif", samples, **options)
    np.testing.assert_allclose(mean_colour(path), COLOUR[0, 0], atol=2)


def test_ycbcr_that_is_not_understood_is_refused(tmp_path):
    bt709 = (529, 5, 3, (2126, 10000, 7152, 10000, 722, 10000), True)
    studio = (532, 5, 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True)
    for number, tag in enumerate((bt709, studio)):
        path = ycbcr(tmp_path / f"{number}.tif", tags=[tag])
        with pytest.raises(SlideError, match="YCbCr"):
            open_slide(path)
    for number, options in enumerate(({"compression": "jpeg2000"}, {"compression": "webp"})):
        path = ycbcr(tmp_path / f"c{number}.tif", **options)
        with pytest.raises(SlideError, match="YCbCr"):
            open_slide(path)
    path = write(tmp_path / "subsampled.tif", COLOUR)
    set_tag(path, "PhotometricInterpretation", 6)  # without tag 530 it is 2 x 2
    with pytest.raises(SlideError, match="subsampled YCbCr"):
        open_slide(path)


@pytest.mark.parametrize("compression", [None, "deflate", "webp"])
@pytest.mark.parametrize("alpha", [0, 100, 255])
@pytest.mark.parametrize("meaning", ["unspecified", "assocalpha", "unassalpha"])
def test_fourth_sample(tmp_path, compression, alpha, meaning):
    if compression == "webp" and meaning == "assocalpha":
        pytest.skip("WebP holds colours that are not multiplied")
    colour = np.array([200, 100, 150])
    stored = np.rint(colour * alpha / 255) if meaning == "assocalpha" else colour
    samples = np.empty((256, 256, 4), np.uint8)
    samples[..., :3], samples[..., 3] = stored, alpha
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    path = write(
        tmp_path / "s.tif", samples, compression=compression, extrasamples=[meaning], **options
    )
    expected = colour * alpha / 255 + 255 - alpha
    if meaning == "unspecified":
        expected = colour
    if compression == "webp" and alpha == 0 and meaning == "unspecified":
        pytest.skip("an encoder may drop the colours of what is clear")
    np.testing.assert_allclose(mean_colour(path), expected, atol=2)


def test_white_is_zero(tmp_path):
    path = write(tmp_path / "s.tif", 255 - IMAGE[..., 0], photometric="miniswhite")
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), 99, 99)[..., 1], IMAGE[:99, :99, 0])


@pytest.mark.parametrize(
    ("samples", "options", "reason"),
    [
        (np.dstack([IMAGE, IMAGE[..., :1]]), {"photometric": "separated"}, "CMYK"),
        (IMAGE, {"photometric": "cielab"}, "CIELAB"),
        (IMAGE, {"photometric": "minisblack", "planarconfig": "contig"}, "3 samples a pixel"),
        (np.dstack([IMAGE, IMAGE]), {"extrasamples": ["unspecified"] * 3}, "6 samples a pixel"),
        (np.stack([IMAGE] * 16), {"volumetric": True, "tile": (16, 256, 256)}, "a volume of 16"),
        (IMAGE.astype(np.uint16), {}, "16-bit"),
        (IMAGE.astype(np.int8), {}, "int8"),
        (IMAGE.astype(np.float32), {}, "32-bit"),
        (IMAGE[..., 0] > 100, {"photometric": "minisblack", "compression": None}, "1-bit"),
    ],
)
def test_other_pixels_are_refused_by_name(tmp_path, samples, options, reason):
    path = write(tmp_path / "s.tif", samples, **options)
    with pytest.raises(SlideError, match=reason) as error:
        open_slide(path)
    assert str(path) in str(error.value)


def test_palette_is_refused(tmp_path):
    path = tmp_path / "p.tif"
    Image.fromarray(IMAGE).quantize(16).save(path, dpi=(50800, 50800))
    with pytest.raises(SlideError, match="palette"):
        open_slide(path)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_turned_image_is_refused(tmp_path, orientation):
    path = write(tmp_path / "s.tif", IMAGE, tags=[(274, 3, 1, orientation, True)])
    with pytest.raises(SlideError, match=f"orientation tag {orientation}"):
        open_slide(path)


def test_unknown_compression_is_told(tmp_path):
    path = write(tmp_path / "s.tif", IMAGE)
    set_tag(path, "Compression", 40123)
    with pytest.raises(SlideError, match="unknown compression 40123"):
        open_slide(path, reader="tifffile")


@pytest.mark.parametrize(("tag", "value"), [("ImageLength", 10**9), ("TileWidth", 0)])
def test_damaged_size_is_told_before_anything_is_read(tmp_path, tag, value):
    path = write(tmp_path / "s.tif", gradient(600, 800))
    set_tag(path, tag, value)
    with pytest.raises(SlideError) as error:
        open_slide(path, reader="tifffile").thumbnail(8.0)
    assert "damaged" in str(error.value)


def test_a_level_that_cannot_be_decoded_is_left_out(tmp_path):
    path = write_tiff(tmp_path / "s.tif", [gradient(600, 800), gradient(150, 200)])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[1].tags["Compression"].overwrite(40123)
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0,)
        assert "200 x 150" in slide.notes[0]
        assert "40123" in slide.notes[0]


def test_nothing_but_damage_is_told_as_such(tmp_path):
    path = write_tiff(tmp_path / "s.tif", [gradient(512, 512)])
    for index in range(4):
        damage_tile(path, level=0, index=index, how="zeros")
    with open_slide(path) as slide, pytest.raises(SlideError, match="can be decoded"):
        slide.thumbnail(8.0)
