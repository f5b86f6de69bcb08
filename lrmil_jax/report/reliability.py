"""Reliability diagrams: the share of patients of whom it is so against the probability."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import tasks
from lrmil_jax.evals import calibration
from lrmil_jax.evals.calibration import Forecast
from lrmil_jax.report import comparison
from lrmil_jax.tasks import predictions

_PREDICTED, _TEMPERED, _GREY = "#1f5fa8", "#c77d2e", "#9a9a9a"
Temperatures = Mapping[tuple[int, str], float | None]


def save(
    path: Path, tested: pd.DataFrame, temperatures: Temperatures, titles: Mapping[str, str]
) -> bool:
    """Draws a panel for each model and forecast, the patients of all folds together.

    Args:
      path: PNG to write.
      tested: test rows of all folds, with their `fold`.
      temperatures: by fold and model, as validation patients chose; None or absent: none.
      titles: of the models, by name.

    Returns:
      Whether there was anything to draw: False where the task predicts no probability.
    """
    models = tested.model.unique().tolist()
    panels = {
        model: _forecasts(tested[tested.model == model], model, temperatures) for model in models
    }
    across = max(len(kinds) for kinds in panels.values())
    if not across:
        return False
    # A line of panels for each model, or one line where each has one panel.
    down, along = (1, len(models)) if across == 1 else (len(models), across)
    figure = Figure(figsize=(3.2 * along, 3.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, along, squeeze=False).reshape(len(models), across)
    for line, (model, kinds) in zip(axes, panels.items(), strict=True):
        for axis in line[len(kinds) :]:
            axis.set_visible(False)
        for axis, (name, (as_predicted, tempered)) in zip(line, kinds.items(), strict=False):
            _draw(axis, as_predicted, tempered)
            axis.set_title(f"{titles.get(model, model)}: {name}", fontsize=9)
            axis.set(xlabel="predicted", ylabel="observed", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    comparison.save_figure(figure, path)
    return True


def _forecasts(
    rows: pd.DataFrame, model: str, temperatures: Temperatures
) -> dict[str, tuple[Forecast, Forecast | None]]:
    """Each forecast of one model as predicted and tempered, over all folds; tempered is None where
    a fold has no temperature."""
    parts: dict[int, list[Forecast]] = {}
    tempered: dict[int, list[Forecast]] = {}
    kinds: list[str] = []
    for fold, of_fold in rows.groupby("fold"):
        task = tasks.of_columns(of_fold)
        _, targets, values = predictions.patients(task, of_fold)
        forecasts = task.forecasts(targets, values)
        kinds = kinds or list(forecasts)
        for place, one in enumerate(forecasts.values()):
            parts.setdefault(place, []).append(one)
        temperature = temperatures.get((int(fold), model))
        if temperature is not None:
            again = task.forecasts(targets, task.tempered(values, temperature))
            for place, one in enumerate(again.values()):
                tempered.setdefault(place, []).append(one)
    whole = {place: len(tempered.get(place, ())) == len(ones) for place, ones in parts.items()}
    # Folds part time at other edges: what is drawn together is the same interval of each.
    several = rows.fold.nunique() > 1 and len(kinds) > 1 and "event by" in kinds[0]
    names = [f"event by end of interval {n}" for n in range(1, len(kinds) + 1)]
    return {
        (names if several else kinds)[place]: (
            _joined(ones),
            _joined(tempered[place]) if whole[place] else None,
        )
        for place, ones in parts.items()
    }


def _joined(parts: list[Forecast]) -> Forecast:
    return Forecast(
        *(np.concatenate([getattr(one, name) for one in parts])
          for name in ("probability", "outcome", "weight"))
    )  # fmt: skip


def _draw(axis: Axes, as_predicted: Forecast, tempered: Forecast | None) -> None:
    axis.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":")
    drawn = [(as_predicted, "as predicted", _PREDICTED)]
    drawn += [] if tempered is None else [(tempered, "at temperature", _TEMPERED)]
    for forecast, label, colour in drawn:
        diagram = calibration.reliability(forecast)
        if diagram is None:
            continue
        bounds = np.nan_to_num(
            np.abs(np.stack([diagram.observed - diagram.low, diagram.high - diagram.observed]))
        )
        axis.errorbar(
            diagram.predicted, diagram.observed, bounds, fmt="o-", color=colour, ms=3, lw=1,
            elinewidth=0.7, label=f"{label}, ECE {diagram.error:.3f}",
        )  # fmt: skip
    axis.legend(fontsize=7, frameon=False, loc="upper left")
