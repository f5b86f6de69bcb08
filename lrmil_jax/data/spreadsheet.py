"""Excel workbooks (.xlsx) as rows of text; what cannot be told of a cell is refused by its name."""

import datetime
import importlib.util
import io
import logging
from pathlib import Path
from typing import Any

from lrmil_jax.errors import DataError, one_line

log = logging.getLogger(__name__)


def rows(content: bytes, path: Path, what: str) -> list[tuple[int, list[str]]]:
    """Lines and cells of all rows of the first sheet that are not empty; whole numbers without a
    decimal point, dates as in ISO 8601.

    Args:
      content: of the file.
      path: of the file; what: the table is; both for messages.

    Raises:
      DataError: openpyxl is not installed, it is no workbook, or a cell has no value that could be
        told: an error, a formula that was never computed, or one that is merged with others.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise DataError(
            f"{what} {path} is a spreadsheet, which needs openpyxl: pip install 'lrmil_jax[xlsx]', "
            "or save it as CSV and name that"
        )
    sheet, formulas = (_first_sheet(content, path, what, values=values) for values in (True, False))
    merged = [str(area) for area in sheet.merged_cells.ranges]
    if merged:
        raise DataError(
            f"{what} {path}: cells {merged[0]} are merged, so that most of them are empty; unmerge "
            "them and fill in each"
        )
    found = []
    for line, (cells, sources) in enumerate(zip(sheet.rows, formulas.rows, strict=True), 1):
        texts = [_text(cell, source, path, what)
                 for cell, source in zip(cells, sources, strict=True)]  # fmt: skip
        if any(texts):
            found.append((line, texts))
    return found


def _first_sheet(content: bytes, path: Path, what: str, *, values: bool) -> Any:
    """The first sheet, with the values of formulas or with the formulas themselves."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(io.BytesIO(content), data_only=values)
    except Exception as error:  # zipfile's, XML's, its own: whatever a broken file brings forth
        raise DataError(
            f"{what} {path} cannot be read as a workbook ({one_line(error)}); save it as CSV and "
            "name that"
        ) from error
    if not book.worksheets:
        raise DataError(f"{what} {path} has no sheet with cells")
    sheet, *others = book.worksheets
    filled = [one.title for one in others if one.max_row > 1]
    if values and filled:
        log.warning("%s %s: its first sheet, %s, is read, and %s is not", what, path, sheet.title,
                    " or ".join(filled))  # fmt: skip
    return sheet


def _text(cell: Any, source: Any, path: Path, what: str) -> str:
    """What a cell shows."""
    value = cell.value
    if cell.data_type == "e" and value != "#N/A":
        raise DataError(f"{what} {path}: cell {cell.coordinate} is the error {value}; mend it")
    if value is None:
        if source.data_type == "f":
            raise DataError(
                f"{what} {path}: cell {cell.coordinate} is a formula that was never computed; open "
                "and save it in Excel or LibreOffice, or fill in its value"
            )
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time()
        return value.date().isoformat() if is_day else value.isoformat(sep=" ")
    return str(value).strip()
