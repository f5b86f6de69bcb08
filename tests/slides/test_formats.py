"""The content of a file chooses the reader, whatever its name; a poorer one never takes over."""

import importlib.util

import numpy as np
import pytest
import tifffile

from lrmil_jax.errors import ConfigError, SlideError
from lrmil_jax.slides import formats, open_slide, readers
from tests.slides.files import aperio, gradient, write_tiff
from tests.slides.vendor_files import SCN_BOUNDS, write_scn, write_ventana

WITH_OPENSLIDE = importlib.util.find_spec("openslide") is not None
needs_openslide = pytest.mark.skipif(not WITH_OPENSLIDE, reason="needs openslide")


@pytest.fixture
def without_openslide(monkeypatch):
    monkeypatch.setattr(readers, "installed", lambda name: name == "tifffile")


@pytest.mark.parametrize(
    ("start", "name", "expected"),
    [
        (b"ZISRAWFILE" + bytes(100), "s.czi", formats.CZI),
        (b"\xff\xd8\xff\xe0" + bytes(100), "s.mrxs", formats.MIRAX),
        (b"\xff\xd8\xff\xe0" + bytes(100), "s.svs", formats.PICTURE),
        (b"\x89PNG\r\n" + bytes(100), "s.tif", formats.PICTURE),
        (bytes(128) + b"DICM", "s", formats.DICOM),
        (b"II*\0" + bytes(124) + b"DICM", "s.dcm", formats.DICOM),
        (b"SQLite format 3\0", "s.svslide", formats.SAKURA),
        (b'<DataObject ObjectType="DPUfsImport">', "s.isyntax", formats.ISYNTAX),
        (b"[Virtual Microscope Specimen]\n", "s.vms", formats.HAMAMATSU_VMS),
        (b"PK\3\4", "s.svs", formats.ZIP),
        (b"text", "s.tif", formats.UNKNOWN),
    ],
)
def test_beginnings(tmp_path, start, name, expected):
    path = tmp_path / name
    path.write_bytes(start)
    assert formats.identify(path) is expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, formats.TIFF),
        ({"description": aperio(power=20, mpp=0.5)}, formats.APERIO),
        ({"software": "Philips DP v1.0"}, formats.PHILIPS),
        ({"description": "<PerkinElmer-QPI-ImageDescription/>"}, formats.QPTIFF),
        ({"extratags": [(65420, 4, 1, 1, True)]}, formats.HAMAMATSU),
        ({"software": "MedScan"}, formats.TRESTLE),
        ({"extratags": [(700, 1, 20, b"<xmp>an iScan </xmp>", True)]}, formats.TIFF),
    ],
)
def test_kinds_of_tiff(tmp_path, options, expected):
    path = write_tiff(tmp_path / "s.ndpi", [gradient(64, 64)], **options)
    assert formats.identify(path) is expected


@pytest.mark.parametrize("name", ["s.tif", "s.bif", "s.svs"])
def test_ventana_by_any_name_is_never_read_unstitched(tmp_path, name, without_openslide):
    path = write_ventana(tmp_path / name, gradient(512, 720), overlap=24)
    for arguments in ({}, {"mpp": 0.5}, {"reader": "tifffile"}):
        with pytest.raises(SlideError, match="Ventana") as error:
            open_slide(path, **arguments)
        assert "openslide" in str(error.value)
    with pytest.raises(ConfigError, match="not installed"):
        open_slide(path, reader="openslide")


@needs_openslide
def test_ventana_named_tif_is_stitched(tmp_path):
    image = gradient(512, 720)
    path = write_ventana(tmp_path / "s.tif", image, overlap=24)
    with open_slide(path) as slide:
        assert slide.reader.startswith("openslide")
        assert slide.mpp == pytest.approx(0.5)
        assert slide.dimensions == (720, 512)
        np.testing.assert_allclose(
            slide.read((430, 100), 200, 200), image[100:300, 430:630], atol=2
        )


@needs_openslide
def test_scn_lies_in_the_frame_of_the_file_and_the_rest_is_white(tmp_path):
    image = gradient(768, 1024)
    path = write_scn(tmp_path / "s.tif", image, np.full((187, 250, 3), 90, np.uint8))
    left, top, _, _ = SCN_BOUNDS
    with open_slide(path) as slide:
        assert slide.reader.startswith("openslide")
        assert slide.dimensions == (2000, 1500)
        assert slide.bounds == SCN_BOUNDS
        assert slide.level_downsamples == (1.0, 4.0)
        inside = slide.read((left + 100, top + 200), 256, 256)
        np.testing.assert_allclose(inside, image[200:456, 100:356], atol=2)
        assert (slide.read((0, 0), 200, 200) == 255).all()
        assert (slide.read((0, 0), 50, 200) == 255).all()
        assert (slide.thumbnail(8.0).image[:15] == 255).all()


def test_formats_without_a_reader_are_refused_with_advice(tmp_path, without_openslide):
    for start, name, words in [
        (b"ZISRAWFILE" + bytes(100), "s.czi", ("Zeiss CZI", "OME-TIFF")),
        (b'<DataObject ObjectType="DPUfsImport">', "s.isyntax", ("iSyntax", "export")),
        (b"\xff\xd8\xff\xe0" + bytes(100), "s.svs", ("picture",)),
        (b"\xff\xd8\xff\xe0" + bytes(100), "s.mrxs", ("MRXS", "lrmil_jax[openslide]")),
        (bytes(128) + b"DICM", "s.dcm", ("DICOM", "lrmil_jax[openslide]")),
    ]:
        path = tmp_path / name
        path.write_bytes(start)
        with pytest.raises(SlideError) as error:
            open_slide(path, 0.5)
        for word in (*words, str(path)):
            assert word in str(error.value)
        assert "\n" not in str(error.value)


@needs_openslide
def test_mrxs_without_its_folder_is_told_as_such(tmp_path):
    path = tmp_path / "s.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(SlideError, match="folder s beside it"):
        open_slide(path)


@needs_openslide
def test_openslide_asked_for_by_name_gets_no_other_image(tmp_path):
    options = {"compression": "jpeg", "mpp": 0.5}
    overview = write_tiff(tmp_path / "o.tif", [gradient(225, 250), gradient(900, 1000)], **options)
    with open_slide(overview) as slide:
        assert slide.dimensions == (1000, 900)
    with pytest.raises(SlideError, match="250 x 225 px for a level"):
        open_slide(overview, reader="openslide")
    grey = write_tiff(tmp_path / "g.tif", [gradient(300, 300)[..., 0]] * 3, compression="deflate")
    with pytest.raises(SlideError, match="grey channels"):
        open_slide(grey, reader="openslide")


def test_tiffslide_by_name_gives_the_same_pixels(tmp_path):
    levels = [gradient(400, 600), gradient(200, 300)]
    path = write_tiff(tmp_path / "s.tif", levels, compression="deflate", mpp=0.5)
    with open_slide(path, reader="tiffslide") as slide, open_slide(path) as ours:
        assert slide.reader.startswith("tiffslide")
        assert ours.reader.startswith("tifffile")
        assert slide.mpp == pytest.approx(ours.mpp)
        assert slide.level_downsamples == ours.level_downsamples
        for size, side in ((128, 128), (96, 192)):
            read = slide.read((37, 11), size, side)
            np.testing.assert_array_equal(read, ours.read((37, 11), size, side))


def test_tiffslide_refuses_tiles_that_it_reads_wrongly(tmp_path):
    path = write_tiff(tmp_path / "s.tif", [gradient(400, 600)], mpp=0.5)
    with tifffile.TiffFile(path, mode="r+b") as tiff:  # a tile that was never written
        counts = tiff.pages[0].tags["TileByteCounts"]
        counts.overwrite([0, *counts.value[1:]])
    with pytest.raises(SlideError, match="tiffslide does not give the true pixels"):
        open_slide(path, reader="tiffslide")
