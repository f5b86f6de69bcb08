"""What rows of `predictions.csv` come to: figures per patient, intervals, operating points."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from lrmil_jax.data import subgroups
from lrmil_jax.errors import DataError
from lrmil_jax.evals import intervals, thresholds
from lrmil_jax.tasks.task import POOLINGS, Task

_LEAST_POOLS = 10  # with fewer, nothing can be told of how pools differ


def rows(
    task: Task, model: str, table: pd.DataFrame, values: Float[np.ndarray, "S V"]
) -> pd.DataFrame:
    """One model's rows of `predictions.csv`, one a slide of the cohort's table; `pooling` is told
    where it is not the mean of the values."""
    names = [name for name in ("slide_id", "patient_id", "case_id", "pool") if name in table]
    names += [name for name in table if name.startswith(subgroups.PREFIX)]
    frame = table[names].assign(model=model)
    if task.pooling != POOLINGS[0]:
        frame["pooling"] = task.pooling
    # In float64, which a CSV holds to the last bit.
    values = np.asarray(values, np.float64)
    return frame.assign(**task.truth(table).to_dict("list"), **task.said(values))


def patients(
    task: Task, frame: pd.DataFrame
) -> tuple[np.ndarray, Float[np.ndarray, "P T"], Float[np.ndarray, "P V"]]:
    """Names, targets and values of the patients of one model's rows, in the order of the names; a
    patient's values are made of those of the slides by `Task.pooled`.

    Raises:
      DataError: the slides of a patient have different targets.
    """
    targets = task.targets_of(frame)
    names, place = np.unique(frame.case_id.to_numpy(str), return_inverse=True)
    first = targets[np.unique(place, return_index=True)[1]]
    differing = (targets != first[place]).any(1)
    if differing.any():
        patient = names[place[np.argmax(differing)]]
        raise DataError(
            f"Patient {patient!r} has slides with different labels: metrics are per patient, so "
            "give the patient one label or the slides patient ids of their own."
        )
    return names, first, task.pooled(frame[list(task.values)].to_numpy(np.float64), place)


def by_patient(task: Task, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of patients, in the order of their names, of those of one model's slides.

    Args:
      task: of the rows.
      frame: rows of slides with `slide_id`, `case_id` and the task's values; the truth may be
        missing.

    Returns:
      What all slides of a patient share ("several" where they are of several levels of a
      subgroup), the values as `Task.pooled` makes them with what follows
      from them, `slides`, how many there are, and `slide_ids`, their names with "; " between.
    """
    names, place = np.unique(frame.case_id.to_numpy(str), return_inverse=True)
    wanted = {"patient_id", "case_id", "pool", "model", "title", "task", "fold", "split", "pooling"}
    wanted |= set(task.written)
    shared = [name for name in frame if name in wanted or name.startswith(subgroups.PREFIX)]
    rows = frame.iloc[np.unique(place, return_index=True)[1]][shared].reset_index(drop=True)
    for name in shared:
        if name.startswith(subgroups.PREFIX):  # of a slide, such as its scanner
            differing = frame[name].groupby(place).nunique(dropna=False).to_numpy() > 1
            rows[name] = rows[name].mask(differing, subgroups.SEVERAL)
    values = task.pooled(frame[list(task.values)].to_numpy(np.float64), place)
    listed = frame.slide_id.groupby(place)
    return rows.assign(
        **task.said(values),
        slides=np.bincount(place, minlength=len(names)),
        slide_ids=listed.agg("; ".join).to_numpy(),
    )


def measure(task: Task, frame: pd.DataFrame) -> dict:
    """Figures per patient with their intervals, from one model's rows of `predictions.csv`."""
    names, targets, values = patients(task, frame)
    measured = task.measure(targets, values)
    return {
        "patients": len(names),
        "metrics": {name: measured[name] for name in task.metrics},
        "intervals": intervals.of_one(figures(task, frame)),
    }


def figures(task: Task, frame: pd.DataFrame) -> dict[str, intervals.Figure]:
    """Every metric of one model, from its rows of `predictions.csv`, with what each patient, or
    each pool of fields where there are enough, has to do with it."""
    names, targets, values = patients(task, frame)
    return task.figures(targets, values, drawn(frame, names))


def drawn(frame: pd.DataFrame, names: np.ndarray) -> np.ndarray:
    """Who is drawn with each patient, as intervals take it: the patient alone, or the pool of
    fields where there are enough."""
    patients = pd.Series(names)
    return (patients.map(_pools(frame)) if _pools_are_drawn(frame) else patients).to_numpy(str)


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
    task: Task, validation: pd.DataFrame, test: pd.DataFrame, *, sensitivity: float
) -> dict[str, dict]:
    """What thresholds chosen on validation patients give on those of the test.

    Args:
      task: of both.
      validation, test: one model's rows.
      sensitivity: wanted, `evaluate.sensitivity`.

    Returns:
      Of each threshold of `thresholds.choose` what `thresholds.at` gives on the test, and under
      `validation` on the validation patients; {} where there are not two classes.
    """
    chosen = chosen_thresholds(task, validation, sensitivity=sensitivity)
    if not chosen:
        return {}
    sides = [at_thresholds(task, frame, chosen) for frame in (test, validation)]
    return {name: sides[0][name] | {"validation": sides[1][name]} for name in chosen}


def at_thresholds(
    task: Task, frame: pd.DataFrame, chosen: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """What `thresholds.at` gives of one model's rows at each threshold of two classes, by name."""
    return {name: thresholds.at(*_labelled(task, frame), value) for name, value in chosen.items()}


def chosen_thresholds(
    task: Task, validation: pd.DataFrame, *, sensitivity: float
) -> dict[str, float]:
    """What `thresholds.choose` says of a model's validation rows; {} of other than two classes."""
    if len(task.classes) != 2:
        return {}
    return thresholds.choose(*_labelled(task, validation), sensitivity=sensitivity)


def _labelled(task: Task, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    _, targets, values = patients(task, frame)
    return targets[:, 0].astype(np.int64), values
