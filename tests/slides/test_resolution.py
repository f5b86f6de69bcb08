"""um/px as files write it, and the user's value beside the file's."""

import importlib.util

import numpy as np
import pytest
import tifffile

from lrmil_jax.data import inspection, slide_jobs
from lrmil_jax.data.schema import Geometry
from lrmil_jax.errors import SlideError
from lrmil_jax.slides import open_slide
from lrmil_jax.slides.ome import number, um_per_unit
from tests.slides.files import aperio, gradient, write_tiff

IMAGE = gradient(300, 300)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("0.5", 0.5), (" 0,5 ", 0.5), ("5e-1", 0.5), (0.5, 0.5), ("20x", None)],
        *[("1,234.5", None), ("", None), (None, None), ("nan", None), ("inf", None)],
    ],
)
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        *[("\u00b5m", 1), ("\u03bcm", 1), ("um", 1), ("micron", 1), ("nm", 1e-3)],
        *[("mm", 1e3), ("inch", 25400), ("pixel", None), ("", None)],
    ],
)
def test_units(unit, um):
    assert um_per_unit(unit) == um


def ome(path, size, unit):
    """An OME-TIFF whose XML says so; its resolution tags say 1.0."""
    unit = "" if unit is None else f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/'
        'OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" SizeX="300" '
        f'SizeY="300" SizeC="3" SizeZ="1" SizeT="1" Type="uint8" PhysicalSizeX="{size}" '
        f'PhysicalSizeY="{size}" {unit}><Channel ID="Channel:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(
        path,
        IMAGE,
        description=text.encode(),
        photometric="rgb",
        metadata=None,
        resolution=(10000, 10000),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [("0.5", "\u03bcm", 0.5), ("0,5", "\u00b5m", 0.5), ("0.5", None, 0.5), ("500", "nm", 0.5)],
)
def test_ome(tmp_path, size, unit, mpp):
    with open_slide(ome(tmp_path / "s.ome.tif", size, unit)) as slide:
        assert slide.mpp == pytest.approx(mpp)


@pytest.mark.parametrize(("size", "unit"), [("0.5", "pixel"), ("half", None)])
def test_ome_that_is_no_length_is_told_as_it_is(tmp_path, size, unit):
    with pytest.raises(SlideError, match="PhysicalSizeX") as error:
        open_slide(ome(tmp_path / "s.ome.tif", size, unit))
    assert size in str(error.value)
    assert "does not say" not in str(error.value)


@pytest.mark.parametrize(("mpp", "power"), [("0,5", "20"), ("0.5", "20"), (" 0.50 ", "20,0")])
def test_aperio_decimal_comma(tmp_path, mpp, power):
    text = aperio(power=None, mpp=mpp) + f"|AppMag = {power}"
    path = write_tiff(tmp_path / "s.svs", [IMAGE], mpp=1.0, description=text)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.objective == 20


def test_aperio_that_is_no_number_is_told_as_it_is(tmp_path):
    text = aperio(power=20, mpp="unknown")
    path = write_tiff(tmp_path / "s.svs", [IMAGE], mpp=1.0, description=text)
    with pytest.raises(SlideError, match="MPP as 'unknown'"):
        open_slide(path)


@pytest.mark.parametrize("unit", ["micron", "\\u00B5m", "um"])
def test_imagej_unit(tmp_path, unit):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, IMAGE, imagej=True, resolution=(2, 2), metadata={"unit": unit})
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)


def test_philips_spacings_scale_padded_levels(tmp_path):
    stated = [
        f'<Attribute Name="DICOM_PIXEL_SPACING">&quot;{mm}&quot; &quot;{mm}&quot;</Attribute>'
        for mm in (0.0005, 0.008)
    ]
    spacings = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{one}</DataObject>' for one in stated
    )
    text = (
        '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute '
        'Name="DICOM_MANUFACTURER">PHILIPS</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES">'
        '<Array><DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI'
        f"</Attribute>{stated[0]}"
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>'
        f"{spacings}</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )
    level = np.full((256, 256, 3), 255, np.uint8)  # 69 x 82 px, padded to a tile
    path = write_tiff(
        tmp_path / "s.tiff",
        [gradient(1100, 1300), level],
        mpp=None,
        description=text,
        software="Philips DP v1.0",
    )
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.level_downsamples == (1.0, 16.0)
        assert slide.levels[1].dimensions == (82, 69)
    if importlib.util.find_spec("openslide") is not None:
        with open_slide(path, reader="openslide") as slide:
            assert slide.level_downsamples == (1.0, 16.0)
            assert slide.mpp == pytest.approx(0.5)


# ---------------------------------------------------------------- the user's value


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    path = tmp_path_factory.mktemp("twenty") / "s.svs"
    return write_tiff(path, [IMAGE], mpp=None, description=aperio(power=20, mpp=0.499))


@pytest.mark.parametrize("given", [4.99, 9.0, 0.12, 1.01])
def test_far_from_file_and_objective_is_refused_unless_trusted(twenty, given):
    with pytest.raises(SlideError, match="um/px") as error:
        open_slide(twenty, given)
    for part in (f"{given:g}", "0.499", "20x", "data.trust_mpp"):
        assert part in str(error.value)
    with open_slide(twenty, given, trust_mpp=True) as slide:
        assert (slide.mpp, slide.notes) == (given, ())


@pytest.mark.parametrize(("given", "told"), [(0.5, 0), (0.59, 0), (0.61, 1), (0.3, 1), (0.99, 1)])
def test_differences_from_a_fifth_on_are_told(twenty, given, told, caplog):
    with open_slide(twenty, given) as slide:
        assert len(slide.notes) == told
        assert slide.mpp == given
    assert ("times the 0.499 of the file" in caplog.text) == bool(told)


def test_without_an_objective_or_against_it_the_value_is_taken(tmp_path):
    alone = write_tiff(tmp_path / "a.tif", [IMAGE], mpp=0.5)
    with open_slide(alone, 4.0) as slide:
        assert "8 times the 0.5 of the file" in slide.notes[0]
    text = aperio(power=20, mpp=5.0)  # the file contradicts itself
    wrong = write_tiff(tmp_path / "b.svs", [IMAGE], mpp=None, description=text)
    with open_slide(wrong, 0.5) as slide:
        assert slide.notes == ()
    silent = write_tiff(
        tmp_path / "c.svs", [IMAGE], mpp=None, description=aperio(power=20, mpp=None)
    )
    with open_slide(silent, 4.0) as slide:
        assert "objective power 20x" in slide.notes[0]


def test_trust_reaches_the_worker_that_opens_the_slide(twenty, tmp_path):
    settings = slide_jobs.TilingSettings(geometry=Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=16))
    for trust in (False, True):
        job = slide_jobs.SlideJob("s", twenty, 1.2, tmp_path, settings, trust_mpp=trust)
        reason = inspection.inspect_slide(job)["reason"]
        assert ("data.trust_mpp" in reason) != trust
