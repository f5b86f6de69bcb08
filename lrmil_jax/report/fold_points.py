"""The headline of every fold beside the mean and its interval: how much folds differ."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import tasks
from lrmil_jax.report import comparison
from lrmil_jax.tasks import predictions

_INK, _POINT, _GREY = "#222222", "#1f5fa8", "#9a9a9a"
_BY_CHANCE = ("AUC", "C-index", "mean AUC")


def save(path: Path, rows: Sequence[dict], tested: pd.DataFrame) -> str:
    """Draws a line a model.

    Args:
      path: PNG to write.
      rows: of the result table (`results.result_rows`).
      tested: test rows of all folds, with their `fold`.

    Returns:
      The caption; "" where the table says all there is, as there is one fold, and nothing is drawn.
    """
    if rows[0]["folds"] < 2:
        return ""
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    name, title = rows[0]["headline"], rows[0]["headline_title"]
    for place, row in enumerate(rows):
        points = of_folds(tested[tested.model == row["model"]])
        axis.plot(points, [place] * len(points), "o", color=_POINT, ms=5, alpha=0.55, mew=0)
        if row.get(f"{name}_interval") is not None:
            axis.plot(row[f"{name}_interval"], [place] * 2, color=_INK, lw=1.2)
        if row[name] is not None:
            axis.plot(row[name], place, "|", color=_INK, ms=13, mew=1.8)
    if title in _BY_CHANCE:
        axis.axvline(0.5, color=_GREY, lw=0.8, ls=":")
    axis.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"test {title}")
    comparison.save_figure(figure, path)
    return f"Test {title} of each fold (points), their mean and its 95 % interval (line)."


def of_folds(tested: pd.DataFrame) -> list[float]:
    """The headline of each fold that defines it, of one model's rows."""
    task = tasks.of_columns(tested)
    values = []
    for _, rows in tested.groupby("fold"):
        _, targets, predicted = predictions.patients(task, rows)
        values.append(task.measure(targets, predicted)[task.headline])
    return [value for value in values if value is not None]
