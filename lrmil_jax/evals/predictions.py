"""What rows of `predictions.csv` come to: metrics per patient, intervals, operating points."""

import numpy as np
import pandas as pd

from lrmil_jax.evals import intervals, metrics, thresholds

_LEAST_POOLS = 10  # with fewer, nothing can be told of how pools differ


def patients(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a patient (`metrics.by_patient`), labels as numbers, of one arm's rows of
    `predictions.csv`."""
    columns = metrics.probability_columns(frame)
    names = [column.removeprefix(metrics.PROBABILITY_PREFIX) for column in columns]
    labels = frame.label.map({name: index for index, name in enumerate(names)})
    return metrics.by_patient(frame.assign(label=labels, patient_id=frame.case_id))


def measure(frame: pd.DataFrame) -> dict:
    """Metrics per patient with their intervals, from one arm's rows of `predictions.csv`."""
    labels, probabilities = metrics.arrays(patients(frame))
    return {
        "patients": len(labels),
        "metrics": metrics.compute(labels, probabilities),
        "intervals": intervals.of_one(figures(frame)),
    }


def figures(frame: pd.DataFrame) -> dict[str, intervals.Figure]:
    """Every metric of one model, from its rows of `predictions.csv`, with what each patient, or
    each pool of fields where there are enough, has to do with it."""
    table = patients(frame)
    drawn = table.patient_id
    if _pools_are_drawn(frame):
        drawn = drawn.map(_pools(frame))
    return intervals.figures(*metrics.arrays(table), drawn.to_numpy(str))


def _pools(frame: pd.DataFrame) -> pd.Series:
    """The pool of each patient's slides, by `case_id`; the patient's name without any."""
    pool = frame["pool"] if "pool" in frame else pd.Series(np.nan, frame.index)
    return pool.astype(object).fillna(frame.case_id).astype(str).groupby(frame.case_id).first()


def _pools_are_drawn(frame: pd.DataFrame) -> bool:
    return "pool" in frame and _pools(frame).nunique() >= _LEAST_POOLS


def pool_note(frame: pd.DataFrame) -> str | None:
    """What shared pools of fields mean for the intervals; None where no patients share one.

    Args:
      frame: rows of all folds, with their `fold`.
    """
    if not _pools(frame).duplicated().any():
        return None
    start = "Slides composed of one pool of fields are not independent"
    if all(_pools_are_drawn(rows) for _, rows in frame.groupby("fold")):
        return f"{start}: intervals are over pools, not patients."
    return f"{start}: with fewer than {_LEAST_POOLS} pools, the intervals are too narrow."


def operating_points(
    validation: pd.DataFrame, test: pd.DataFrame, *, sensitivity: float
) -> dict[str, dict]:
    """What thresholds chosen on validation patients give on those of the test.

    Args:
      validation, test: one arm's rows.
      sensitivity: wanted, `evaluate.sensitivity`.

    Returns:
      Of each threshold of `thresholds.choose` what `thresholds.at` gives on the test, and under
      `validation` on the validation patients; {} where there are not two classes.
    """
    sides = [metrics.arrays(patients(frame)) for frame in (validation, test)]
    chosen = thresholds.choose(*sides[0], sensitivity=sensitivity)
    return {
        name: thresholds.at(*sides[1], value) | {"validation": thresholds.at(*sides[0], value)}
        for name, value in chosen.items()
    }
