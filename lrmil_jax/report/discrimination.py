"""ROC and precision-recall curves of the test patients, with bands."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import tasks
from lrmil_jax.evals import curves
from lrmil_jax.evals.curves import Curve, Scored
from lrmil_jax.report import comparison
from lrmil_jax.tasks import predictions

_GREY = "#9a9a9a"
_MOST_LINES = 8


def save(path: Path, tested: pd.DataFrame, titles: Mapping[str, str], main: str) -> str:
    """Draws both: of two classes every model, of several classes or findings each against the
    rest, of the main model alone.

    Args:
      path: PNG to write.
      tested: test rows of all folds, with their `fold`.
      titles: of the models, by name.
      main: the model that the run is about.

    Returns:
      The caption; "" where the task has no such curves, and nothing is drawn.
    """
    lines = _lines(tested, titles, main)
    drawn = {name: curves.over_folds(folds) for name, folds in lines.items()}
    drawn = {name: both for name, both in drawn.items() if both}
    if not drawn:
        return ""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    roc, pr = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":")
    for name, both in drawn.items():
        _draw(roc, name, both["roc"])
        _draw(pr, name, both["pr"])
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    pr.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision and recall")
    for axis in (roc, pr):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    roc.legend(fontsize=8, frameon=False, loc="lower right")
    comparison.save_figure(figure, path)
    task = tasks.of_columns(tested)
    about = (
        f"Positive: {task.classes[1]}."
        if len(task.classes) == 2
        else f"{titles.get(main, main)}, each against the rest."
    )
    banded = any(both["roc"].low is not None for both in drawn.values())
    band = (
        f"bands hold 95 % of {curves.DRAWS} draws of patients, point by point"
        if banded
        else f"without bands, as there are fewer than {curves.LEAST_FOR_BAND} patients of a kind"
    )
    return f"Test patients, mean over folds; {band}. {about}"


def _lines(tested: pd.DataFrame, titles: Mapping[str, str], main: str) -> dict[str, list[Scored]]:
    """Each line's name and its folds."""
    task = tasks.of_columns(tested)
    two = len(task.classes) == 2
    several = task.classes if task.has_classes else getattr(task, "names", ())
    if not two and not several:
        return {}
    lines: dict[str, list[Scored]] = {}
    chosen = tested if two else tested[tested.model == main]
    for (model, _), rows in chosen.groupby(["model", "fold"], sort=False):
        names, targets, values = predictions.patients(task, rows)
        who = predictions.drawn(rows, names)
        if two:
            one = Scored(who, targets[:, 0] == 1, values[:, 1])
            lines.setdefault(titles.get(model, model), []).append(one)
            continue
        for place, name in enumerate(several[:_MOST_LINES]):
            target = targets[:, 0] == place if task.has_classes else targets[:, place] == 1
            lines.setdefault(name, []).append(Scored(who, target, values[:, place]))
    return lines


def _draw(axis: Axes, name: str, curve: Curve) -> None:
    (line,) = axis.plot(curves.GRID, curve.mean, lw=1.6, label=name)
    if curve.low is not None:
        axis.fill_between(
            curves.GRID, np.clip(curve.low, 0, 1), np.clip(curve.high, 0, 1),
            color=line.get_color(), alpha=0.13, lw=0,
        )  # fmt: skip
