"""LR patches beside their HR patches as one bag."""

import numpy as np
import pytest

from lrmil_jax.data import cells, features, schema
from lrmil_jax.heads import cells as head_cells

WIDTH, CHILDREN = 3, 4


def written(path, parent, child, values):
    """A file of features at these places; the store of a single one."""
    count = len(parent)
    rows = features.SlideFeatures(
        embedding=np.asarray(values, np.float32),
        xy=np.stack([parent, child], 1).astype(np.int32),
        parent=np.asarray(parent, np.int32),
        child=np.asarray(child, np.int32),
        child_mask=np.ones((count, 2, 2), bool),
    )
    features.write(path, path.stem, rows, dtype="float16", block=64)
    return features.row_features(rows.cast("float16", path.stem), "float16")


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Three LR patches, of which the one in the middle could not be read; five HR patches."""
    folder = tmp_path_factory.mktemp("cells")
    low, high = folder / "low.array_record", folder / "high.array_record"
    values = np.arange(15).reshape(5, 3)
    written(low, [0, 2], [-1, -1], [[10, 11, 12], [20, 21, 22]])
    whole = written(high, [0, 0, 1, 2, 2], [1, 3, 0, 0, 2], values)

    def parser(names):
        return schema.RecordParser(whole, names)

    high = features.FeatureStore([high], ["a"], parser)
    return cells.CellBags([low], ["a"], parser, high=high, children=CHILDREN)


def test_each_child_stands_in_its_place_beside_its_parent(bags):
    rows = bags.embedding(0)
    low, high, there = head_cells.split(rows[None], np.ones((1, 2), bool), CHILDREN)
    np.testing.assert_array_equal(low[0], [[10, 11, 12], [20, 21, 22]])
    np.testing.assert_array_equal(there[0], [[0, 1, 0, 1], [1, 0, 1, 0]])
    np.testing.assert_array_equal(high[0, 0, [1, 3]], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(high[0, 1, [0, 2]], [[9, 10, 11], [12, 13, 14]])
    assert not np.asarray(high)[~np.asarray(there)].any()
    assert rows.dtype == np.float16
    assert bags.sizes.tolist() == [2]
    assert bags.children(0, np.array([1])) == 2


def test_each_magnification_has_its_own_scale(bags):
    mean, sd = bags.statistics([0])
    of_high = np.arange(15).reshape(5, 3)  # all HR patches, also those of the missing LR patch
    np.testing.assert_allclose(mean[:WIDTH], [15, 16, 17])
    np.testing.assert_allclose(mean[WIDTH:-CHILDREN], np.tile(of_high.mean(0), CHILDREN))
    np.testing.assert_allclose(sd[WIDTH:-CHILDREN], np.tile(of_high.std(0), CHILDREN), rtol=1e-5)
    assert mean[-CHILDREN:].tolist() == [0] * CHILDREN
    assert sd[-CHILDREN:].tolist() == [1] * CHILDREN


def test_weighted_softmax_leaves_out_what_weighs_nothing():
    scores = np.array([[1.0, 2.0, 900.0, 0.5], [1.0, 1.0, 1.0, 1.0]], np.float32)
    found = head_cells.weighted_softmax(scores, np.array([[1.0, 0.5, 0.0, 1.0], [0.0] * 4]))
    parts = np.exp([1.0, 2.0, 0.5]) * [1.0, 0.5, 1.0]
    np.testing.assert_allclose(found[0, [0, 1, 3]], parts / parts.sum(), rtol=1e-5)
    assert found[0, 2] == 0
    assert not found[1].any()
