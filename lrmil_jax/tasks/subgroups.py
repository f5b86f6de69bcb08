"""Figures of subgroups of patients, and by how much they differ from those of all others.

A subgroup that is too small to tell of stays in the table and says so. Many subgroups are many
comparisons: of twenty without any difference, one has an interval that leaves 0.
"""

from collections.abc import Sequence

import pandas as pd

from lrmil_jax.data.subgroups import MISSING, PREFIX, SEVERAL
from lrmil_jax.evals import intervals
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.task import Task

LEAST = 10  # patients, below which no figure is given


def table(task: Task, folds: Sequence[pd.DataFrame]) -> list[dict]:
    """One row a subgroup: those of every `subgroup_<name>` column, sorted by level.

    Args:
      task: of the rows.
      folds: one model's test rows, a frame a fold.

    Returns:
      Rows with `subgroup`, `level`, `patients`, `note` (why figures are undefined, or ""), and
      `metrics`: of each metric `value` (the mean over the folds that define it), `value_interval`,
      and against the patients of all other levels `difference` and `difference_interval`.
    """
    everyone = pd.concat(folds, ignore_index=True)
    made = []
    for column in (name for name in everyone if str(name).startswith(PREFIX)):
        level_of = levels(everyone, column)
        for level in sorted(level_of.unique(), key=lambda name: (name in (MISSING, SEVERAL), name)):
            members = level_of.index[level_of == level]
            sides = [
                (rows[rows.case_id.isin(members)], rows[~rows.case_id.isin(members)])
                for rows in folds
            ]
            row = {"subgroup": column.removeprefix(PREFIX), "level": level}
            made.append(row | _row(task, sides, len(members)))
    return made


def levels(rows: pd.DataFrame, column: str) -> pd.Series:
    """The level of each patient, by `case_id`."""
    named = rows[column].astype(object).where(rows[column].notna() & (rows[column] != ""), MISSING)
    by_patient = named.astype(str).groupby(rows.case_id.to_numpy())
    return by_patient.first().where(by_patient.nunique() == 1, SEVERAL)


def _row(task: Task, sides: list[tuple[pd.DataFrame, pd.DataFrame]], patients: int) -> dict:
    if patients < LEAST:
        nothing = {"value": None, "value_interval": None, "difference": None,
                   "difference_interval": None}  # fmt: skip
        return {
            "patients": patients,
            "note": f"undefined: fewer than {LEAST} patients",
            "metrics": {name: dict(nothing) for name in task.metrics},
        }
    inside, outside = (
        [predictions.figures(task, pair[side]) for pair in sides if len(pair[side])]
        for side in (0, 1)
    )
    metrics = {name: _metric(name, inside, outside) for name in task.metrics if name in inside[0]}
    undefined = metrics[task.headline]["value"] is None
    title = task.titles.get(task.headline, task.headline)
    note = f"{title} undefined: without a class or an event" if undefined else ""
    return {"patients": patients, "note": note, "metrics": metrics}


def _metric(name: str, inside: list[dict], outside: list[dict]) -> dict:
    value, others = (
        intervals.summarise([fold[name] for fold in side]) for side in (inside, outside)
    )
    difference, bounds = intervals.apart(value, others)
    return {
        "value": value.mean,
        "value_interval": value.interval,
        "difference": difference,
        "difference_interval": bounds,
    }
