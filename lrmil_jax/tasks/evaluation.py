"""Everything that a model's rows of `predictions.csv` say: the same for `metrics.json` of a run and
for `python -m lrmil_jax.evals`."""

import numpy as np
import pandas as pd

from lrmil_jax.evals import calibration, decision, intervals
from lrmil_jax.evals.intervals import Figure
from lrmil_jax.tasks import predictions, subgroups
from lrmil_jax.tasks.task import Task


def evaluate(
    task: Task, test: pd.DataFrame, validation: pd.DataFrame | None, *, sensitivity: float
) -> dict:
    """All figures of one model in one fold.

    Args:
      task: of the rows (`tasks.of_columns`).
      test, validation: the model's rows; without validation rows nothing is chosen on them.
      sensitivity: wanted of a threshold, `evaluate.sensitivity`.

    Returns:
      `patients`, `metrics` and their `intervals`, and as far as the rows tell them the `title` and
      the median of `patches` a slide; `validation`, the same of validation patients;
      `thresholds`, see `predictions.operating_points`; `calibration`, see there; `net_benefit`, of
      two classes, see there; and `subgroups`, see `subgroups.table`.
    """
    measured = predictions.measure(task, test)
    if "title" in test:
        measured["title"] = test.title.iloc[0]
    if "patches" in test and test.patches.notna().all():
        measured["patches"] = float(test.patches.median())
    if validation is not None:
        measured["validation"] = predictions.measure(task, validation)
        measured["thresholds"] = predictions.operating_points(
            task, validation, test, sensitivity=sensitivity
        )
    measured["calibration"] = calibration_of(task, test, validation)
    measured["net_benefit"] = net_benefit(task, [test])
    measured["subgroups"] = subgroups.table(task, [test])
    return measured


def calibration_of(task: Task, test: pd.DataFrame, validation: pd.DataFrame | None) -> dict:
    """Calibration on test patients, as predicted and at the temperature of validation patients.

    Returns:
      `bins`, their number, of equal mass; `as_predicted`, see `Task.calibration`; of tasks with a
      temperature also `temperature` (None where validation patients do not tell one) and, where
      there is one, `tempered` and `tempered_loss`, the same at it and the mean loss.
    """
    names, targets, values = predictions.patients(task, test)
    patients = predictions.drawn(test, names)
    calibrated: dict = {
        "bins": calibration.BINS,
        "as_predicted": task.calibration(targets, values, patients),
    }
    if task.has_temperature and validation is not None:
        calibrated["temperature"] = temperature(task, validation)
        if calibrated["temperature"] is not None:
            values = task.tempered(values, calibrated["temperature"])
            calibrated["tempered"] = task.calibration(targets, values, patients)
            calibrated["tempered_loss"] = task.mean_loss(targets, values)
    return calibrated


def temperature(task: Task, validation: pd.DataFrame) -> float | None:
    """The temperature of least loss on validation patients; None where they do not tell, or where
    the task has none."""
    if not task.has_temperature:
        return None
    _, targets, values = predictions.patients(task, validation)
    return calibration.temperature(
        lambda value: task.mean_loss(targets, task.tempered(values, value))
    )


def net_benefit(task: Task, folds: list[pd.DataFrame]) -> list[dict]:
    """The decision curve of one model: one row a threshold of `decision.THRESHOLDS`.

    Args:
      task: of the rows.
      folds: the model's test rows, a frame a fold.

    Returns:
      Rows with `threshold` and, the mean over folds, the model's `benefit`, that of treating `all`,
      and how much the model is worth `beyond` the better of treating all and nobody, each with its
      `_interval`; none of a task without two classes.
    """
    if len(task.classes) != 2:
        return []
    tests = []
    for rows in folds:
        names, targets, values = predictions.patients(task, rows)
        tests.append((targets[:, 0] == 1, values[:, 1], predictions.drawn(rows, names)))
    curve = []
    for threshold in decision.THRESHOLDS.tolist():
        figures = [decision.figures(*test, threshold=threshold) for test in tests]
        curve.append({"threshold": threshold} | _summaries(figures))
    return curve


def _summaries(figures: list[dict[str, Figure]]) -> dict:
    row: dict = {}
    for name in figures[0]:
        over_folds = intervals.summarise([one[name] for one in figures])
        row |= {name: over_folds.mean, f"{name}_interval": over_folds.interval}
    return row


def over_folds(task: Task, tested: pd.DataFrame) -> dict:
    """One model's metrics over folds.

    Args:
      task: of the rows.
      tested: the model's test rows of all folds, with their `fold`.

    Returns:
      Of each metric the mean over folds, `<name>_sd` over folds and the `<name>_interval` of the
      mean (`intervals.summarise`); `headline`, the one that stands for the task, its
      `headline_title`, `<headline>_folds`, how many folds define it, and `<headline>_pooled`, that
      of all folds' predictions taken as one model's.
    """
    title = task.titles.get(task.headline, task.headline)
    folds = [predictions.figures(task, rows) for _, rows in tested.groupby("fold")]
    row: dict = {"headline": task.headline, "headline_title": title}
    for name in task.metrics:
        over = intervals.summarise([fold[name] for fold in folds])
        row |= {name: over.mean, f"{name}_sd": over.sd, f"{name}_interval": over.interval}
        if name == task.headline:
            row[f"{name}_folds"] = over.count
    each_fold = [predictions.patients(task, rows)[1:] for _, rows in tested.groupby("fold")]
    pooled = task.measure(*(np.concatenate(part) for part in zip(*each_fold, strict=True)))
    return row | {f"{task.headline}_pooled": pooled[task.headline]}
