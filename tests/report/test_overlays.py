"""Predictions in the files of other programs, each opened again by that program's own library."""

import contextlib
import dataclasses
import json
import sqlite3
import subprocess
import sys
import zlib

import numpy as np
import pytest
import shapely
import tifffile

from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.models.result import Guidance, SlideResult
from lrmil_jax.report import prediction
from lrmil_jax.report.overlays import ome_tiff, raster, registry
from lrmil_jax.report.overlays.overlay import Overlay
from lrmil_jax.slides import synthetic
from tests.slides.vendor_files import write_dicom

SIDE, MPP = 400, 0.5
XY = np.array([[0, 0], [800, 400], [400, 1200]])
ATTENTION = np.array([0.5, 0.125, 0.375], np.float32)


def overlay(**changes):
    given = {"slide_id": "s", "xy": XY, "side": SIDE, "layers": {"attention": ATTENTION},
             "mpp": MPP, "dimensions": (1500, 1700)}  # fmt: skip
    return Overlay(**(given | changes))


@pytest.fixture
def result():
    return SlideResult(
        probabilities={"benign": 0.07, "tumour": 0.93},
        prediction={"prob_benign": 0.07, "prob_tumour": 0.93, "predicted": "tumour"},
        sentence="tumour 0.93",
        attention=ATTENTION,
        xy=XY,
        side=SIDE,
        mpp=MPP,
        seconds={},
        encoded=3,
        read_log={},
        finest_allowed=0,
        unreadable=[],
        picture=np.full((40, 40, 3), 200, np.uint8),
        picture_downsample=42.5,
        guidance=Guidance(
            classes=("benign", "tumour"),
            xy=XY,
            side=SIDE,
            scores=np.array([[0.1, -0.2], [0.3, 0.4], [0.5, 0.6]], np.float32),
            likeness=np.array([-0.2, 0.4, 0.6], np.float32),
            chosen=np.array([2]),
            sentences=["s"],
        ),
        dimensions=(1500, 1700),
    )


def test_a_pixel_a_patch():
    made = raster.of(overlay())
    nan = np.nan
    wanted = [[0.5, nan, nan, nan], [nan, nan, 0.125, nan], [nan] * 4, [nan, 0.375, nan, nan],
              [nan] * 4]  # fmt: skip
    np.testing.assert_array_equal(made.values, [wanted])
    assert made.corner == (0, 0)


def test_the_raster_of_a_scanned_area_begins_at_its_corner():
    """QuPath's origin is (500, 300): the lattice of the file has its line before it at (400, 0)."""
    made = raster.of(overlay(xy=XY[1:], layers={"a": ATTENTION[1:]}, bounds=(500, 300, 700, 1300)))
    assert made.corner == (400, 0)
    assert made.values.shape == (1, 4, 2)
    assert (made.values[0, 1, 1], made.values[0, 3, 0]) == (0.125, 0.375)
    shifted = raster.of(overlay(xy=XY + np.array([30, 50]), dimensions=None))
    assert shifted.corner == (-370, -350)  # a lattice that does not begin at the slide's corner
    assert shifted.values[0, 1, 1] == 0.5


@pytest.mark.parametrize("moved", [[[0, 0], [200, 0], [800, 0]], [[0, 0], [0, 0], [400, 0]]])
def test_patches_that_are_no_image_are_refused(moved, tmp_path):
    with pytest.raises(DataError, match=r"^s: its patches overlap .* write geojson"):
        registry.write("ome_tiff", tmp_path / "a.tif", overlay(xy=np.array(moved)))
    assert not list(tmp_path.iterdir())


def test_halves_are_means_of_the_patches_there():
    nan = np.nan
    found = raster.halved(np.array([[[1, 3, nan], [nan, nan, nan], [5, 7, 9]]], np.float32))
    np.testing.assert_array_equal(found, [[[2, nan], [6, 9]]])


def test_geojson_has_the_scores_too(tmp_path, result):
    result.save(tmp_path / "a.geojson", "geojson", "s")
    second = json.loads((tmp_path / "a.geojson").read_text())["features"][1]["properties"]
    assert second["measurements"] == pytest.approx(
        {"attention": 0.125, "attention rank": 0, "score benign": 0.3, "score tumour": 0.4,
         "probability benign": 0.07, "probability tumour": 0.93})  # fmt: skip


def test_ome_tiff(tmp_path, result):
    path = tmp_path / "attention.ome.tif"
    result.save(path, "ome_tiff", "slide 1")
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert not file.is_bigtiff
        (series,) = file.series
        assert series.axes == "CYX"
        page = series.pages[0]
        assert page.is_tiled
        assert page.dtype == np.float32
        values = series.asarray()
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    assert described["Name"] == "slide 1"
    assert "probability tumour 0.93" in described["Description"]
    names = [channel["Name"] for channel in described["Pixels"]["Channel"]]
    assert names == ["attention", "attention rank", "score benign", "score tumour"]
    np.testing.assert_array_equal(values[0], raster.of(overlay()).values[0])
    assert values[2:, 3, 1].tolist() == pytest.approx([0.5, 0.6])
    assert np.isnan(values[:, 0, 1]).all()


def test_ome_tiff_has_a_pyramid_and_its_place(tmp_path):
    xy = np.argwhere(np.ones((300, 140))) * SIDE
    values = np.random.default_rng(0).random(len(xy), np.float32)
    made = overlay(xy=xy, layers={"attention": values}, dimensions=(300 * SIDE, 140 * SIDE),
                   bounds=(100, 50, 1000, 2000))  # fmt: skip
    ome_tiff.write(tmp_path / "a.ome.tif", made)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(140, 300), (70, 150), (35, 75)]
        assert len(file.pages[0].subifds) == 2
        finest, half = (level.asarray() for level in levels[:2])
    np.testing.assert_array_equal(finest, values.reshape(300, 140).T)
    np.testing.assert_allclose(half[3, 5], finest[6:8, 10:12].mean(), rtol=1e-6)


def test_ome_tiff_is_of_the_ome_model(tmp_path):
    ome_types = pytest.importorskip("ome_types")
    pytest.importorskip("lxml")
    made = overlay(bounds=(500, 300, 700, 1300), layers={"attention": ATTENTION, "b": ATTENTION})
    ome_tiff.write(tmp_path / "a.ome.tif", made)
    (image,) = ome_types.from_tiff(tmp_path / "a.ome.tif", validate=True).images
    pixels = image.pixels
    assert (pixels.physical_size_x, pixels.physical_size_y) == (SIDE * MPP, SIDE * MPP)
    assert pixels.physical_size_x_unit.value == "µm"
    assert [plane.the_c for plane in pixels.planes] == [0, 1]
    for plane in pixels.planes:
        # The raster begins at (0, 0), since a patch lies there: 500 and 300 px before the area.
        assert (plane.position_x, plane.position_y) == (-250, -150)
        assert plane.position_y_unit.value == "µm"


def test_annotation_store_as_sql(tmp_path, result):
    result.save(tmp_path / "a.db", "annotation_store", "s")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as store:
        told = {key: json.loads(value) for key, value in store.execute("SELECT * FROM metadata")}
        assert told["version"] == "1.0.1"
        rows = store.execute(
            "SELECT a.*, r.min_x, r.max_x, r.min_y, r.max_y FROM annotations a JOIN rtree r "
            "ON a.id = r.id WHERE r.min_x <= 1000 AND r.max_x >= 900 AND a.objtype = 'Polygon'"
        ).fetchall()
    ((_, _, _, cx, cy, geometry, properties, area, *box),) = rows
    assert (cx, cy, area, box) == (1000, 600, SIDE**2, [800, 1200, 400, 800])
    assert shapely.from_wkb(zlib.decompress(geometry)).equals(shapely.box(800, 400, 1200, 800))
    wanted = {"type": "tumour", "attention": 0.125, "score benign": pytest.approx(0.3),
              "probability tumour": 0.93}  # fmt: skip
    assert {name: json.loads(properties)[name] for name in wanted} == wanted


def test_annotation_store_is_tiatoolboxes(tmp_path, result):
    """In a process of its own: TIAToolbox warns of much and takes over the root logger."""
    pytest.importorskip("tiatoolbox")
    result.save(tmp_path / "a.db", "annotation_store", "s")
    code = """
import json, sqlite3, sys
from tiatoolbox.annotation import SQLiteStore
if not hasattr(sqlite3.Connection, "enable_load_extension"):  # which it asks for to no end
    options = sqlite3.connect(":memory:").execute("pragma compile_options").fetchall()
    SQLiteStore.compile_options = staticmethod(lambda: [name for (name,) in options])
store = SQLiteStore(sys.argv[1])
inside = store.query((700, 300, 1300, 900))
hot = store.query(where="props['attention'] > 0.3")
print(json.dumps([len(store), [one.geometry.bounds for one in inside.values()],
    sorted(one.properties["attention"] for one in hot.values()),
    store.query((0, 0, 100, 100)).popitem()[1].properties["type"]]))
store.append(next(iter(inside.values())))
assert len(store) == 4
store.close()
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.db"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [3, [[800, 400, 1200, 800]], [0.375, 0.5], "tumour"]


@pytest.mark.filterwarnings("ignore")  # its libraries warn of each other
def test_spatialdata(tmp_path, result):
    spatialdata = pytest.importorskip("spatialdata")
    path = tmp_path / "attention.zarr"
    for _ in range(2):  # the second replaces the first
        result.save(path, "spatialdata", "slide 1")
    assert [one.name for one in tmp_path.iterdir()] == ["attention.zarr"]
    found = spatialdata.read_zarr(path)
    tiles = found.shapes["tiles"]
    assert tiles[["tile_id", "x", "y", "tissue_id"]].values.tolist() == [
        [0, 0, 0, -1], [1, 800, 400, -1], [2, 400, 1200, -1]]  # fmt: skip
    assert tiles.geometry.iloc[1].equals(shapely.box(800, 400, 1200, 800))
    assert tiles.attention.tolist() == ATTENTION.tolist()
    assert tiles["score tumour"].tolist() == pytest.approx([-0.2, 0.4, 0.6])
    spec = found.attrs["tile_spec"]["tiles"]
    assert (spec["height"], spec["stride_width"], spec["mpp"]) == (SIDE, SIDE, MPP)
    assert found.attrs["lrmil_jax"]["predicted"] == "tumour"


@pytest.mark.filterwarnings("ignore")
def test_spatialdata_is_wsidatas(tmp_path, result):
    """Opened with its slide, as LazySlide does."""
    wsidata = pytest.importorskip("wsidata")
    image = np.full((1700, 1500, 3), 200, np.uint8)
    synthetic.write_slide(tmp_path / "slide.tif", image, mpp=MPP)
    result.save(tmp_path / "attention.zarr", "spatialdata")
    found = wsidata.open_wsi(tmp_path / "slide.tif", store=tmp_path / "attention.zarr")
    spec = found.tile_spec("tiles")
    assert (spec.base_width, spec.base_height, spec.mpp) == (SIDE, SIDE, MPP)
    assert found["tiles"].attention.tolist() == ATTENTION.tolist()


@pytest.fixture
def dicom_slide(tmp_path):
    """Two levels of 1500 x 1700 px at 0.5 um/px; its path is the coarse level's."""
    pytest.importorskip("highdicom")
    image = np.full((1700, 1500, 3), 200, np.uint8)
    for name, step in (("fine", 1), ("coarse", 4)):
        write_dicom(tmp_path / f"{name}.dcm", image[::step, ::step], series="1.2.3",
                    spacing=0.0005 * step)  # fmt: skip
    return tmp_path / "coarse.dcm"


@pytest.mark.filterwarnings("ignore")
def test_dicom_parametric_map(dicom_slide, result, tmp_path):
    import highdicom
    import pydicom

    path = tmp_path / "out" / "attention.dcm"
    dataclasses.replace(result, path=dicom_slide).save(path, "dicom")
    found = highdicom.imread(path)
    values = found.get_total_pixel_matrix()
    np.testing.assert_array_equal(values, raster.of(overlay()).values[0])
    assert found.SOPClassUID == pydicom.uid.ParametricMapStorage
    assert np.isnan(found.FloatPixelPaddingValue)
    fine = pydicom.dcmread(tmp_path / "fine.dcm")
    assert (found.StudyInstanceUID, found.PatientID) == (fine.StudyInstanceUID, "S-1")
    assert found.FrameOfReferenceUID == fine.FrameOfReferenceUID
    assert found.SeriesInstanceUID != fine.SeriesInstanceUID
    (mapping,) = found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    (quantity,) = mapping.QuantityDefinitionSequence
    assert quantity.ConceptCodeSequence[0].CodeMeaning == "Class activation"


@pytest.mark.filterwarnings("ignore")
def test_a_parametric_map_lies_where_the_patches_do(dicom_slide, result, tmp_path):
    """The centre of the patch at (800, 400), in mm of the slide, from both images."""
    import highdicom
    from highdicom.spatial import ImageToReferenceTransformer as ToSlide

    path = tmp_path / "attention.dcm"
    dataclasses.replace(result, path=dicom_slide).save(path, "dicom")
    places = []
    for image, xy in ((path, (2.5, 1.5)), (tmp_path / "fine.dcm", (1000, 600))):
        data = highdicom.imread(image)
        places.append(ToSlide.for_image(data, for_total_pixel_matrix=True)(np.array([xy], float)))
    np.testing.assert_allclose(places[0], places[1], atol=1e-6)
    np.testing.assert_allclose(places[0], [[20 - 0.3 + 0.00025, 40 - 0.5 + 0.00025, 0]], atol=1e-6)


def test_a_slide_that_is_no_dicom_has_no_parametric_map(result, tmp_path):
    pytest.importorskip("highdicom")
    (tmp_path / "a.svs").write_bytes(b"no DICOM")
    for path in (tmp_path / "a.svs", None):
        with pytest.raises(DataError, match=r"(a\.svs|slide) is no DICOM slide"):
            dataclasses.replace(result, path=path).save(tmp_path / "a.dcm", "dicom")


def test_formats_by_name(tmp_path, result):
    with pytest.raises(ConfigError, match=r"'ome_tif': did you mean ome_tiff\? There are geojson"):
        registry.checked(["geojson", "ome_tif"])
    assert registry.checked(["geojson", "geojson"]) == ("geojson",)
    prediction.save_attention(tmp_path, "s", result, "title", {}, ("ome_tiff", "geojson"))
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"attention.csv", "attention.ome.tif", "attention.geojson", "heatmap.png"}


def test_a_slide_that_a_format_cannot_say_fails_with_its_sentence(tmp_path, result):
    overlapping = dataclasses.replace(result, xy=XY // 3)
    kept = prediction.SlidePrediction(
        tmp_path, "s", overlapping, {"source": {"model": "0"}}, ("ome_tiff",)
    )
    row = prediction.save(kept)
    assert row["status"] == "failed"
    assert row["reason"].startswith("s: its patches overlap")
    assert not (tmp_path / "prediction.json").exists()


def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch):
    needing = dataclasses.replace(registry.FORMATS["geojson"], packages=("no_such",), extra="x")
    monkeypatch.setitem(registry.FORMATS, "odd", needing)
    with pytest.raises(ConfigError, match=r"odd needs no_such: pip install 'lrmil_jax\[x\]'"):
        registry.checked(["odd"])
