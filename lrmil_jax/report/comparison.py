"""Models side by side over several seeds: a table, a plot, and what each setting does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax import files
from lrmil_jax.report import table

_INK, _GREY, _TEST, _VALIDATION = "#222222", "#9a9a9a", "#1f5fa8", "#c77d2e"


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """The table as shown, the first line being the heading; rows are `studies.results`' ones."""
    reference = rows[0]["reference"]
    head = [
        "model",
        f"{rows[0]['title']} mean ± SD [95 %]",
        "lowest",
        f"{reference} minus it [95 %]",
        "ahead",
    ]
    head += ["patches/slide"]
    timed = any(row.get(f"seconds_{table.PHASES[0]}") is not None for row in rows)
    lesions = any(row.get("attention_auc") is not None for row in rows)
    head += [f"{phase.replace('_', '+')} s" for phase in table.PHASES] if timed else []
    head += ["attention AUC", "Dice", "best Dice possible"] if lesions else []
    return [head, *(_line(row, timed, lesions) for row in rows)]


def _line(row: dict, timed: bool, lesions: bool) -> list[str]:
    bounds = row["figure_low"], row["figure_high"]
    line = [row["model"], table.mean_and_spread(row["figure_mean"], row["figure_sd"], bounds)]
    line += [table.number(row["figure_smallest"])]
    if row.get("gain_mean") is None:
        line += ["-", "-"]
    else:
        line += [
            table.difference(row["gain_mean"], (row["gain_low"], row["gain_high"])),
            f"{row['gain_above_zero']} of {row['gain_count']}",
        ]
    line += [table.cell(row.get("patches"), 0)]
    line += [table.cell(row.get(f"seconds_{phase}"), 4) for phase in table.PHASES] if timed else []
    scores = [f"attention_{name}" for name in ("auc", "dice", "highest_dice")]
    return line + [table.cell(row.get(name)) for name in scores if lesions]


def save_table(folder: Path, rows: Sequence[dict], notes: Sequence[str]) -> None:
    """Writes `table.csv` with every figure, `table.txt` and `table.md` as shown, with the notes."""
    files.write_table(folder / "table.csv", pd.DataFrame(rows))
    shown = cells(rows)
    files.write_text(folder / "table.txt", "\n".join([*table.aligned(shown), *notes]) + "\n")
    files.write_text(folder / "table.md", "\n".join([*table.markdown(shown), "", *notes]) + "\n")


def save_plot(path: Path, rows: Sequence[dict]) -> None:
    """The headline of every model: mean, interval and the seeds' range, from top to bottom."""
    known = [row for row in rows if row["figure_mean"] is not None]
    figure = Figure(figsize=(8, 0.9 + 0.36 * max(len(known), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for place, row in enumerate(known):
        colour = _TEST if row["model"] == row.get("reference") else _INK
        if row["figure_low"] is not None:
            axis.plot([row["figure_low"], row["figure_high"]], [place] * 2, color=colour, lw=1.2)
        axis.plot([row["figure_smallest"], row["figure_largest"]], [place] * 2, color=colour, lw=5,
                  alpha=0.25, solid_capstyle="butt")  # fmt: skip
        axis.plot(row["figure_mean"], place, "o", color=colour, ms=5)
    title = rows[0]["title"]
    if title in ("AUC", "C-index"):
        axis.axvline(0.5, color=_GREY, lw=0.8, ls=":")  # by chance
    axis.set_yticks(range(len(known)), [row["model"] for row in known])
    axis.invert_yaxis()
    axis.set_xlabel(f"test {title}: mean over seeds, 95 % interval (line), range of seeds (band)")
    save_figure(figure, path)


def save_effects(path: Path, rows: Sequence[dict]) -> None:
    """One panel a setting: test and validation figure over its values, mean and SD over seeds.

    Args:
      path: PNG to write.
      rows: dicts with `factor`, `value` (text), `default`, `seed`, `figure`,
        `val_figure`, `headline_title`.
    """
    frame = pd.DataFrame(rows)
    factors = frame.factor.unique().tolist()
    across = min(3, len(factors))
    down = -(-len(factors) // across)
    figure = Figure(figsize=(3.4 * across, 2.5 * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.ravel(figure.subplots(down, across, sharey=True, squeeze=False))
    for axis, factor in zip(panels, factors, strict=False):
        _draw_effect(axis, frame[frame.factor == factor])
        axis.set_title(factor, fontsize=9)
    for axis in panels[len(factors) :]:
        axis.set_visible(False)
    panels[0].legend(fontsize=7, frameon=False)
    for axis in panels[::across]:
        axis.set_ylabel(frame.headline_title.iloc[0], fontsize=8)
    save_figure(figure, path)


def _draw_effect(axis, frame: pd.DataFrame) -> None:
    values = sorted(frame.value.unique(), key=_order)
    drawn = (
        ("figure", "test", _TEST, -0.06),
        ("val_figure", "validation", _VALIDATION, 0.06),
    )
    for column, label, colour, shift in drawn:
        figures = frame.assign(figure=frame[column].astype(float)).groupby("value").figure
        mean, sd = figures.mean().reindex(values), figures.std().reindex(values).fillna(0)
        places = np.arange(len(values)) + shift
        axis.errorbar(places, mean, sd, fmt="o-", color=colour, ms=4, lw=1, capsize=2, label=label)
    usual = frame.value[frame.default].iloc[0]
    axis.axvline(values.index(usual), color=_GREY, lw=0.8, ls=":")
    axis.set_xticks(range(len(values)), values, fontsize=7)
    axis.tick_params(axis="y", labelsize=7)


def _order(value: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
