"""`predictions.csv`: everything that a model's figures come from, in a file that explains itself.

A row is a slide under a model. `task` says what is predicted, `split` whether the patient is of
the test or of the validation, `fold` which fold's model it is. Rows of validation patients, which
choose thresholds and the temperature, are in `validation.csv` beside it, so that whoever averages
over `predictions.csv` averages over test patients alone. `patient_predictions.csv` has a row a test
patient instead of a slide.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from lrmil_jax import files, tasks
from lrmil_jax.data import splits, subgroups, tables
from lrmil_jax.errors import DataError
from lrmil_jax.tasks import predictions

TEST, VALIDATION = "predictions.csv", "validation.csv"
PATIENTS = "patient_predictions.csv"
_TEXT = (
    "slide_id",
    "slide_ids",
    "patient_id",
    "case_id",
    "pool",
    "model",
    "title",
    "split",
    "task",
    "label",
    "predicted",
)


def described(frame: pd.DataFrame, *, task: str, fold: int, split: str) -> pd.DataFrame:
    """The rows with what they are of."""
    return frame.assign(task=task, fold=fold, split=split)


def sides(
    frames: Sequence[pd.DataFrame], test: Bool[np.ndarray, " slides"], *, task: str, fold: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of test and of validation slides under every model, described.

    Args:
      frames: of each model the rows of all slides, in one order.
      test: which of the slides are test slides; the others are validation slides.
      task, fold: what the rows are of.
    """
    return tuple(
        described(
            pd.concat([frame[rows] for frame in frames], ignore_index=True),
            task=task, fold=fold, split=split,
        )
        for split, rows in (("test", test), ("val", ~test))
    )  # fmt: skip


def write(folder: Path, test: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Writes both files, and the patients of the test, each whole or not at all."""
    files.write_table(folder / VALIDATION, validation)
    write_test(folder, test)


def write_test(folder: Path, test: pd.DataFrame) -> None:
    """Writes the rows of test slides, and of their patients under every model of every fold."""
    patients = [
        predictions.by_patient(tasks.of_columns(rows), rows)
        for _, rows in test.groupby(["fold", "model"], sort=False)
    ]
    files.write_table(folder / PATIENTS, pd.concat(patients or [test], ignore_index=True))
    files.write_table(folder / TEST, test)


def read(path: Path) -> pd.DataFrame:
    """The rows of one file, numbers to the last bit as they were written.

    What another tool leaves out is filled in: `model` "model", `fold` 1, `split` "test", and
    `case_id` by patient or, without `patient_id`, by slide. `pool` is NaN where there is none.

    Raises:
      DataError: there is no such file, it is no table of predictions, or a predicted value is no
        number.
    """
    rows = tables.read(path, what="the table of predictions")
    is_text = rows.columns.isin(_TEXT) | rows.columns.str.startswith(subgroups.PREFIX)
    for name in rows.columns[~is_text]:
        rows[name] = tables.as_values(rows[name])
    for name, value in (("model", "model"), ("fold", 1), ("split", "test")):
        if name not in rows:
            rows[name] = value
    if "case_id" not in rows:
        rows["case_id"] = _cases(rows, path)
    if "pool" in rows:
        rows["pool"] = rows.pool.replace("", np.nan)
    try:
        task = tasks.of_columns(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for name in task.values:
        numbers = pd.to_numeric(rows[name], errors="coerce")
        wrong = np.flatnonzero(~np.isfinite(numbers))
        if len(wrong):
            raise DataError(f"{path}: {name} in line {tables.line(rows, wrong[0])} is no number")
    return rows


def _cases(rows: pd.DataFrame, path: Path) -> pd.Series:
    """As `data.labels` makes them: slides of one patient and class are one case."""
    for name in ("patient_id", "slide_id"):
        if name in rows:
            return splits.cases(rows[name], rows["label"]) if "label" in rows else rows[name]
    raise DataError(f"{path} has none of the columns case_id, patient_id and slide_id")


def read_with_validation(path: Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Test and validation rows: of the file alone where it has both, else of it and of
    `validation.csv` beside it; None without any.

    Raises:
      DataError: see `read`, or the file has no test rows.
    """
    rows = read(path)
    is_validation = rows.split == "val"
    if is_validation.all():
        raise DataError(f"{path} has validation rows alone; give the predictions.csv beside it")
    if is_validation.any():
        return rows[~is_validation].reset_index(drop=True), rows[is_validation].reset_index(
            drop=True
        )
    beside = path.with_name(VALIDATION)
    return rows, read(beside) if beside.is_file() else None
