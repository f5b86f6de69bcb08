"""CLAM's tables as they are written: dataset CSV, split CSVs in both forms, results per fold, which
are read too (`data.clam_splits` reads splits).

Folds count from 0 there and from 1 here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_jax import files
from lrmil_jax.data import clam_splits, tables
from lrmil_jax.data.splits import SPLITS
from lrmil_jax.errors import DataError
from lrmil_jax.evals.metrics import PROBABILITY_PREFIX


def write_splits(folder: Path, table: pd.DataFrame, classes: Sequence[str]) -> None:
    """Writes `dataset.csv`, and under `splits/` of every fold `splits_<k>.csv`, its boolean form
    `splits_<k>_bool.csv` and the counts `splits_<k>_descriptor.csv`.

    Args:
      folder: to write into.
      table: with slide_id, patient_id, label (a number) and fold_1 ...
      classes: names of the labels.
    """
    label = table.label.map(dict(enumerate(classes)))
    dataset = {"case_id": table.patient_id, "slide_id": table.slide_id, "label": label}
    files.write_table(folder / "dataset.csv", pd.DataFrame(dataset))
    for column in _fold_columns(table):
        stem = f"splits_{int(column.removeprefix('fold_')) - 1}"
        parts = {name: table.slide_id[table[column] == name].tolist() for name in SPLITS}
        length = max(map(len, parts.values()))
        lists = pd.DataFrame({name: [*ids, *[""] * (length - len(ids))]
                              for name, ids in parts.items()})  # fmt: skip
        lists.insert(0, "", range(length))
        files.write_table(folder / "splits" / f"{stem}.csv", lists)
        there = table[table[column].isin(SPLITS)]
        held = pd.DataFrame({"": there.slide_id} | {n: there[column] == n for n in SPLITS})
        files.write_table(folder / "splits" / f"{stem}_bool.csv", held)
        counts = {
            name: [int(((table[column] == name) & (label == one)).sum()) for one in classes]
            for name in SPLITS
        }
        frame = pd.DataFrame(counts)
        frame.insert(0, "", list(classes))
        files.write_table(folder / "splits" / f"{stem}_descriptor.csv", frame)


def _fold_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table if re.fullmatch(r"fold_\d+", name)]


def write_results(
    folder: Path,
    tested: pd.DataFrame,
    classes: Sequence[str],
    figures: Sequence[Mapping[str, Any]],
) -> None:
    """Writes `fold_<k>.csv` (slide_id, Y, Y_hat, p_0 ...) and `summary.csv`.

    Args:
      folder: to write into.
      tested: rows of one model's `predictions.csv` of all folds, with their `fold`.
      classes: their names.
      figures: a fold each: test_auc, val_auc, test_acc, val_acc.
    """
    for fold, rows in tested.groupby("fold"):
        values = rows[[f"{PROBABILITY_PREFIX}{name}" for name in classes]].to_numpy(np.float64)
        names = {str(name): number for number, name in enumerate(classes)}
        frame = pd.DataFrame(
            {"slide_id": rows.slide_id, "Y": rows.label.astype(str).map(names),
             "Y_hat": values.argmax(1)}
        )  # fmt: skip
        for number in range(len(classes)):
            frame[f"p_{number}"] = values[:, number]
        files.write_table(folder / f"fold_{int(fold) - 1}.csv", frame)
    columns = ("folds", "test_auc", "val_auc", "test_acc", "val_acc")
    summary = pd.DataFrame([{"folds": n, **one} for n, one in enumerate(figures)])
    files.write_table(folder / "summary.csv", summary.reindex(columns=list(columns)))


def read_results(folder: Path, table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """CLAM's `fold_<k>.csv` as rows of `predictions.csv`, so that its models are measured as ours.

    Args:
      folder: that holds them.
      table: with slide_id and patient_id of the slides, such as a label CSV or CLAM's dataset CSV.
      classes: names of the labels, in the order of CLAM's numbers.

    Returns:
      Columns slide_id, patient_id, case_id, model ("clam"), label, prob_<class>, predicted, fold.

    Raises:
      DataError: no such file, one without a column, or of another number of classes.
    """
    found = clam_splits.numbered(folder, r"fold_(\d+)\.csv")
    if not found:
        raise DataError(f"{folder} has no fold_<k>.csv of CLAM; give the folder of its results")
    patients = (
        table.rename(columns={"case_id": "patient_id"}) if "patient_id" not in table else table
    )
    patient = patients.drop_duplicates("slide_id").set_index("slide_id").patient_id
    columns = [f"p_{number}" for number in range(len(classes))]
    parts = []
    for number, path in sorted(found.items()):
        frame = tables.read(path, what="CLAM's results")
        missing = [name for name in ("slide_id", "Y", *columns) if name not in frame]
        if missing or f"p_{len(classes)}" in frame:
            raise DataError(
                f"{path} has the columns {', '.join(frame.columns)}; of {len(classes)} classes "
                f"CLAM's have slide_id, Y, Y_hat, {', '.join(columns)}"
            )
        unknown = frame.slide_id[~frame.slide_id.isin(patient.index)]
        if len(unknown):
            raise DataError(
                f"{path} has slide {unknown.iloc[0]}, whose patient is not in the table"
            )
        values, owner = _numbers(frame, columns, path), frame.slide_id.map(patient)
        rows = {
            "slide_id": frame.slide_id, "patient_id": owner, "case_id": owner, "model": "clam",
            "label": [classes[int(label)] for label in _numbers(frame, ["Y"], path)[:, 0]],
        }  # fmt: skip
        probabilities = {
            f"{PROBABILITY_PREFIX}{name}": values[:, place] for place, name in enumerate(classes)
        }
        predicted = [classes[best] for best in values.argmax(1)]
        parts.append(
            pd.DataFrame(rows | probabilities).assign(predicted=predicted, fold=number + 1)
        )
    return pd.concat(parts, ignore_index=True)


def _numbers(frame: pd.DataFrame, columns: list[str], path: Path) -> np.ndarray:
    for name in columns:
        wrong = np.flatnonzero(pd.to_numeric(frame[name], errors="coerce").isna())
        if len(wrong):
            raise DataError(f"{path}: {name} in line {tables.line(frame, wrong[0])} is no number")
    return frame[columns].to_numpy(dtype=object).astype(np.float64)
