"""Which slides a reader should look at first: those where the model errs, then where it doubts."""

import numpy as np
import pandas as pd

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
        loss = np.full(len(rows), np.nan)
        if not task.joint:
            values = rows[list(task.values)].to_numpy(np.float64)
            outputs = task.unlink(values).astype(np.float32)
            loss = np.asarray(task.loss(outputs, task.targets_of(rows).astype(np.float32)))
        wrong: list[bool | None] = [None] * len(rows)
        if task.has_classes:
            wrong = (rows.predicted.astype(str) != rows.label.astype(str)).tolist()
        part = pd.DataFrame({"fold": int(fold), "slide_id": rows.slide_id.to_numpy(), "loss": loss})
        parts.append(part.assign(is_wrong=pd.Series(wrong, dtype=object)))
    whole = pd.concat(parts, ignore_index=True)
    whole = whole.sort_values("loss", ascending=False, kind="stable", na_position="last")
    return whole.drop_duplicates("slide_id").reset_index(drop=True)
