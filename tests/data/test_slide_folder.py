"""Folders of slides as they are: what is a slide is read, and all else has its reason."""

import os

import pandas as pd
import pytest

from lrmil_jax.data import slide_files, slide_folder
from lrmil_jax.errors import DataError

MESS = {
    "a.svs": "",
    "deep/er/b.tiff": "",
    "c.mrxs": "",
    "c/Data0001.dat": "belongs to the .mrxs",
    "olympus.vsi": "Olympus",
    "_olympus_/stack1/frame_t.ets": "Olympus",
    "_olympus_/stack1/frame.tif": "Olympus",
    "._a.svs": "macOS",
    ".hidden.tif": "hidden file",
    ".thumbs/x.tif": "hidden folder",
    ".Trash-1000/files/old.svs": "trash",
    "$RECYCLE.BIN/gone.svs": "trash",
    "__MACOSX/._a.svs": "trash",
    "scan.zip": "archive",
    "photo.jpg": "picture",
    "half.svs.part": "unfinished",
    "notes.txt": "no suffix of a slide (.txt)",
    "readme": "no suffix of a slide (none)",
    "new.kfb": "convert",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "slides"
    for name in MESS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_every_file_is_a_slide_or_has_its_reason(folder, caplog):
    listing = slide_files.list_folder(folder)
    slides = {path.relative_to(folder).as_posix() for path in listing.slides}
    assert slides == {name for name, reason in MESS.items() if not reason}
    reasons = {one.path.relative_to(folder).as_posix(): one.reason for one in listing.left_out}
    assert reasons.keys() | slides == MESS.keys()
    for name, reason in reasons.items():
        assert MESS[name] in reason, name
    assert list(slide_files.find(folder)) == ["a", "c", "b"]
    assert "15 files were left out: 3 x a slide of Olympus" in caplog.text
    assert "3 x in a folder of trash" in caplog.text


def test_links_are_followed_and_loops_end(tmp_path, folder):
    store = tmp_path / "store"
    (store / "more").mkdir(parents=True)
    (store / "more" / "d.svs").write_bytes(b"x")
    (folder / "linked").symlink_to(store)
    (store / "more" / "up").symlink_to(folder)  # a loop
    (folder / "0_deep").symlink_to(folder / "deep")
    (folder / "e.tif").symlink_to(store / "more" / "d.svs")
    (folder / "copy").mkdir()
    (folder / "copy" / "a.svs").symlink_to(folder / "a.svs")  # one file by one name twice
    (folder / "lost.svs").symlink_to(tmp_path / "nowhere.svs")
    found = slide_files.find(folder)
    assert found.keys() == {"a", "b", "c", "d", "e"}
    assert found["a"] == folder / "a.svs"
    assert found["b"] == folder / "deep/er/b.tiff"
    reasons = {one.path: one.reason for one in slide_files.list_folder(folder).left_out}
    assert reasons[folder / "lost.svs"] == "a link to nothing"
    for name in ("linked/more/up", "0_deep"):
        assert reasons[folder / name] == "a link to a folder that was read already"


def test_two_slides_of_one_name_are_refused_if_they_matter(folder):
    (folder / "deep" / "a.tif").write_bytes(b"another")
    with pytest.raises(DataError, match="two slide files are called a"):
        slide_files.find(folder)
    assert "b" in slide_files.find(folder, {"b"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_told(folder):
    (folder / "deep").chmod(0)
    try:
        reasons = {one.path: one.reason for one in slide_files.list_folder(folder).left_out}
    finally:
        (folder / "deep").chmod(0o700)
    assert "Permission denied" in reasons[folder / "deep"]


def test_the_list_names_slides_that_no_table_lists_too(tmp_path, folder):
    listing = slide_files.list_folder(folder)
    table = tmp_path / "left_out.csv"
    slide_folder.write(table, folder, listing, [folder / "a.svs"], "labels.csv")
    frame = pd.read_csv(table).set_index("path").reason
    assert len(frame) == len(MESS) - 1
    assert frame["c.mrxs"] == frame["deep/er/b.tiff"] == "not listed in labels.csv"
