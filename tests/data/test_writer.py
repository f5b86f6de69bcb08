"""Whole files or none, disks that are full or read-only, and the view for TFDS users."""

import errno
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from lrmil_jax import files
from lrmil_jax.data import features, schema, source, writer
from lrmil_jax.errors import WorkdirError
from tests.data import records

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))
MASKS = [[[True, True], [True, False]], np.ones((2, 2), bool)]
KINDS = schema.region_features(records.GEOMETRY)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_records_are_written_in_order_and_counted(tmp_path):
    path = tmp_path / "deep" / "TCGA-1.2.array_record"
    count = writer.write_records(path, KINDS, (records.region(i) for i in range(7)))
    assert count == 7
    read = source.RecordSource([path], schema.RecordParser(KINDS))
    assert [int(read[i]["index"]) for i in range(len(read))] == list(range(7))
    assert names(tmp_path) == ["TCGA-1.2.array_record", "deep"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = records.write_regions(tmp_path / "s.array_record", MASKS)
    before = path.read_bytes()

    def broken():
        yield records.region(0)
        raise RuntimeError("slide torn out")

    with pytest.raises(RuntimeError, match="slide torn out"):
        writer.write_records(path, KINDS, broken())
    assert path.read_bytes() == before
    assert names(tmp_path) == ["s.array_record"]


def test_examples_are_consumed_one_by_one(tmp_path):
    alive = []

    def counted():
        for i in range(5):
            alive.append(i)
            yield records.region(i)
            alive.pop()
            assert not alive

    assert writer.write_records(tmp_path / "s.array_record", KINDS, counted()) == 5


@pytest.mark.parametrize(
    ("error", "said"), [(FULL, "the disk is full"), (READ_ONLY, "the file system is read-only")]
)
@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_disk_that_takes_nothing_is_told_in_a_sentence(tmp_path, monkeypatch, error, said, call):
    def refuse(*args, **kwargs):
        raise error

    frame = pd.DataFrame({"slide_id": ["a"]})
    monkeypatch.setattr(files.os, call, refuse)
    for write in (
        lambda: files.write_table(tmp_path / "slides.csv", frame),
        lambda: files.write_json(tmp_path / "a.json", {"a": 1}),
        lambda: records.write_regions(tmp_path / "s.array_record", MASKS),
    ):
        with pytest.raises(WorkdirError, match=said) as caught:
            write()
        assert str(tmp_path) in str(caught.value)
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_array_records_own_word_for_a_full_disk(tmp_path, monkeypatch):
    """ArrayRecord says it as a RuntimeError, and only when the file is closed."""
    real = writer.array_record_module.ArrayRecordWriter

    class Full:
        def __init__(self, *args):
            self._real = real(*args)

        def write(self, record):
            self._real.write(record)

        def close(self):
            self._real.close()
            raise RuntimeError("INTERNAL: writing failed: No space left on device")

    monkeypatch.setattr(writer.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(WorkdirError, match=r"the disk is full|free some space"):
        records.write_regions(tmp_path / "s.array_record", MASKS)
    assert names(tmp_path) == []


def test_a_really_full_disk():
    """/dev/full accepts no byte; the kernel's own ENOSPC goes through the same words."""

    def fill():
        with files.disk_errors("/dev"), open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(WorkdirError, match="the disk is full"):
        fill()


def test_other_errors_pass_through_disk_errors(tmp_path):
    with pytest.raises(ZeroDivisionError), files.disk_errors(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), files.disk_errors(tmp_path):
        (tmp_path / "nothing").read_text()


def test_tables_and_json(tmp_path):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"a": [1, 2], "b": ["x,y", None]}))
    assert (tmp_path / "t.csv").read_text() == 'a,b\n1,"x,y"\n2,\n'
    files.write_json(tmp_path / "t.json", {"b": [1.5], "a": None})
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": None, "b": [1.5]}
    with pytest.raises(ValueError, match="JSON"):  # NaN is no JSON
        files.write_json(tmp_path / "t.json", {"a": float("nan")})
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": None, "b": [1.5]}


def test_the_regions_view_opens_as_tfds(tmp_path):
    """Slide ids with dots, which TFDS itself does not take as file names."""
    folder = tmp_path / "regions"
    ids = ["TCGA-05-4244-01Z-00-DX1.d4ff32cd", "b.c.d"]
    paths = [folder / f"{name}.array_record" for name in ids]
    for path, name in zip(paths, ids, strict=True):
        records.write_regions(path, MASKS, slide_id=name)
    view = writer.write_tfds_view(folder, KINDS, dict.fromkeys(paths, 2))
    assert view == folder / "tfds"
    assert all(not os.path.isabs(os.readlink(p)) for p in view.iterdir() if p.is_symlink())
    moved = tmp_path / "moved"
    folder.rename(moved)  # relative links survive a move
    examples = list(tfds.builder_from_directory(moved / "tfds").as_data_source("slides"))
    assert [example["slide_id"].decode() for example in examples] == [ids[0]] * 2 + [ids[1]] * 2
    assert examples[1]["index"] == 1
    assert examples[0]["lr"].shape == (8, 8, 3)
    assert examples[1]["lr"].max() == 1
    assert examples[0]["child_mask"].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_features_view_opens_as_tfds(tmp_path, dtype):
    folder = tmp_path / "hr"
    rows = records.rows_of(MASKS)
    path = folder / "a.b.array_record"
    features.write(path, "a.b", rows, dtype=dtype, block=4)
    writer.write_tfds_view(folder, features.row_features(rows, dtype), {path: 2})
    examples = list(tfds.builder_from_directory(folder / "tfds").as_data_source("slides"))
    assert [len(example["embedding"]) for example in examples] == [4, 3]
    joined = np.concatenate([example["embedding"] for example in examples])
    np.testing.assert_array_equal(joined, rows.cast(dtype, "a.b").embedding)
    np.testing.assert_array_equal(np.concatenate([e["xy"] for e in examples]), rows.xy)


def test_a_view_is_replaced_by_its_successor(tmp_path):
    folder = tmp_path / "regions"
    paths = [records.write_regions(folder / f"{name}.array_record", MASKS) for name in "abc"]
    writer.write_tfds_view(folder, KINDS, dict.fromkeys(paths, 2))
    writer.write_tfds_view(folder, KINDS, {paths[1]: 2})
    assert len(tfds.builder_from_directory(folder / "tfds").as_data_source("slides")) == 2
    links = [path for path in (folder / "tfds").iterdir() if path.is_symlink()]
    assert [os.path.basename(os.readlink(link)) for link in links] == ["b.array_record"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("a.array_record", "b.array_record", "c.array_record", "tfds")
    ]


def test_a_view_copied_with_its_links_resolved_has_links_again(tmp_path):
    folder = tmp_path / "regions"
    path = records.write_regions(folder / "a.array_record", MASKS)
    writer.write_tfds_view(folder, KINDS, {path: 2})
    copy = shutil.copytree(folder, tmp_path / "copy")  # as `cp -rL` does
    view = writer.write_tfds_view(copy, KINDS, {copy / path.name: 2})
    assert [link.name for link in view.iterdir() if link.is_symlink()] == [
        "copy-slides.array_record-00000-of-00001"
    ]
    assert len(tfds.builder_from_directory(view).as_data_source("slides")) == 2


def test_a_view_on_a_full_disk_keeps_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "regions"
    path = records.write_regions(folder / "a.array_record", MASKS)
    writer.write_tfds_view(folder, KINDS, {path: 2})

    def refuse(*args, **kwargs):
        raise FULL

    monkeypatch.setattr(writer.tfds.folder_dataset, "write_metadata", refuse)
    with pytest.raises(WorkdirError, match="the disk is full"):
        writer.write_tfds_view(folder, KINDS, {path: 2})
    assert len(tfds.builder_from_directory(folder / "tfds").as_data_source("slides")) == 2
