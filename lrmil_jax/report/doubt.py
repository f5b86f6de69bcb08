"""Which slides a reader should look at first: those where the model errs, then where it doubts."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from lrmil_jax import tasks


def ordered(tested: pd.DataFrame) -> pd.DataFrame:
    """Slides by what the model's prediction cost against the truth (the loss of the task), most
    first.

    Args:
      tested: one model's test rows of all folds, with their `fold`.

    Returns:
      `fold`, `slide_id`, `loss` and `is_wrong` (None where the task has no classes); a slide that
      several folds tested is there once, as the worst of them has it. Of a task whose loss is of
      all patients together, in the order of the rows, with a loss of NaN.
    """
    parts = []
    for fold, rows in tested.groupby("fold"):
        task = tasks.of_columns(rows)
        loss = _losses(task, rows)
        wrong: list[bool | None] = [None] * len(rows)
        if task.has_classes:
            wrong = (rows.predicted.astype(str) != rows.label.astype(str)).tolist()
        part = pd.DataFrame({"fold": int(fold), "slide_id": rows.slide_id.to_numpy(), "loss": loss})
        parts.append(part.assign(is_wrong=pd.Series(wrong, dtype=object)))
    whole = pd.concat(parts, ignore_index=True)
    whole = whole.sort_values("loss", ascending=False, kind="stable", na_position="last")
    return whole.drop_duplicates("slide_id").reset_index(drop=True)


def _losses(task: tasks.Task, rows: pd.DataFrame) -> Float[np.ndarray, " n"]:
    if task.joint:
        return np.full(len(rows), np.nan)
    targets, values = task.targets_of(rows), rows[list(task.values)].to_numpy(np.float64)
    if task.has_temperature:  # without JAX, which would compile the loss for this alone
        pairs = zip(targets[:, None], values[:, None], strict=True)
        return np.array([task.mean_loss(*pair) for pair in pairs])
    outputs = task.unlink(values).astype(np.float32)
    return np.asarray(task.loss(outputs, targets.astype(np.float32)), np.float64)
