"""Predicted against true numbers, of a regression."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import tasks
from lrmil_jax.report import comparison
from lrmil_jax.tasks import predictions

_POINT, _GREY = "#1f5fa8", "#9a9a9a"


def save(path: Path, tested: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Draws a panel a model.

    Args:
      path: PNG to write.
      tested: test rows of all folds, with their `fold`.
      titles: of the models, by name.

    Returns:
      The caption; "" where the task is no regression, and nothing is drawn.
    """
    task = tasks.of_columns(tested)
    if task.name != "regression":
        return ""
    models = tested.model.unique().tolist()
    figure = Figure(figsize=(3.2 * len(models), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(models), squeeze=False, sharex=True, sharey=True)[0]
    for axis, model in zip(axes, models, strict=True):
        for _, rows in tested[tested.model == model].groupby("fold"):
            _, targets, values = predictions.patients(task, rows)
            axis.plot(targets[:, 0], values[:, 0], "o", color=_POINT, ms=3.5, alpha=0.5, mew=0)
        axis.axline((0, 0), slope=1, color=_GREY, lw=0.8, ls=":")
        axis.set_title(titles.get(model, model), fontsize=9)
        axis.set(xlabel="true", ylabel="predicted")
    comparison.save_figure(figure, path)
    return "Test patients of all folds; on the dotted line predictions are right."
