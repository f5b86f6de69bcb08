"""What was drawn in QuPath, read as QuPath writes it."""

import json

import numpy as np
import pytest
import shapely

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import Annotations, Tissue, annotations

SIZE = (1000, 800)


def ring(x, y, width, height):
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]


def feature(*rings, name=None, kind="annotation", **classification):
    """As QuPath 0.5 exports an annotation."""
    said = {"name": name, "color": [200, 0, 0]} | classification
    properties = {"objectType": kind} | ({"classification": said} if name or classification else {})
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "id": "0", "geometry": geometry, "properties": properties}


@pytest.fixture
def saved(tmp_path):
    def save(content, classes=(), slide_id="s"):
        path = tmp_path / "s.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return Annotations(path, classes, slide_id)

    return save


WITH_HOLE = feature(ring(100, 100, 400, 300), ring(200, 200, 100, 100), name="Tumor")
STROMA = feature(ring(600, 0, 100, 100), name="Stroma")
DETECTION = feature(ring(0, 0, 50, 50), kind="detection")


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [WITH_HOLE, STROMA, DETECTION]},
        [WITH_HOLE, STROMA, DETECTION],
    ],
)
def test_classes_choose_and_holes_are_holes(saved, content):
    areas = {
        (): 400 * 300 - 100 * 100 + 100 * 100,
        ("Tumor",): 400 * 300 - 100 * 100,
        ("Stroma",): 100 * 100,
        ("Stroma", "Tumor"): 400 * 300,
        ("Necrosis",): 0,
    }
    for classes, area in areas.items():
        polygons = saved(content, classes).polygons(SIZE)
        assert sum(one.area for one in polygons) == area
    assert saved(content).named() == ["Stroma", "Tumor"]


def test_one_feature_several_polygons_and_derived_classes(saved):
    parts = {"type": "MultiPolygon",
             "coordinates": [[ring(0, 0, 10, 10)], [ring(20, 0, 10, 10)]]}  # fmt: skip
    one = feature(names=["Tumor", "Positive"]) | {"geometry": parts}
    drawn = saved(one, ("Tumor: Positive",))
    assert [part.area for part in drawn.polygons(SIZE)] == [100, 100]
    assert drawn.named() == ["Tumor: Positive"]


def test_overlapping_regions_and_islands_count_once(saved):
    island = feature(ring(240, 240, 20, 20), name="Tumor")
    again = feature(ring(100, 100, 400, 50), name="Tumor")
    polygons = saved([WITH_HOLE, island, again]).polygons(SIZE)
    assert sum(one.area for one in polygons) == 110_000 + 400
    made = annotations.mask(polygons, (100, 80), (10, 10))
    assert made.sum() == 1104
    assert made[24, 24]
    assert not made[22, 22]


def test_a_crossing_outline_is_mended(saved):
    bow = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    assert sum(one.area for one in saved(feature(bow)).polygons(SIZE)) == 5000


def test_the_frame_of_a_scanned_area(saved):
    """QuPath counts from (300, 200)."""
    drawn = saved(feature(ring(0, 0, 100, 50)))
    (moved,) = drawn.polygons(SIZE, (300, 200, 500, 400))
    assert moved.bounds == (300, 200, 400, 250)
    with pytest.raises(SlideError, match="x 650 to 950, y 0 to 100 lies outside the slide of 1000"):
        saved(feature(ring(650, 0, 300, 100))).polygons(SIZE, (300, 200, 500, 400))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"s\.geojson is no GeoJSON .*Export objects as GeoJSON"),
        ([1], "holds no GeoJSON features"),
        ({"type": "Topology"}, "holds no GeoJSON features"),
        ({"type": "FeatureCollection", "features": []}, "has no annotation with an area; draw"),
        ([DETECTION], "has no annotation with an area"),
        ([{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}],
         "has no annotation with an area"),
        ([STROMA, {"type": "Feature", "geometry": {"type": "Polygon"}}], "geometry of object 2"),
        ([{"type": "Feature", "geometry": 3}], "properties or geometry are none"),
        ([feature([[0, 0], [1, "x"], [1, 1], [0, 0]])], "geometry of object 1 cannot be read"),
        ([feature(ring(5000, 0, 100, 100), name="Tumor")],
         "region Tumor at x 5000 to 5100, y 0 to 100 lies outside the slide of 1000 x 800"),
        ({"type": "FeatureCollection", "properties": {"slide": "other"}, "features": [STROMA]},
         "says that it is of slide other, and not of s"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(saved, content, sentence):
    with pytest.raises(SlideError, match=sentence) as caught:
        saved(content).polygons(SIZE)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SlideError, match=r"there is no .*a\.geojson; draw the slide's regions"):
        Annotations(tmp_path / "a.geojson").polygons(SIZE)


def test_a_mask_has_the_pixels_whose_centre_is_inside():
    disk = shapely.Point(50.3, 40.2).buffer(30.7, 200)
    made = annotations.mask([disk], (100, 60), (1, 1))
    y, x = np.mgrid[:60, :100] + 0.5
    np.testing.assert_array_equal(made, np.hypot(x - 50.3, y - 40.2) < 30.7)
    assert annotations.mask([shapely.box(-50, 300, 31, 900)], (50, 40), (20, 20)).sum() == 50


def test_tissue_inside_alone():
    found = Tissue(np.ones((10, 20), bool), 8.0, np.zeros((10, 20, 3), np.uint8), [])
    kept = annotations.restricted(found, [shapely.box(16, 8, 80, 200)])
    assert kept.mask.sum() == 8 * 9
    assert kept.fraction(np.array([[16, 8], [0, 0]]), 16).tolist() == [1.0, 0.0]
