"""Columns of a label CSV as text and as numbers; a mistake is told with its line."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError


def text(
    frame: pd.DataFrame, column: str, source: str, *, classes: tuple[str, ...] = ()
) -> pd.Series:
    """A column without blanks around its words.

    Args:
      frame: the CSV's rows.
      column: to read.
      source: of the CSV, for messages.
      classes: words that are values though they stand for none elsewhere, such as None.

    Raises:
      DataError: it is not there, or a row has nothing in it or a word that stands for no value.
    """
    if column not in frame:
        raise DataError(
            f"the label CSV {source} has {tables.no_column(frame, column)} (data.label_column, "
            "data.time_column and data.event_column say which are meant)"
        )
    values = frame[column].str.strip()
    empty = np.flatnonzero(values.isna() | (values == ""))
    if len(empty):
        raise DataError(f"{source} has no {column} in line {tables.line(frame, empty[0])}")
    no_value = np.flatnonzero(values.isin(tables.NO_VALUE - set(classes)))
    if len(no_value):
        row = no_value[0]
        raise DataError(
            f"{source}: {column} {values.iloc[row]!r} in line {tables.line(frame, row)} stands "
            "for no value; give one, take the row out, or name it in data.classes if a class is "
            "called so"
        )
    return values


def numbers(frame: pd.DataFrame, column: str, source: str) -> Float[np.ndarray, " S"]:
    """A column of finite numbers.

    Raises:
      DataError: see `text`, or a value is no finite number.
    """
    values = text(frame, column, source)
    found = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"{source}: {column} {values.iloc[row]!r} in line {tables.line(frame, row)} is no "
            "number"
        )
    return found
