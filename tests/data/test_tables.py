"""Tables as people make them: read as they are meant, or refused with the line."""

import codecs

import pytest

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError

PLAIN = "slide_id,patient_id,label,note\na,p1,LUAD,none\nb,p2,LUSC,\n"
ROWS = [["a", "p1", "LUAD", "none"], ["b", "p2", "LUSC", ""]]


def read(tmp_path, content, name="labels.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tables.read(path)


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),  # old Macs
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        PLAIN.replace(",", ", ").replace("\n", " \n"),
        PLAIN.replace("none\n", "none,\n").replace("LUSC,\n", "LUSC,,\n"),
        PLAIN.replace("note\n", "note,\n"),
        PLAIN.replace("\n", ",,\n"),
        PLAIN.replace("LUSC,\n", "LUSC\n"),  # Excel leaves trailing empty cells away
        PLAIN + ",,,\n\n  \n,,,,,,\n",
        "\n" + PLAIN.replace("a,p1", "\n,,,\na,p1"),
        '"slide_id ","patient_id","label",note\n"a","p1","LUAD",none\n"b","p2","LUSC",""\n',
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    ],
)
def test_one_table_however_it_is_written(tmp_path, content):
    frame = read(tmp_path, content)
    assert frame.columns.tolist() == ["slide_id", "patient_id", "label", "note"]
    assert frame.to_numpy().tolist() == ROWS


def test_letters_that_are_no_utf8_are_told(tmp_path, caplog):
    frame = read(tmp_path, PLAIN.replace("none", "Müller").encode("latin-1"))
    assert frame.note[0] == "Müller"
    assert "no UTF-8" in caplog.text
    assert read(tmp_path, PLAIN.replace("none", "Müller")).note[0] == "Müller"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        # A comma too many would move the cells behind it.
        (PLAIN + "c,p3,LUAD,left, then right\n", r"line 4 has 5 cells and the header 4; put a"),
        (PLAIN.replace("p1,", "p1,,").replace("none", ""), r"line 2 has 5 cells"),
        ("slide_id,label\na,p1,x\nb,p2,y\n", r"line 2 has 3 cells and the header 2"),
        (PLAIN.replace(",", ";") + "c;p3;LUAD;l; r\n", "cell with a semicolon in it"),
        (PLAIN.replace("none", '"none'), r"row that begins in line 2"),
        (PLAIN.replace("none", '"no"ne'), r"row that begins in line 2"),
        ("slide_id,label,label\na,b,c\n", "two columns label"),
        ("slide_id,label\n,\n\n", "has no rows"),
        (",,\n", "is empty"),
        (b"\x89PNG\r\n\0\0", "it is no text"),
        (
            b"PK\x03\x04 a workbook",
            "cannot be read as a workbook|a spreadsheet, which needs openpyxl",
        ),
        (b"\xd0\xcf\x11\xe0 an old one", "is a spreadsheet; save it as CSV"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(tmp_path, content, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "labels.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_are_those_of_the_file(tmp_path):
    frame = read(tmp_path, 'slide_id,note\n\na,"two\nlines"\n,,\nb,x\n')
    assert [tables.line(frame, row) for row in (0, 1)] == [3, 6]
    assert tables.line(frame.note, 1) == 6
    assert tables.line(read(tmp_path, PLAIN), 1) == 3


@pytest.mark.parametrize(
    ("column", "wanted"),
    [("Slide_ID", "slide_id"), ("slide id", "slide_id"), ("slideid", "slide_id"),
     ("slide", "slide_id"), ("case_id", "patient_id"), ("Patient ID", "patient_id"),
     ("patientid", "patient_id"), ("Label", "label"), ("diagnosis", "label")],
)  # fmt: skip
def test_a_near_miss_is_suggested(tmp_path, column, wanted):
    frame = read(tmp_path, f"{column},zzz\na,b\n")
    with pytest.raises(DataError, match=f"no column {wanted}; .*: rename '{column}' to {wanted}"):
        tables.require_columns(frame, (wanted,), tmp_path)
    with pytest.raises(DataError, match=r"its columns are \w.*, zzz$"):
        tables.require_columns(frame, ("fold_1",), tmp_path)


def test_values_are_numbers_only_where_all_are(tmp_path):
    text = "whole,real,gaps,truth,words,none\n1,0.1,,True,1,\n-2,1e-300,2,False,b,\n"
    frame = read(tmp_path, text + "3,0.30000000000000004,nan,True,,\n").apply(tables.as_values)
    assert frame.dtypes.astype(str).tolist() == ["int64", "float64", "float64", "bool", "object",
                                                 "float64"]  # fmt: skip
    assert frame.real.tolist() == [0.1, 1e-300, 0.1 + 0.2]
    assert frame.gaps.isna().tolist() == [True, False, True]
    assert frame.words.isna().tolist() == [False, False, True]


def test_names_of_columns_are_one_line(tmp_path):
    frame = read(tmp_path, 'slide_id,"Time to\nevent"," label "\na,3,x\n')
    assert list(frame) == ["slide_id", "Time to event", "label"]
    with pytest.raises(DataError, match="its columns are slide_id, Time to event, label"):
        tables.require_columns(frame, ("fold_1",), tmp_path)
