"""Tables of slides and patients as text: the one reader of CSVs and workbooks, whoever wrote them.

Cells are separated by commas, semicolons or tabs, and the text is UTF-8, UTF-16 or, where it can be
neither, Windows' Latin-1. A row that does not fit the header is refused with its line: a comma too
many would move every cell behind it into another column, and nobody would be told.
"""

import csv
import difflib
import io
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax import storage
from lrmil_jax.data import spreadsheet
from lrmil_jax.errors import DataError

log = logging.getLogger(__name__)

# Words by which tables say that a cell has no value; a class may still be called so, if
# `data.classes` names it.
NO_VALUE = frozenset(
    (*("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN"),
     *("None", "NULL", "null", "NaT"))
)  # fmt: skip
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_SPREADSHEETS = (".xls", ".ods")  # .xlsx is read
_CODES = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# What other tools call our columns, without case and signs.
_SYNONYMS = {
    "slide_id": ("slide", "wsi", "wsiid", "image", "imageid", "filename", "slidename"),
    "patient_id": ("patient", "case", "caseid", "subject", "subjectid", "casesubmitterid"),
    "label": ("class", "target", "diagnosis", "subtype"),
}


def read(path: Path, *, what: str = "the label CSV") -> pd.DataFrame:
    """All cells of a table as they are written, without blanks at their ends; empty rows and
    columns are left out.

    Args:
      path: a CSV, whose separator its header tells, a TSV (`.tsv`), or an Excel workbook (`.xlsx`,
        see `spreadsheet.rows`).
      what: the table is, for messages.

    Raises:
      DataError: it is not there, is no table, has no rows, a row with more cells than the header,
        or two columns of one name.
    """
    separator, rows = _all_rows(path, what)
    if not rows:
        raise DataError(f"{what} {path} cannot be read as CSV: it is empty")
    (_, header), *rows = rows
    # Spreadsheets break the lines of long names.
    header = [" ".join(name.split()) for name in header[: _last_filled(header)]]
    _refuse_doubles(header, path, what)
    if not rows:
        raise DataError(f"{what} {path} has no rows")
    _refuse_longer(header, rows, separator, path, what)
    width = len(header)
    cells = [[*row, *[""] * (width - len(row))][:width] for _, row in rows]
    names = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    frame = pd.DataFrame(cells, columns=names, dtype=object)
    empty = [name for name, given in zip(names, header, strict=True)
             if not given and (frame[name] == "").all()]  # fmt: skip
    frame = frame.drop(columns=empty)
    lines = [line for line, _ in rows]
    if lines != list(range(2, len(lines) + 2)):
        frame.attrs["lines"] = lines
    return frame


def _all_rows(path: Path, what: str) -> tuple[str | None, list[tuple[int, list[str]]]]:
    """What separates cells (None: a workbook), and lines and cells of all rows that are not
    empty."""
    if path.suffix.lower() in _SPREADSHEETS:
        raise DataError(f"{what} {path} is a spreadsheet; save it as CSV and name that")
    content = _content(path, what)
    if content.startswith(b"PK\x03\x04"):
        return None, spreadsheet.rows(content, path, what)
    separator, text, first = _separator(path, _text(content, path, what))
    try:
        return separator, _rows(text, separator, first)
    except csv.Error as error:
        raise DataError(f"{what} {path} cannot be read as CSV: {error}") from error


def line(table: pd.DataFrame | pd.Series, row: int | np.integer) -> int:
    """The line of the file in which a row of `read` stands."""
    lines = table.attrs.get("lines", ())
    return lines[row] if len(lines) == len(table) else int(row) + 2


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist") from error
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read as CSV: {error.strerror}") from error


def _text(content: bytes, path: Path, what: str) -> str:
    """The file's text, whatever it is encoded in."""
    if content.startswith(b"\xd0\xcf\x11\xe0"):  # of Excel's old format, or encrypted
        raise DataError(f"{what} {path} is a spreadsheet; save it as CSV and name that")
    code = next((code for start, code in _CODES if content.startswith(start)), None)
    if code is None and content[1:2] == b"\0":  # UTF-16 without a mark of its order
        code = "utf-16-le"
    try:
        text = content.decode(code or "utf-8")
    except UnicodeDecodeError as error:
        if code is not None:
            raise DataError(f"{what} {path} cannot be read as CSV: {error}") from error
        text = content.decode("latin-1" if _holes(content) else "cp1252")
        log.warning("%s %s is no UTF-8; it was read as Windows' Latin-1: look at its letters, or "
                    "save it as UTF-8", what, path)  # fmt: skip
    if "\0" in text:
        raise DataError(f"{what} {path} cannot be read as CSV: it is no text")
    return text


def _holes(content: bytes) -> bool:
    """Whether it has a byte that Windows' code leaves undefined."""
    return any(byte in content for byte in (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d"))


def _separator(path: Path, text: str) -> tuple[str, str, int]:
    """What separates cells, the text of the table, and the line in which it begins."""
    said = re.match(r"sep=([,;\t])\r?\n", text)  # as Excel writes and reads it
    if said:
        return said[1], text[said.end() :], 2
    if path.suffix.lower() == ".tsv":
        return "\t", text, 1
    header = next((row for row in text.splitlines() if row.strip()), "")
    bare = re.sub(r'"[^"]*"', "", header)
    return max(_SEPARATORS, key=bare.count), text, 1


def _rows(text: str, separator: str, first: int) -> list[tuple[int, list[str]]]:
    """Lines and cells of all rows that are not empty.

    Raises:
      csv.Error: with the line, such as a quote that is never closed.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    rows, begins = [], first
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((begins, stripped))
            begins = reader.line_num + first
    except csv.Error as error:
        raise csv.Error(f"{error} in the row that begins in line {begins}") from error
    return rows


def _last_filled(cells: Sequence[str]) -> int:
    return max((place + 1 for place, cell in enumerate(cells) if cell), default=0)


def _refuse_doubles(header: list[str], path: Path, what: str) -> None:
    doubles = [name for name in header if name and header.count(name) > 1]
    if doubles:
        raise DataError(f"{what} {path} has two columns {doubles[0]}; rename or remove one")


def _refuse_longer(
    header: list[str],
    rows: list[tuple[int, list[str]]],
    separator: str | None,
    path: Path,
    what: str,
) -> None:
    """Refuses rows with more cells than the header; but all rows alike may end in separators.

    Raises:
      DataError: with the first such line.
    """
    allowed = max(len(header), min(len(cells) for _, cells in rows))
    for number, cells in rows:
        if len(cells) <= allowed and not any(cells[len(header) :]):
            continue
        if separator is None:
            raise DataError(
                f"{what} {path}: row {number} has a cell right of the header's last; name its "
                "column, or take it away"
            )
        raise DataError(
            f"{what} {path}: line {number} has {len(cells)} cells and the header "
            f"{len(header)}; put a cell with a {_SEPARATORS[separator]} in it between double "
            'quotes ("..."), or take the one too many away'
        )


def require_columns(
    frame: pd.DataFrame, names: tuple[str, ...], path: Path, *, what: str = "the label CSV"
) -> None:
    """Refuses a table without some column.

    Raises:
      DataError: naming the columns that are not there, those that are, and what may be meant.
    """
    missing = [name for name in names if name not in frame]
    if missing:
        raise DataError(f"{what} {path} has {no_column(frame, *missing)}")


def no_column(frame: pd.DataFrame, *missing: str) -> str:
    """That a table lacks columns, which it has, and which of them may be meant."""
    near = {name: _near(name, frame) for name in missing}
    hints = [f"rename {one!r} to {name}" for name, one in near.items() if one is not None]
    return (
        f"no column {', '.join(missing)}; its columns are {', '.join(map(str, frame.columns))}"
        f"{': ' if hints else ''}{' and '.join(hints)}"
    )


def _near(name: str, frame: pd.DataFrame) -> str | None:
    """The column that is most likely meant."""
    columns = {re.sub(r"[\W_]+", "", str(column)).casefold(): column for column in frame}
    plain = re.sub(r"[\W_]+", "", name).casefold()
    for word in (plain, *_SYNONYMS.get(name, ())):
        if word in columns:
            return columns[word]
    close = difflib.get_close_matches(plain, columns, n=1, cutoff=0.75)
    return columns[close[0]] if close else None


def one_form(text: str) -> str:
    """The text with composed letters (Unicode's NFC): macOS writes names of files decomposed, and
    both look the same."""
    return unicodedata.normalize("NFC", text)


def existing(path: Path) -> Path:
    """The path, or the one of the same name in Unicode's other form that is there."""
    others = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return path if storage.exists(path) else next(filter(storage.exists, others), path)


def with_blanks(values: pd.Series) -> pd.Series:
    """The text, NaN where a word stands for no value."""
    return values.mask(values.isin(NO_VALUE))


def as_values(text: pd.Series) -> pd.Series:
    """Whole numbers, numbers (to the last bit, NaN where a cell is empty) or truth values, if all
    cells are; else the text, NaN where it is empty."""
    blank = text == ""
    if not blank.any() and text.isin(("True", "False")).all():
        return text == "True"
    numbers = pd.to_numeric(text.mask(blank), errors="coerce")
    if not (numbers.notna() | blank | (text.str.lower() == "nan")).all():
        return text.mask(blank)
    # pandas' own conversion is off by the last bit now and then.
    exact = text.mask(blank, "nan").to_numpy(dtype=object).astype(np.float64)
    whole = not blank.any() and text.str.fullmatch(r"[+-]?\d{1,18}").all()
    return text.astype(np.int64) if whole else pd.Series(exact, text.index, name=text.name)
