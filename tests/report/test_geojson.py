"""GeoJSON that QuPath imports: closed squares in level-0 px with attention as measurement."""

import dataclasses
import json
import uuid

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.models.result import SlideResult
from lrmil_jax.report import geojson, prediction

XY = np.array([[0, 0], [1024, 512], [-256, 70_000]])
ATTENTION = np.array([0.5, 0.25, 0.25], np.float32)


def test_a_square_for_every_patch():
    collection = geojson.features("s", XY, 1024, ATTENTION)
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == 3
    second = collection["features"][1]
    assert second["type"] == "Feature"
    assert second["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[1024, 512], [2048, 512], [2048, 1536], [1024, 1536], [1024, 512]],
        ],
    }
    assert second["properties"]["objectType"] == "detection"
    assert second["properties"]["measurements"] == {"attention": 0.25, "attention rank": 0.25}
    assert "classification" not in second["properties"]
    assert collection["properties"]["slide"] == "s"


def test_what_the_objects_say():
    style = geojson.Style(
        kind="tile", predicted="tumour", values={"probability tumour": 0.93}, top=2
    )
    shown = geojson.features("s", XY, 1024, ATTENTION, style=style)["features"]
    assert [one["geometry"]["coordinates"][0][0] for one in shown] == [[0, 0], [1024, 512]]
    for one in shown:
        properties = one["properties"]
        assert properties["objectType"] == "tile"
        assert properties["classification"]["name"] == "tumour"
        colour = properties["classification"]["color"]
        assert len(colour) == 3
        assert all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
        assert properties["measurements"]["probability tumour"] == 0.93
    assert [one["properties"]["measurements"]["attention rank"] for one in shown] == [1.0, 0.25]


@pytest.mark.parametrize("number", range(3))
def test_rings_are_closed_and_turn_one_way(number):
    feature = geojson.features("s", XY, 10, ATTENTION)["features"][number]
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    x, y = np.array(ring, float).T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2 == 100  # signed area of the square


def test_frame_of_viewers_that_crop_to_the_scanned_area():
    plain = geojson.features("s", XY, 1024, ATTENTION)
    assert plain["properties"]["origin"] == [0, 0]
    cropped = geojson.features("s", XY, 1024, ATTENTION, origin=(1000, 500))
    assert cropped["properties"]["origin"] == [1000, 500]
    (ring,) = cropped["features"][1]["geometry"]["coordinates"]
    assert ring[0] == [24, 12]
    assert ring[2] == [24 + 1024, 12 + 1024]
    assert cropped["features"][1]["id"] == plain["features"][1]["id"]


def test_ids_are_unique_and_the_same_in_every_run():
    ids = [f["id"] for f in geojson.features("s", XY, 8, ATTENTION)["features"]]
    assert ids == [f["id"] for f in geojson.features("s", XY, 8, ATTENTION)["features"]]
    others = [f["id"] for f in geojson.features("t", XY, 8, ATTENTION)["features"]]
    assert len({*ids, *others}) == 6
    assert all(uuid.UUID(value).version == 5 for value in ids)


def test_the_file_is_strict_json_with_plain_numbers(tmp_path):
    path = tmp_path / "deep" / "attention.geojson"
    geojson.save(path, geojson.features("s", XY.astype(np.int32), 1024, ATTENTION))

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == geojson.features("s", XY, 1024, ATTENTION)
    total = sum(f["properties"]["measurements"]["attention"] for f in content["features"])
    assert total == pytest.approx(1.0)


@pytest.fixture
def result():
    return SlideResult(
        probabilities={"benign": 0.07, "tumour": 0.93},
        prediction={"prob_benign": 0.07, "prob_tumour": 0.93, "predicted": "tumour"},
        sentence="tumour 0.93",
        attention=ATTENTION,
        xy=XY,
        side=1024,
        mpp=0.5,
        seconds={},
        encoded=3,
        read_log={},
        finest_allowed=0,
        unreadable=[],
        picture=np.full((40, 40, 3), 200, np.uint8),
        picture_downsample=2048.0,
        bounds=(1000, 500, 60_000, 80_000),
    )


def test_a_prediction_lies_in_the_frame_of_viewers(tmp_path, result):
    prediction.save_attention(tmp_path, "s", result, "title", {"model": "0123"})
    content = json.loads((tmp_path / "attention.geojson").read_text())
    assert content["model"] == "0123"
    first, second, _ = content["features"]
    assert second["geometry"]["coordinates"][0][0] == [24, 12]
    assert first["properties"]["classification"]["name"] == "tumour"
    assert first["properties"]["measurements"]["probability tumour"] == 0.93
    table = pd.read_csv(tmp_path / "attention.csv")
    assert table.x.tolist() == XY[:, 0].tolist()
    assert table["rank"].tolist() == [1.0, 0.25, 0.25]


def test_a_result_in_a_notebook(result):
    assert repr(result) == "SlideResult(tumour 0.93; 3 patches of 1024 px)"
    assert result.to_frame().attention.tolist() == ATTENTION.tolist()
    assert len(result.to_geojson("s", top=1)["features"]) == 1
    with pytest.raises(ValueError, match="top a number above 0"):
        result.to_geojson("s", top=-1)
    picture = dataclasses.replace(result, picture_downsample=512.0).show()
    assert picture.size == (40, 40)
    red, _, blue = picture.getpixel((0, 0))  # the first patch has most attention
    assert red > blue


def test_a_result_without_classes(result):
    other = dataclasses.replace(
        result, probabilities={"burden": 0.4}, prediction={"value": 0.4}, sentence="burden 0.4"
    )
    (first, *_) = other.to_geojson("s")["features"]
    assert "classification" not in first["properties"]
    assert first["properties"]["measurements"]["burden"] == 0.4
