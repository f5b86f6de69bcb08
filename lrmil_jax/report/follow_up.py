"""Kaplan and Meier's curves of the patients whom a model puts at high and at low risk."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax.report import comparison

_GROUPS = (("low risk", "#1f5fa8"), ("high risk", "#c0392b"))


def save(path: Path, tested: pd.DataFrame, titles: Mapping[str, str]) -> dict[str, float]:
    """Draws every model's two groups: patients below and above the median risk of their fold.

    Args:
      path: PNG to write.
      tested: rows of every fold's `predictions.csv` with their `fold`; of a patient the mean risk
        of the slides in each fold.
      titles: of the models, by name.

    Returns:
      p of the log-rank test between the groups, by model.
    """
    from lifelines import KaplanMeierFitter  # late: few runs draw it
    from lifelines.statistics import logrank_test

    models = tested.model.unique().tolist()
    figure = Figure(figsize=(3.6 * len(models), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    p_values = {}
    for axis, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        patients = _patients(tested[tested.model == model])
        sides = [patients[~patients.high], patients[patients.high]]
        p_values[model] = float(
            logrank_test(*(side.time for side in sides), *(side.event for side in sides)).p_value
        )
        for side, (name, colour) in zip(sides, _GROUPS, strict=True):
            fitted = KaplanMeierFitter().fit(side.time, side.event)
            _draw(axis, fitted, f"{name} ({len(side)})", colour)
        axis.set_title(f"{titles[model]}, log-rank p {p_values[model]:.2g}", fontsize=9)
        axis.set(xlabel="time", ylabel="without event", ylim=(0, 1.02))
        axis.legend(fontsize=7, frameon=False)
    comparison.save_figure(figure, path)
    return p_values


def _patients(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a patient and fold, with `high`: a risk above the fold's median."""
    patients = rows.groupby(["fold", "case_id"])[["time", "event", "risk"]].mean().reset_index()
    middle = patients.groupby("fold").risk.transform("median")
    return patients.assign(high=patients.risk > middle, event=patients.event > 0)


def _draw(axis: Axes, fitted, label: str, colour: str) -> None:
    curve, bounds = fitted.survival_function_, fitted.confidence_interval_
    times = curve.index.to_numpy(np.float64)
    axis.step(times, curve.iloc[:, 0], where="post", color=colour, lw=1.6, label=label)
    axis.fill_between(times, bounds.iloc[:, 0], bounds.iloc[:, 1], step="post", color=colour,
                      alpha=0.15, lw=0)  # fmt: skip
