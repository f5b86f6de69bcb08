"""DICOM: the files of a series are one slide, whose levels have the scale of their spacing."""

import numpy as np
import pytest

from lrmil_jax.data import slide_files
from lrmil_jax.errors import DataError
from lrmil_jax.slides import dicom, open_slide
from tests.slides.files import gradient
from tests.slides.vendor_files import write_dicom

pytest.importorskip("pydicom")
pytest.importorskip("openslide")
SERIES = {"a": "1.2.3.4.5", "b": "1.2.3.4.6"}
IMAGE = gradient(1100, 1300)


def write_series(folder, name, *, padded=False, container=None):
    """Five files: two levels, a label, an overview and a thumbnail."""
    level = IMAGE[2::4, 2::4]
    if padded:
        level = np.zeros((512, 512, 3), np.uint8)
        level[:275, :325] = IMAGE[2::4, 2::4]
    small = np.full((200, 300, 3), 90, np.uint8)
    options = {"series": SERIES[name], "container": container or f"slide {name}"}
    folder.mkdir(exist_ok=True)
    files = [(IMAGE, 0.0005, "VOLUME"), (level, 0.002, "VOLUME"), (small, 0.01, "LABEL")]
    files += [(small, 0.02, "OVERVIEW"), (small, 0.0022, "THUMBNAIL")]
    for number, (image, spacing, kind) in enumerate(files):
        # Small images are one frame: openslide reads no more of labels.
        side = 256 if kind == "VOLUME" else max(image.shape[:2])
        write_dicom(
            folder / f"{name}_{number}.dcm", image, spacing=spacing, kind=kind, side=side, **options
        )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name in SERIES:
        write_series(folder, name)
    return folder


@pytest.mark.parametrize("with_pydicom", [True, False])
def test_two_slides_of_five_files_are_two_slides(two, with_pydicom, monkeypatch):
    monkeypatch.setattr(dicom, "installed", lambda: with_pydicom)
    slides = slide_files.find(two)
    assert sorted(slides) == ["slide a", "slide b"]
    if with_pydicom:
        assert [path.name for path in slides.values()] == ["a_0.dcm", "b_0.dcm"]
    for path in slides.values():
        with open_slide(path) as slide:
            assert slide.dimensions == (1300, 1100)
            assert slide.mpp == pytest.approx(0.5)


def test_names_of_files_and_folders(two, tmp_path):
    assert list(slide_files.find(two, {"b_1"})) == ["slide a", "b_1"]
    for name in SERIES:
        write_series(tmp_path / f"folder {name}", name, container="same")
    assert sorted(slide_files.find(tmp_path)) == ["folder a", "folder b"]
    assert sorted(slide_files.find(tmp_path, {SERIES["a"]})) == [SERIES["a"], "folder b"]


@pytest.mark.parametrize("with_pydicom", [True, False])
def test_rows_that_name_two_files_of_one_slide_are_refused(
    two, tmp_path, with_pydicom, monkeypatch
):
    """Else one slide would be two, perhaps in two splits."""
    monkeypatch.setattr(dicom, "installed", lambda: with_pydicom)
    table = tmp_path / "labels.csv"
    text = "slide_id,path\none,a_0.dcm\nother,b_0.dcm\nagain,{}.dcm\n"
    table.write_text(text.format("a_1"))
    with pytest.raises(DataError, match=r"one and again are one slide.*a_0\.dcm and .*a_1\.dcm"):
        slide_files.read_list(table, two)
    table.write_text(text.format("not_there"))
    assert len(slide_files.read_list(table, two)) == 3


def test_any_file_of_the_series_opens_the_slide(two):
    with open_slide(two / "a_1.dcm") as slide:
        assert slide.dimensions == (1300, 1100)
        assert slide.level_downsamples == (1.0, 4.0)
        region = slide.read((600, 500), 256, 256)
        np.testing.assert_array_equal(region, IMAGE[500:756, 600:856])


def test_levels_padded_to_whole_tiles_have_the_scale_of_their_spacing(tmp_path, monkeypatch):
    write_series(tmp_path, "a", padded=True)
    with open_slide(tmp_path / "a_0.dcm") as slide:
        assert slide.level_downsamples == (1.0, 4.0)
        assert slide.levels[1].evidence == "stated"
        assert slide.levels[1].dimensions == (325, 275)
        tile = slide.read((1000, 800), 64, 256).astype(float)
        assert set(slide.read_log) == {1}
    centre = 1000 + (np.arange(64) + 0.5) * 4
    np.testing.assert_allclose(tile[..., 0].mean(0), 40 + 180 * (centre - 0.5) / 1300, atol=1.5)
    # By sizes alone it may be 3 or 4: without pydicom the level is left out, and told.
    monkeypatch.setattr(dicom, "installed", lambda: False)
    with open_slide(tmp_path / "a_0.dcm") as slide:
        assert slide.level_downsamples == (1.0,)
        assert "512 x 512 px is left out" in slide.notes[0]


def test_other_files_are_no_slides(tmp_path):
    (tmp_path / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(10))
    (tmp_path / "y.dcm").write_bytes(b"text")
    assert slide_files.find(tmp_path) == {}
