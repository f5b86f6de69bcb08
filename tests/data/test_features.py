"""Encoded patches on disk: types, blocks, stores, statistics."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lrmil_jax.data import features, source
from lrmil_jax.errors import DataError
from tests.data import records

MASKS = [
    [[True, True], [True, False]],
    [[False, False], [False, False]],  # an LR patch without children has no rows
    [[False, True], [False, False]],
    [[True, True], [True, True]],
]


def store_of(tmp_path, tables, dtype="float16"):
    paths = []
    for number, rows in enumerate(tables):
        paths.append(tmp_path / f"s.{number}.array_record")
        features.write(paths[-1], f"s.{number}", rows, dtype=dtype, block=3)
    ids = [path.stem for path in paths]
    return features.FeatureStore(
        paths, ids, lambda names: records.parser(tables[0], names, dtype=dtype)
    )


@pytest.mark.parametrize(("block", "sizes"), [(3, [3, 3, 2]), (4, [4, 4]), (64, [8]), (1, [1] * 8)])
def test_blocks_of_rows(tmp_path, block, sizes):
    rows = records.rows_of(MASKS)
    path = tmp_path / "s.array_record"
    features.write(path, "s", rows, dtype="float16", block=block)
    reader = source.RecordSource([path], records.parser(rows))
    assert [len(reader[i]["embedding"]) for i in range(len(reader))] == sizes


def test_one_record_for_each_lr_patch_with_children(tmp_path):
    rows = records.rows_of(MASKS)
    path = tmp_path / "s.array_record"
    features.write(path, "s", rows, dtype="float16", block=None)
    reader = source.RecordSource([path], records.parser(rows))
    found = [reader[i] for i in range(len(reader))]
    assert [record["parent"].tolist() for record in found] == [[0, 0, 0], [2], [3, 3, 3, 3]]
    assert [record["child"].tolist() for record in found] == [[0, 1, 2], [1], [0, 1, 2, 3]]
    np.testing.assert_array_equal(found[1]["cls"], rows.cls[3:4].astype(np.float16))


def test_a_feature_too_large_for_float16_is_refused_before_anything_is_written(tmp_path):
    rows = records.rows_of(MASKS)
    rows.embedding[2, 1] = 7e4
    path = tmp_path / "s.array_record"
    with pytest.raises(DataError, match=r"slide s .*do not fit float16.*features\.dtype=bfloat16"):
        features.write(path, "s", rows, dtype="float16", block=8)
    assert not path.exists()
    features.write(path, "s", rows, dtype="bfloat16", block=8)
    read = source.read_rows(path, records.parser(rows, ("embedding",), dtype="bfloat16"))
    assert read["embedding"][2, 1] == ml_dtypes.bfloat16(7e4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["embedding", "cls"])
def test_features_that_are_no_numbers_are_refused(tmp_path, value, field):
    rows = records.rows_of(MASKS)
    getattr(rows, field)[0, 0] = value
    with pytest.raises(DataError, match="not finite"):
        features.write(tmp_path / "s.array_record", "s", rows, dtype="bfloat16", block=8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_store_knows_sizes_and_reads_rows(tmp_path, dtype):
    tables = [records.rows_of(MASKS, seed=seed) for seed in range(2)]
    tables.append(records.rows_of(MASKS[2:], seed=9))
    store = store_of(tmp_path, tables, dtype)
    assert store.slide_ids == ["s.0", "s.1", "s.2"]
    assert store.sizes.tolist() == [8, 8, 5]
    for number, rows in enumerate(tables):
        np.testing.assert_array_equal(store.embedding(number), rows.cast(dtype, "").embedding)
        places = store.places(number)
        for name in ("xy", "parent", "child"):
            np.testing.assert_array_equal(places[name], getattr(rows, name))


def test_statistics_are_those_of_the_named_slides_alone(tmp_path):
    tables = [records.rows_of(MASKS, seed=seed) for seed in range(3)]
    for rows in tables:
        rows.embedding[:, 0] = 100 + rows.embedding[:, 0]
        rows.embedding[:, 1] = 5.0  # constant
    tables[1].embedding[:] = 1e4
    mean, sd = store_of(tmp_path, tables).statistics([0, 2])
    stored = np.concatenate([tables[i].embedding.astype(np.float16) for i in (0, 2)])
    stored = stored.astype(np.float64)
    assert mean.dtype == sd.dtype == np.float32
    np.testing.assert_allclose(mean, stored.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sd, np.sqrt(stored.var(0) + 1e-6), rtol=1e-5)
    assert sd[1] == pytest.approx(1e-3)  # finite, never 0


def test_moments_are_those_of_all_rows(tmp_path):
    paths, values = [], []
    for number, masks in enumerate((MASKS, MASKS[2:])):
        rows = records.rows_of(masks, seed=number)
        path = tmp_path / f"{number}.array_record"
        features.write(path, str(number), rows, dtype="float16", block=None)
        stored = rows.cast("float16", str(number))
        values.append((stored.embedding.astype(np.float64), stored.cls.astype(np.float64)))
        paths.append(path)
    for place, name in enumerate(("embedding", "cls")):
        joined = np.concatenate([value[place] for value in values])
        mean, variance = features.moments(paths, name)
        np.testing.assert_allclose(mean, joined.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(variance, joined.var(0), rtol=1e-6, atol=1e-9)


def test_rows_that_a_file_cannot_hold_are_refused(tmp_path):
    """An index says how much memory to ask for."""
    path = tmp_path / "s.array_record"
    path.write_bytes(b"x" * 1000)
    index = {"parent": np.zeros(2, np.int64), "rows": np.array([10**12, 1], np.int64)}
    safetensors.numpy.save_file(index, features.index_path(path))
    with pytest.raises(DataError, match=r"1000000000001 rows, but .* has 1000 bytes; delete"):
        features.read_index(path)
    index["rows"][0] = -1
    safetensors.numpy.save_file(index, features.index_path(path))
    with pytest.raises(DataError, match="delete"):
        features.read_index(path)
    del index["rows"]
    safetensors.numpy.save_file(index, features.index_path(path))
    with pytest.raises(DataError, match="has no 'rows'"):
        features.read_index(path)
