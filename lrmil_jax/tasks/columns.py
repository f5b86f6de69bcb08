"""Columns of a label CSV as text and as numbers; a mistake is told with its line."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from lrmil_jax.errors import DataError


def text(frame: pd.DataFrame, column: str, source: str) -> pd.Series:
    """A column without blanks around its words.

    Raises:
      DataError: it is not there, or a row has nothing in it.
    """
    if column not in frame:
        raise DataError(
            f"the label CSV {source} has no column {column}; "
            f"its columns are {', '.join(frame.columns)} (data.label_column, data.time_column and "
            "data.event_column say which are meant)"
        )
    values = frame[column].str.strip()
    empty = np.flatnonzero(values.isna() | (values == ""))
    if len(empty):
        raise DataError(f"{source} has no {column} in line {empty[0] + 2}")
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
        raise DataError(f"{source}: {column} {values.iloc[row]!r} in line {row + 2} is no number")
    return found
