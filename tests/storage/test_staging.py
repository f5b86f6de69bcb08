"""Copies of objects: fetched once, checked, kept within a size, and never half there."""

import concurrent.futures
import errno
import os
import shutil
import time

import numpy as np
import pytest

from lrmil_jax import storage
from lrmil_jax.data import schema, slide_files, slide_jobs
from lrmil_jax.errors import ConfigError, DataError, SlideError, WorkdirError
from lrmil_jax.patches.open_slides import SlideFiles
from lrmil_jax.patches.origins import Places
from lrmil_jax.storage import objects
from lrmil_jax.storage import staging as copies
from tests.slides.files import write_tiff

URL = "s3://b/slides"


@pytest.fixture
def folder(bucket, staging):
    """Of four slides of 40 bytes each, where 100 have room."""
    for number in range(4):
        bucket.put(f"b/slides/s{number}.svs", bytes([number]) * 40)
    return storage.local_folder(URL, staging)


def staged(folder):
    """Names of what is there under a name that is no record, lock or mark."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in found
                  if not path.name.endswith((".object", ".lock", ".staged")))  # fmt: skip


def test_slides_are_listed_and_not_fetched(folder, bucket):
    found = slide_files.find(folder)
    assert sorted(found) == ["s0", "s1", "s2", "s3"]
    path = found["s1"]
    assert storage.exists(path)
    assert not path.exists()
    assert storage.shown(path) == f"{URL}/s1.svs"
    assert slide_jobs.file_identity(path) == {"size": 40, "sample": bucket.info("b/slides/s1.svs")[
        "ETag"].strip('"')}  # fmt: skip
    assert not bucket.reads


def test_a_slide_is_there_while_it_is_held(folder, bucket):
    with storage.hold(folder / "s1.svs"):
        assert (folder / "s1.svs").read_bytes() == b"\1" * 40
    storage.hold(folder / "s1.svs").close()
    assert bucket.reads == {"b/slides/s1.svs": 4}  # parts of 10 bytes, once


def test_another_host_fetches_what_it_has_not_listed(folder, bucket):
    path = folder / "s1.svs"
    known = storage.record(path)
    shutil.rmtree(known.staging)
    assert not storage.exists(path)
    storage.remember(known, 1.0)
    with storage.hold(path):
        assert path.read_bytes() == b"\1" * 40


def test_no_file_is_fetched_twice_at_a_time(folder, bucket):
    bucket.before_part = lambda *_: time.sleep(0.01)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for held in pool.map(lambda _: storage.hold(folder / "s2.svs"), range(6)):
            held.close()
    assert bucket.reads["b/slides/s2.svs"] == 4


def test_the_least_recently_used_makes_room_and_the_held_stays(folder):
    first = storage.hold(folder / "s0.svs")
    for number in (1, 2):  # 40 + 40, and then s1 must go for s2
        storage.hold(folder / f"s{number}.svs").close()
    assert staged(folder) == ["s0.svs", "s2.svs"]
    first.close()
    os.utime(folder / "s2.svs", (10, 10))
    storage.hold(folder / "s3.svs").close()
    assert staged(folder) == ["s0.svs", "s3.svs"]


def test_no_room(folder, bucket, monkeypatch, staging):
    monkeypatch.setattr(copies, "_PATIENCE", 0)
    with storage.hold(folder / "s0.svs"), storage.hold(folder / "s1.svs"):
        with pytest.raises(SlideError, match=r"s2.svs has no room beside .*raise data.staging_gib"):
            storage.hold(folder / "s2.svs")
        assert staged(folder) == ["s0.svs", "s1.svs"]
    bucket.put("b/large/s.svs", bytes(101))
    with pytest.raises(SlideError, match=r"^s3://b/large/s.svs has .* raise data.staging_gib$"):
        storage.hold(storage.local_folder("s3://b/large", staging) / "s.svs")


def test_what_a_killed_process_left_makes_room(folder):
    left = folder / ".s3.svs.0123abcd.tmp"
    left.write_bytes(bytes(90))
    storage.hold(folder / "s0.svs").close()
    assert staged(folder) == ["s0.svs"]


def test_a_part_that_breaks_off_is_asked_for_again(folder, bucket):
    bucket.short["b/slides/s0.svs"] = 3
    with storage.hold(folder / "s0.svs"):
        assert (folder / "s0.svs").read_bytes() == bytes(40)
    assert bucket.reads["b/slides/s0.svs"] == 4 + 3


def test_an_object_that_always_breaks_off_is_given_up(folder, bucket):
    bucket.short["b/slides/s0.svs"] = -1
    with pytest.raises(SlideError, match=r"s0.svs could not be read in 4 attempts \(5 of 10 bytes"):
        storage.hold(folder / "s0.svs")
    assert bucket.reads["b/slides/s0.svs"] == 4
    assert staged(folder) == []
    bucket.short.clear()
    storage.hold(folder / "s0.svs").close()
    assert staged(folder) == ["s0.svs"]


@pytest.mark.parametrize("changes_at", [None, 20])
def test_an_object_that_is_changed_is_told(folder, bucket, staging, changes_at):
    def change(place, start):
        if start == changes_at:
            bucket.put(place, bytes(41))

    if changes_at is None:
        bucket.put("b/slides/s0.svs", bytes(41))
    bucket.before_part = change
    with pytest.raises(SlideError, match=r"s0.svs was changed after .*then 40 bytes, now 41"):
        storage.hold(folder / "s0.svs")
    assert staged(folder) == []
    storage.forget()
    identity = slide_jobs.file_identity(storage.local_folder(URL, staging) / "s0.svs")
    assert identity["size"] == 41
    with storage.hold(folder / "s0.svs"):
        assert (folder / "s0.svs").stat().st_size == 41


def test_a_copy_of_an_earlier_object_is_fetched_anew(folder, bucket, staging):
    storage.hold(folder / "s0.svs").close()
    bucket.put("b/slides/s0.svs", b"x" * 40)
    (bucket.folder / "b/slides/s1.svs").unlink()
    storage.forget()
    assert sorted(slide_files.find(storage.local_folder(URL, staging))) == ["s0", "s2", "s3"]
    with storage.hold(folder / "s0.svs"):
        assert (folder / "s0.svs").read_bytes() == b"x" * 40


def test_a_wrong_checksum(folder, bucket):
    real = bucket.cat_file
    bucket.cat_file = lambda place, start, end: real(place, start, end).replace(b"\0", b"\1")
    with pytest.raises(SlideError, match=r"s0.svs: what was read has another checksum"):
        storage.hold(folder / "s0.svs")
    assert staged(folder) == []


def test_errors_of_the_storage_and_of_the_disk_are_told_apart(folder, bucket, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bucket, "cat_file", forbidden)
    with pytest.raises(SlideError, match=r"s0.svs may not be read with these credentials"):
        storage.hold(folder / "s0.svs")
    monkeypatch.setattr(objects, "fetch", full)
    with pytest.raises(WorkdirError, match=r"cannot write under .*slides: the disk is full"):
        storage.hold(folder / "s0.svs")
    assert staged(folder) == []


def test_labels(bucket, staging):
    bucket.put("b/labels.csv", b"slide_id\n")
    assert storage.fetched("s3://b/labels.csv", staging).read_text() == "slide_id\n"
    bucket.put("b/more/labels.csv", b"")
    with pytest.raises(DataError, match=r"^s3://b/more is a folder and not a file; give the file$"):
        storage.fetched("s3://b/more", staging)
    with pytest.raises(DataError, match=r"^s3://b/none holds no object; check bucket and path$"):
        storage.local_folder("s3://b/none", staging)


@pytest.mark.parametrize("url", ["http://b/slides", "s3://", "s3:///", "gs://b/../../etc"])
def test_names_that_are_none(url, staging):
    with pytest.raises(ConfigError, match=r"give a folder, s3://bucket/path or gs://bucket/path"):
        storage.local_folder(url, staging)


class NoCredentialsError(Exception):
    pass


class HttpError(Exception):
    """As gcsfs has it."""

    def __init__(self, code):
        super().__init__("Anonymous caller")
        self.code = code


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NoCredentialsError("x"), "s3://b needs credentials, and none were found; give AWS_ACCESS"),
        (HttpError(401), "s3://b needs credentials, and none were found"),
        (HttpError(403), "s3://b may not be read with these credentials"),
        (PermissionError("x"), "s3://b may not be read with these credentials; ask the bucket's"),
        (FileNotFoundError("x"), "s3://b is not there; check bucket and path"),
        (OSError("x"), r"s3://b could not be read in 4 attempts \(x\); check the network"),
    ],
)
def test_a_bucket_that_cannot_be_listed(bucket, staging, error, sentence):
    attempts = []

    def find(*_, **__):
        attempts.append(1)
        raise error

    bucket.find = find
    with pytest.raises(DataError, match=f"^{sentence}"):
        storage.local_folder("s3://b", staging)
    assert len(attempts) == (4 if isinstance(error, OSError) and "4" in sentence else 1)


def test_a_package_that_is_missing(monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def filesystem(*_, **__):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    objects.filesystem.cache_clear()
    with pytest.raises(ConfigError, match=r"gs:// needs gcsfs; pip install 'lrmil_jax\[storage\]'"):
        objects.filesystem("gs")


def test_slides_of_several_files_and_other_files(bucket, staging):
    for name in ("a.mrxs", "a/Slidedat.ini", "b.svs", "c.txt", ".hidden/d.svs", "x/y/e.tif"):
        bucket.put(f"b/mixed/{name}", b"x")
    folder = storage.local_folder("s3://b/mixed", staging)
    listing = slide_files.list_folder(folder)
    assert [path.name for path in listing.slides] == ["b.svs", "e.tif"]
    reasons = {str(one.path.relative_to(folder)): one.reason for one in listing.left_out}
    assert reasons == {
        "a.mrxs": "a slide of several files, which are not read from a bucket; copy them here",
        "a/Slidedat.ini": "belongs to the .mrxs beside its folder",
        "c.txt": "no suffix of a slide (.txt)",
        ".hidden/d.svs": "in a hidden folder",
    }


def test_next_files_are_fetched_while_one_is_read(folder, bucket):
    paths = [folder / f"s{number}.svs" for number in range(4)]

    def wait_for(*names):
        end = time.monotonic() + 10
        while (found := staged(folder)) != list(names) and time.monotonic() < end:
            time.sleep(0.01)
        assert found == list(names)  # not looked at again: the next file may have begun

    with storage.Ahead(paths, count=3) as ahead:
        wait_for("s0.svs", "s1.svs")
        assert bucket.reads["b/slides/s2.svs"] == 0  # 80 of 100 bytes are held
        with storage.hold(paths[0]):
            ahead.finished(paths[0])
            time.sleep(0.3)
            assert staged(folder) == ["s0.svs", "s1.svs"]  # somebody reads it still
        wait_for("s1.svs", "s2.svs")
        for path in paths[1:3]:
            ahead.finished(path)
        wait_for("s2.svs", "s3.svs")
    assert sum(bucket.reads.values()) == 16


def test_ahead_of_files_on_a_disk_does_nothing(tmp_path):
    with storage.Ahead([tmp_path / "a.svs"], count=2) as ahead:
        ahead.finished(tmp_path / "a.svs")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_lets_go_of_slides_that_it_is_done_with(bucket, staging, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "_PATIENCE", 0)
    monkeypatch.setattr(objects, "_PART", 1 << 20)
    grey = np.full((256, 256, 3), 100, np.uint8)
    content = write_tiff(tmp_path / "s.tif", [grey]).read_bytes()
    for number in range(2):
        bucket.put(f"b/slides/s{number}.tif", content)
    room_for_one = storage.Staging(staging.folder, 1.5 * len(content) / 2**30)
    folder = storage.local_folder(URL, room_for_one)
    settings = slide_jobs.TilingSettings(schema.Geometry(hr_mpp=0.5, lr_mpp=1.0, patch_px=64))
    places = Places(np.zeros((1, 2), int), 128, np.ones((1, 2, 2), bool))
    readers = SlideFiles()
    for number in (0, 1, 1, 0):
        path = folder / f"s{number}.tif"
        job = slide_jobs.SlideJob(path.stem, path, None, tmp_path, settings)
        regions, damage, _ = readers.read(job, [0], places, high=False)
        assert not damage
        assert abs(regions[0].images[0].astype(int) - 100).max() < 4
        assert staged(folder) == [path.name]
    readers.close()
    assert bucket.reads == {"b/slides/s0.tif": 2, "b/slides/s1.tif": 1}
