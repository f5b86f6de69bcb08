"""Subgroups of patients by a column of the label CSV, such as site, scanner, sex or age."""

import itertools

import numpy as np
import pandas as pd

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError

PREFIX = "subgroup_"  # of the columns of tables and of `predictions.csv`
SEVERAL = "several"  # the level of a patient whose slides are of different levels
MISSING = "missing"
_MOST = 6  # different numbers that are levels as they are; more are parted into quarters


def levels(values: pd.Series, patients: pd.Series) -> pd.Series:
    """The level of each row, as text.

    A column of more than six different numbers becomes quarters of the patients, named by their
    bounds; every other column's words are its levels. A row without a value has the level
    "missing".

    Args:
      values: text as it stands in a CSV.
      patients: of the rows: each counts once in the quarters, with the mean of his or her numbers.
    """
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce")
    named = text.where(text != "", MISSING)
    given = text != ""
    if not given.any() or numbers[given].isna().any() or numbers.nunique() <= _MOST:
        return named
    edges = np.unique(
        numbers.groupby(patients.to_numpy()).mean().dropna().quantile([0.25, 0.5, 0.75])
    )
    names = _quarters(edges)
    place = np.searchsorted(edges, numbers.fillna(0))
    return pd.Series([names[one] for one in place], values.index).where(given, MISSING)


def _quarters(edges: np.ndarray) -> list[str]:
    bounds = [f"{edge:g}" for edge in edges]
    between = [f"above {low} to {high}" for low, high in itertools.pairwise(bounds)]
    names = [f"up to {bounds[0]}", *between, f"above {bounds[-1]}"]
    # Numbered, so that they stand in their order wherever names are sorted.
    return [f"Q{number}: {name}" for number, name in enumerate(names, 1)]


def columns(
    frame: pd.DataFrame, names: tuple[str, ...], patients: pd.Series, source: str
) -> pd.DataFrame:
    """`subgroup_<name>` of each row of a CSV.

    Args:
      frame: the rows, text as it stands there.
      names: of the CSV's columns.
      patients: of the rows.
      source: of the CSV, for messages.

    Raises:
      DataError: a column is not there.
    """
    absent = [name for name in names if name not in frame]
    if absent:
        raise DataError(
            f"{source} has {tables.no_column(frame, absent[0])} (evaluate.subgroups names what to "
            "make subgroups of)"
        )
    return pd.DataFrame(
        {f"{PREFIX}{name}": levels(frame[name], patients) for name in names}, frame.index
    )
