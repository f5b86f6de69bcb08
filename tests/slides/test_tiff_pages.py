"""Which image of a TIFF is the slide: not the first by right, and what is left out is told."""

import numpy as np
import pytest
import tifffile

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import open_slide
from tests.slides.files import aperio, gradient, write_tiff

SLIDE = gradient(1100, 1250)
LEVEL = SLIDE[2::4, 2::4]


def flat(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


def write_pages(path, pages):
    """A TIFF of (image, options) as top-level pages; um/px in the option `mpp`."""
    with tifffile.TiffWriter(path) as writer:
        for image, options in pages:
            per_cm = 1e4 / options.pop("mpp", 0.5)
            writer.write(
                image,
                photometric="rgb" if image.ndim == 3 else "minisblack",
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                **{"tile": (256, 256), "compression": "deflate", **options},
            )
    return path


def check_is_the_slide(path, **arguments):
    with open_slide(path, **arguments) as slide:
        assert slide.dimensions == (1250, 1100)
        np.testing.assert_array_equal(slide.read((300, 200), 256, 256), SLIDE[200:456, 300:556])
        coarse = slide.read((300, 200), 64, 256).astype(int)
        np.testing.assert_allclose(coarse, SLIDE[202:456:4, 302:556:4].astype(int), atol=2)
        return slide.notes


STRIPS = {"tile": None, "rowsperstrip": 32}


@pytest.mark.parametrize("given", [None, 0.5])
@pytest.mark.parametrize("size", [(550, 625), (300, 100), (137, 156)])
def test_overview_before_the_slide(tmp_path, given, size, caplog):
    pages = [(flat(*size, 90), {"mpp": 4.0}), (SLIDE, {}), (LEVEL, {"mpp": 2.0})]
    path = write_pages(tmp_path / "s.tif", pages)
    notes = check_is_the_slide(path, mpp=given)
    assert f"{size[1]} x {size[0]} px" in notes[0]
    assert notes[0] in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("label 1", {"description": "Aperio Image Library\nlabel 400x1400"}),
        ("macro", {"description": "Macro"}),
        ("named", {"description": "Label_Image"}),
        ("flag", {"subfiletype": 9}),
        ("in strips", STRIPS),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_label_or_macro_larger_than_the_slide(tmp_path, name, options, first):
    beside = (flat(1400, 1800, 90), dict(options))
    pages = [(SLIDE, {}), (LEVEL, {"mpp": 2.0})]
    pages = [beside, *pages] if first else [*pages, beside]
    check_is_the_slide(write_pages(tmp_path / "s.tif", pages))


def test_pages_of_an_svs(tmp_path):
    """Slide, thumbnail, levels, label and macro, as Aperio orders them."""
    beside = {"tile": None, "rowsperstrip": 16}
    pages = [
        (SLIDE, {"description": aperio(power=20, mpp=0.5)}),
        (flat(275, 312, 90), dict(beside)),
        (LEVEL, {"description": "Aperio Image Library\r\n1250x1100 -> 313x275"}),
        (flat(400, 380, 90), {**beside, "description": "Aperio\r\nlabel", "subfiletype": 1}),
        (flat(430, 1280, 90), {**beside, "description": "Aperio\r\nmacro", "subfiletype": 9}),
    ]
    path = write_pages(tmp_path / "s.svs", pages)
    assert check_is_the_slide(path) == ()
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 4.0)


def test_pages_of_a_brightfield_qptiff(tmp_path):
    def kind(name):
        text = f"<PerkinElmer-QPI-ImageDescription><ImageType>{name}</ImageType>"
        return {
            "description": text + "<Objective>20x</Objective></PerkinElmer-QPI-ImageDescription>"
        }

    pages = [
        (SLIDE, kind("FullResolution")),
        (flat(275, 313, 90), kind("Thumbnail")),
        (LEVEL, {**kind("ReducedResolution"), "mpp": 2.0}),
        (flat(1400, 1800, 90), kind("Overview")),
        (flat(400, 380, 90), kind("Label")),
    ]
    path = write_pages(tmp_path / "s.qptiff", pages)
    assert check_is_the_slide(path) == ()
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 4.0)
        assert slide.objective == 20


def test_levels_before_the_slide_and_as_subifds(tmp_path):
    reduced = (LEVEL, {"mpp": 2.0, "subfiletype": 1})
    path = write_pages(tmp_path / "upwards.tif", [reduced, (SLIDE, {})])
    check_is_the_slide(path)
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 4.0)
    path = write_pages(
        tmp_path / "sub.tif", [(SLIDE, {"subifds": 1}), (LEVEL, {"mpp": 2.0, "subfiletype": 1})]
    )
    check_is_the_slide(path)
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 4.0)


def test_another_scene_is_no_level(tmp_path):
    scene = flat(550, 625, 90)  # exactly half the first
    pages = [(SLIDE, {}), (LEVEL, {"mpp": 2.0}), (scene, {}), (scene[::4, ::4], {"mpp": 2.0})]
    path = write_pages(tmp_path / "scenes.tif", pages)
    (note,) = check_is_the_slide(path)
    assert "625 x 550 px" in note
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1.0, 4.0)


def test_focal_planes_are_told(tmp_path):
    path = write_pages(tmp_path / "z.tif", [(SLIDE, {}), (flat(1100, 1250, 90), {})])
    (note,) = check_is_the_slide(path)
    assert "2 images of 1250 x 1100 px" in note


def test_ome_label_is_no_slide(tmp_path):
    path = tmp_path / "s.ome.tif"
    options = {"photometric": "rgb", "tile": (256, 256)}
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, image in (("macro image", flat(1400, 1800, 90)), ("scan", SLIDE)):
            metadata = {"axes": "YXS", "Name": name, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            writer.write(image, metadata=metadata, **options)
    check_is_the_slide(path)


# ---------------------------------------------------------------- channels


@pytest.mark.parametrize("how", ["pages", "ome", "imagej", "two"])
def test_grey_channels_are_refused_by_name(tmp_path, how):
    planes = np.moveaxis(gradient(300, 400), -1, 0).copy()
    path = tmp_path / f"{how}.tif"
    if how in ("pages", "two"):
        write_pages(path, [(plane, {}) for plane in planes[: 2 if how == "two" else 3]])
    else:
        axes = {"metadata": {"axes": "CYX"}}
        tifffile.imwrite(path, planes, photometric="minisblack", **{how: True}, **axes)
    with pytest.raises(SlideError, match="grey channels") as error:
        open_slide(path, 0.5)
    assert "RGB" in str(error.value)


@pytest.mark.parametrize("how", ["separate", "ome separate", "ome channels", "strips"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_planes_of_brightfield_rgb_are_read(tmp_path, how, compression):
    planes = np.moveaxis(SLIDE, -1, 0).copy()
    path, options = tmp_path / "s.tif", {"compression": compression, "tile": (256, 256)}
    if how == "strips":
        options |= {"tile": None, "rowsperstrip": 100}
    if how == "ome channels":
        metadata = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
        tifffile.imwrite(
            path, planes, ome=True, photometric="minisblack", metadata=metadata, **options
        )
    else:
        options |= {"ome": how.startswith("ome"), "photometric": "rgb"}
        tifffile.imwrite(path, planes, planarconfig="separate", **options)
    check_is_the_slide(path, mpp=0.5)


def test_one_grey_image_is_read_as_it_is(tmp_path):
    path = write_tiff(tmp_path / "g.tif", [SLIDE[..., 0]], compression="deflate")
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), 99, 99)[..., 2], SLIDE[:99, :99, 0])
