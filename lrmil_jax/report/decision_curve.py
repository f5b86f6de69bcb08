"""Decision curves: net benefit over the threshold, beside treating all and treating nobody."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import files
from lrmil_jax.report import comparison, table

_SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5)  # thresholds of the table that people read


def save(
    folder: Path, curves: Mapping[str, Sequence[dict]], titles: Mapping[str, str]
) -> list[list[str]]:
    """Writes `decision_curve.png` and `.csv`.

    Args:
      folder: where to.
      curves: of each model the rows of `evaluation.net_benefit`.
      titles: of the models, by name.

    Returns:
      Cells of a short table, the first line being the heading.
    """
    flat = [{"model": model} | table.flat(row) for model, rows in curves.items() for row in rows]
    files.write_table(folder / "decision_curve.csv", pd.DataFrame(flat))
    _plot(folder / "decision_curve.png", curves, titles)
    head = ["model", *(f"at {threshold:g}" for threshold in _SHOWN)]
    return [head, *(_line(titles.get(model, model), rows) for model, rows in curves.items()),
            _line("treat all", next(iter(curves.values())), "all")]  # fmt: skip


def _line(name: str, rows: Sequence[dict], kind: str = "benefit") -> list[str]:
    by_threshold = {row["threshold"]: row for row in rows}
    shown = [by_threshold[threshold] for threshold in _SHOWN]
    return [name, *(table.interval(row[kind], row[f"{kind}_interval"]) for row in shown)]


def _plot(path: Path, curves: Mapping[str, Sequence[dict]], titles: Mapping[str, str]) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    highest = 0.0
    for model, rows in curves.items():
        thresholds = [row["threshold"] for row in rows]
        worth = np.array([row["benefit"] for row in rows], np.float64)
        (line,) = axis.plot(thresholds, worth, lw=1.4, label=titles.get(model, model))
        bounds = [row["benefit_interval"] or (np.nan, np.nan) for row in rows]
        axis.fill_between(thresholds, *np.array(bounds).T, color=line.get_color(), alpha=0.12, lw=0)
        highest = max(highest, np.nanmax(worth))
    rows = next(iter(curves.values()))
    axis.plot([row["threshold"] for row in rows], [row["all"] for row in rows], color="#9a9a9a",
              lw=1, ls="--", label="treat all")  # fmt: skip
    axis.axhline(0, color="#222222", lw=0.8, label="treat nobody")
    # Below nothing, only by how much is of no interest.
    axis.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1),
             ylim=(-0.25 * max(highest, 0.05), 1.15 * max(highest, 0.05)))  # fmt: skip
    axis.legend(fontsize=7, frameon=False)
    comparison.save_figure(figure, path)
