"""What goes into a record comes out of it, and only what is asked for is decoded."""

import ml_dtypes
import numpy as np
import pytest

from lrmil_jax.data import schema
from tests.data import records


@pytest.mark.parametrize(("hr", "lr", "ratio"), [(0.5, 2.0, 4), (0.25, 2.0, 8), (0.3, 0.6, 2)])
def test_ratio(hr, lr, ratio):
    assert schema.Geometry(hr, lr, 256).ratio == ratio


def test_a_region_survives_the_disk_format():
    mask = [[True, False], [False, True]]
    tile, mosaic = records.region(3, mask=mask), records.mosaic(3, mask=mask)
    kinds = schema.region_features(records.GEOMETRY)
    back = schema.RecordParser(kinds)(kinds.serialize_example(tile))
    assert back["slide_id"] == b"s"
    assert back["lr"] == tile["lr"]  # images stay encoded
    kinds = schema.mosaic_features(records.GEOMETRY)
    back = schema.RecordParser(kinds)(kinds.serialize_example(mosaic))
    assert back["hr"] == mosaic["hr"]
    assert (back["index"], back["lr_side"]) == (3, 16)
    assert back["lr_xy"].tolist() == [48, 32]
    assert back["child_mask"].dtype == bool
    assert back["child_mask"].tolist() == [[True, False], [False, True]]


def test_only_named_features_are_read():
    kinds = schema.region_features(records.GEOMETRY)
    record = kinds.serialize_example(records.region(5))
    assert set(schema.RecordParser(kinds, ("lr", "lr_xy"))(record)) == {"lr", "lr_xy"}
    assert set(schema.RecordParser(kinds, ("child_mask",))(record)) == {"child_mask"}
    assert "hr" not in kinds  # a reader of tiles does not touch its bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layers", [0, 2])
def test_features_survive_bit_by_bit(dtype, layers):
    rows = records.rows_of([np.ones((2, 2))] * 3, layers=layers).cast(dtype, "s")
    kinds = schema.patch_features(
        width=4, ratio=2, dtype=dtype, layers=layers, layer_width=4 if layers else 0
    )
    names = ["embedding", "xy", "parent", "child", "child_mask"] + ["cls"] * bool(layers)
    assert set(kinds) == {"slide_id", *names}
    example = {"slide_id": "s"} | {name: getattr(rows, name) for name in names}
    back = schema.RecordParser(kinds)(kinds.serialize_example(example))
    expected = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    assert back["embedding"].dtype == expected
    for name in names:
        np.testing.assert_array_equal(back[name], getattr(rows, name))
