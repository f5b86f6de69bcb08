"""Tables of slides and patients as text: CSV, or TSV by its suffix."""

from pathlib import Path

import pandas as pd

from lrmil_jax.errors import DataError

# Words by which tables say that a cell has no value; a class may still be called so, if
# `data.classes` names it.
NO_VALUE = frozenset(
    (*("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN"),
     *("None", "NULL", "null", "NaT"))
)  # fmt: skip


def read(path: Path, *, what: str = "the label CSV") -> pd.DataFrame:
    """All cells of a table as they are written, without blanks at their ends.

    Args:
      path: a CSV, or a TSV (`.tsv`).
      what: the table is, for messages.

    Raises:
      DataError: it is not there, is no table, or has no rows.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{what} {path} is a spreadsheet; save it as CSV and name that")
    try:
        frame = pd.read_csv(
            path,
            dtype=str,
            sep="\t" if path.suffix.lower() == ".tsv" else ",",
            skipinitialspace=True,
            keep_default_na=False,
        )
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{what} {path} cannot be read: {reason}") from error
    if frame.empty:
        raise DataError(f"{what} {path} has no rows")
    return frame.fillna("").map(str.strip)


def require_columns(
    frame: pd.DataFrame, names: tuple[str, ...], path: Path, *, what: str = "the label CSV"
) -> None:
    """Refuses a table without some column.

    Raises:
      DataError: naming the columns that are not there, and those that are.
    """
    missing = [name for name in names if name not in frame]
    if missing:
        raise DataError(
            f"{what} {path} has no column {', '.join(missing)}; "
            f"its columns are {', '.join(frame.columns)}"
        )


def with_blanks(values: pd.Series) -> pd.Series:
    """The text, NaN where a word stands for no value."""
    return values.mask(values.isin(NO_VALUE))
