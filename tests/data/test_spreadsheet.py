"""Excel workbooks as label tables, written by openpyxl itself."""

import datetime
import importlib.util
import logging

import pytest

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError

ROWS = (
    ("slide_id", "patient_id", "label", "age", "seen", "share"),
    ("a", 7, "LUAD", 61.0, datetime.datetime(2024, 5, 3), 0.1),
    (None,) * 6,
    (" b ", "007", True, None, datetime.datetime(2024, 5, 3, 12, 30), 1e300),
)


@pytest.fixture
def openpyxl():
    return pytest.importorskip("openpyxl")


@pytest.fixture
def book(openpyxl):
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(row)
    return book


def read(book, tmp_path):
    book.save(tmp_path / "labels.xlsx")
    return tables.read(tmp_path / "labels.xlsx")


def test_cells_are_what_they_show(book, tmp_path):
    frame = read(book, tmp_path)
    assert frame.to_numpy().tolist() == [
        ["a", "7", "LUAD", "61", "2024-05-03", "0.1"],
        ["b", "007", "True", "", "2024-05-03 12:30:00", "1e+300"],
    ]
    assert list(frame) == list(ROWS[0])
    assert [tables.line(frame, row) for row in (0, 1)] == [2, 4]


def test_another_sheet_is_told(book, tmp_path, caplog):
    notes = book.create_sheet("notes")
    assert len(read(book, tmp_path)) == 2
    assert caplog.text == ""
    for row in ROWS:
        notes.append(row)
    with caplog.at_level(logging.WARNING):
        read(book, tmp_path)
    assert "its first sheet, Sheet, is read, and notes is not" in caplog.text


@pytest.mark.parametrize(
    ("cell", "value", "sentence"),
    [
        ("C2", "=A2", "cell C2 is a formula that was never computed; open and save it in Excel"),
        ("C4", "#REF!", "cell C4 is the error #REF!; mend it"),
        ("B1", "slide_id", "has two columns slide_id"),
        ("H4", "note", "row 4 has a cell right of the header's last; name its column"),
    ],
)
def test_what_cannot_be_told_is_refused(book, tmp_path, cell, value, sentence):
    book.active[cell] = value
    with pytest.raises(DataError) as caught:
        read(book, tmp_path)
    assert f"{tmp_path / 'labels.xlsx'}" in str(caught.value)
    assert sentence in str(caught.value)


def test_merged_cells_and_broken_files(book, tmp_path):
    book.active["C4"] = "#N/A"  # a word for no value
    assert read(book, tmp_path).label.tolist() == ["LUAD", "#N/A"]
    book.active.merge_cells("B2:B4")
    with pytest.raises(DataError, match=r"cells B2:B4 are merged, so that most of them are empty"):
        read(book, tmp_path)
    path = tmp_path / "labels.xlsx"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cannot be read as a workbook \(.*\); save it as CSV"):
        tables.read(path)


def test_without_openpyxl_the_way_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (tmp_path / "labels.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        DataError, match=r"needs openpyxl: pip install 'lrmil_jax\[xlsx\]', or save"
    ):
        tables.read(tmp_path / "labels.xlsx")
