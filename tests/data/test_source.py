"""Reading shards: in order, decoded off the main thread, and clear about what is broken."""

import resource
import struct
import threading

import numpy as np
import pytest

from lrmil_jax.data import features, regions, schema, source, writer
from lrmil_jax.errors import DataError
from tests.data import records

FULL = np.ones((2, 2), bool)
PARSER = schema.RecordParser(schema.region_features(records.GEOMETRY))


@pytest.fixture
def shards(tmp_path):
    """Three slides of 3, 1 and 2 regions."""
    counts = {"a.1": 3, "b": 1, "c": 2}
    return [
        records.write_regions(tmp_path / f"{name}.array_record", [FULL] * count, slide_id=name)
        for name, count in counts.items()
    ]


def read_all(paths):
    reader = source.RecordSource(paths, PARSER)
    return [reader[index] for index in range(len(reader))]


def broken(paths):
    """The sentence about shards that cannot be read."""
    with pytest.raises(DataError) as caught:
        read_all(paths)
    text = str(caught.value)
    assert "\n" not in text
    assert "delete it and run the same command again" in text
    return text


def test_files_follow_each_other_as_given(shards):
    reader = source.RecordSource([shards[2], shards[0], shards[1]], PARSER)
    assert len(reader) == 6
    seen = [(reader[i]["slide_id"].decode(), int(reader[i]["index"])) for i in range(6)]
    assert seen == [("c", 0), ("c", 1), ("a.1", 0), ("a.1", 1), ("a.1", 2), ("b", 0)]


def test_a_missing_or_empty_shard_is_named(shards):
    shards[1].write_bytes(b"")
    assert f"{shards[1]} cannot be read (it is missing or empty)" in broken(shards)
    shards[1].unlink()
    assert str(shards[1]) in broken(shards)


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.01])
def test_a_truncated_shard_is_named(shards, keep):
    data = shards[2].read_bytes()
    shards[2].write_bytes(data[: int(keep * len(data))])
    text = broken(shards)
    assert str(shards[2]) in text
    assert str(shards[0]) not in text


def test_no_array_record_at_all_is_named(shards):
    shards[0].write_bytes(np.random.default_rng(0).bytes(100_000))
    assert str(shards[0]) in broken(shards)


def test_flipped_bytes_are_found_by_the_checksum(tmp_path):
    path = records.write_regions(tmp_path / "s.array_record", [FULL] * 250)
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(bytes(data))
    assert str(path) in broken([path])


def test_shards_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "rows.array_record"
    features.write(path, "s", records.rows_of([FULL]), dtype="float16", block=64)
    assert str(path) in broken([path])


@pytest.mark.parametrize("name", ["lr", "hr"])
def test_images_that_state_another_size_are_refused_before_they_are_decoded(tmp_path, name):
    """Of 65,000 px a side a decoder would ask for 12 GB."""
    write = records.write_regions if name == "lr" else records.write_mosaics
    kind = schema.region_features if name == "lr" else schema.mosaic_features
    features_of, path = kind(records.GEOMETRY), write(tmp_path / "s.array_record", [FULL])
    record = source.RecordSource([path], schema.RecordParser(features_of))[0]
    image = bytearray(record[name])
    sides = (16, ">II") if name == "lr" else (image.find(b"\xff\xc0") + 5, ">HH")
    struct.pack_into(sides[1], image, sides[0], 65000, 65000)
    writer.write_records(path, features_of, [record | {name: bytes(image)}])
    reader = source.RecordSource([path], schema.RecordParser(features_of))
    with pytest.raises(
        DataError, match=r"s\.array_record cannot be read \(an image of 65000 x 65000"
    ):
        reader[0]


def test_broken_shards_keep_their_name_through_grains_threads(shards):
    reader = source.RecordSource(shards, PARSER)
    data = shards[2].read_bytes()
    shards[2].write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"c\.array_record cannot be read"):
        list(source.stream(reader, lambda record: record["index"], threads=2))


def test_streams_keep_the_order_and_work_off_the_main_thread(shards):
    threads = set()

    def decode(record):
        threads.add(threading.current_thread())
        return record["slide_id"].decode(), int(source.decode_lr(record)[0, 0, 0])

    seen = list(source.stream(source.RecordSource(shards, PARSER), decode, threads=3, buffer=2))
    assert seen == [("a.1", 0), ("a.1", 1), ("a.1", 2), ("b", 0), ("c", 0), ("c", 1)]
    assert threading.main_thread() not in threads


def test_children_are_cut_by_row_and_column():
    mosaic = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    children = regions.cut_mosaic(mosaic, 2)
    assert children.shape == (2, 2, 3, 3, 3)
    for row in range(2):
        for column in range(2):
            expected = mosaic[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(children[row, column], expected)


def test_decoded_children_are_in_their_places(tmp_path):
    path = records.write_mosaics(tmp_path / "s.array_record", [FULL])
    parser = schema.RecordParser(schema.mosaic_features(records.GEOMETRY))
    children = source.decode_hr(source.RecordSource([path], parser)[0], 2)
    means = children.mean(axis=(2, 3, 4))
    np.testing.assert_allclose(means, [[20, 120], [70, 170]], atol=1.5)


def test_rows_of_all_blocks_are_joined(tmp_path):
    rows = records.rows_of([FULL] * 5)
    path = tmp_path / "s.array_record"
    features.write(path, "s", rows, dtype="float16", block=7)
    read = source.read_rows(path, records.parser(rows, ("parent", "embedding", "slide_id")))
    assert set(read) == {"parent", "embedding"}
    np.testing.assert_array_equal(read["parent"], rows.parent)
    np.testing.assert_array_equal(read["embedding"], rows.embedding.astype(np.float16))


def test_as_many_files_as_allowed_may_be_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        source.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
