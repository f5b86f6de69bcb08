"""Which classes patients have, and which ones a model predicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import tasks
from lrmil_jax.report import comparison
from lrmil_jax.tasks import predictions

_SMALL = 8  # letters


def draw(axis: Axes, counts: Int[np.ndarray, "C C"], classes: Sequence[str], *, truth: str) -> None:
    """A matrix of counts, coloured by the row's share; `truth` is what the rows are by."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, classes)) > _SMALL else {}
    axis.set_xticks(range(len(classes)), classes, fontsize=8, **turned)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel(truth, fontsize=8)


def save(
    path: Path,
    tested: pd.DataFrame,
    thresholds: Mapping[tuple[int, str], float],
    titles: Mapping[str, str],
) -> str:
    """A matrix a model of the test patients of all folds.

    Args:
      path: PNG to write.
      tested: test rows of all folds, with their `fold`.
      thresholds: by fold and model, on the probability of the second of two classes, as validation
        patients chose; where one is absent, the most probable class is predicted.
      titles: of the models, by name.

    Returns:
      The caption; "" where the task has no classes, and nothing is drawn.
    """
    task = tasks.of_columns(tested)
    if not task.has_classes:
        return ""
    models = tested.model.unique().tolist()
    side = 1.5 + 0.55 * len(task.classes)
    figure = Figure(figsize=(max(side, 2.4) * len(models), max(side, 2.6)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        counts = count(tested[tested.model == model], thresholds)
        draw(axis, counts, task.classes, truth="true class" if model == models[0] else "")
        axis.set_title(titles.get(model, model), fontsize=9)
    comparison.save_figure(figure, path)
    return f"Test patients of all folds, coloured by the row's share; {_rule(tested, thresholds)}."


def count(
    rows: pd.DataFrame, thresholds: Mapping[tuple[int, str], float]
) -> Int[np.ndarray, "C C"]:
    """Patients by true class (row) and predicted class (column), of a model's rows of all folds."""
    task = tasks.of_columns(rows)
    counts = np.zeros((len(task.classes), len(task.classes)), np.int64)
    for (model, fold), of_fold in rows.groupby(["model", "fold"]):
        _, targets, values = predictions.patients(task, of_fold)
        threshold = thresholds.get((int(fold), str(model)))
        if threshold is None:
            written = task.said(values)["predicted"]
            place = np.array([task.classes.index(str(one)) for one in written])
        else:
            place = (values[:, 1] >= threshold).astype(np.int64)
        np.add.at(counts, (targets[:, 0].astype(np.int64), place), 1)
    return counts


def _rule(tested: pd.DataFrame, thresholds: Mapping[tuple[int, str], float]) -> str:
    asked = set(zip(tested.fold.astype(int), tested.model.astype(str), strict=True))
    given = asked & set(thresholds)
    if not given:
        return "predicted is the most probable class"
    start = "predicted at the threshold of the highest Youden's index on validation patients"
    return start + ("" if given == asked else ", where they chose one, else the most probable one")
