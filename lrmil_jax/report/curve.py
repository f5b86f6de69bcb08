"""WISE-FUSE against its budget: a table, and a picture of what each share of regions gives."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lrmil_jax import files
from lrmil_jax.report import comparison, table

_COLOURS = ("#1f5fa8", "#c77d2e", "#9a9a9a", "#4c8c4a", "#8a4f9e")
_DASHES = ("--", ":", "-.")
# What is drawn: a key of the rows, its SD if it has one, and what it is called.
_PANELS = (
    ("figure_mean", "figure_sd", "test"),
    ("accuracy", None, "accuracy"),
    ("recall", "recall_sd", "share of lesion area chosen"),
    ("patches", None, "patches encoded a slide"),
    ("seconds", None, "seconds a slide"),
)


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """The table as shown, the first line being the heading; rows are `studies.curve.points`."""
    head = [
        "model",
        "budget",
        f"{rows[0]['title']} mean ± SD [95 %]",
        f"minus {table.EXHAUSTIVE} [95 %]",
    ]
    head += ["minus random [95 %]", "accuracy", "lesion area chosen", "patches/slide", "encode s"]
    whole = (row for row in rows if row["line"] == table.EXHAUSTIVE)
    full = next(whole, {}).get("seconds_encode")
    shown = [[*head, "times less", "select s", "total s"]]
    for row in rows:
        encode = row.get("seconds_encode")
        shown.append(
            [
                row["line"],
                "-" if row["budget"] is None else f"{row['budget']:g}",
                f"{_spread(row, 'figure')} {_bounds(row, 'figure')}".strip(),
                _difference(row, "to_exhaustive"),
                _difference(row, "to_random"),
                table.number(row.get("accuracy")),
                _spread(row, "recall"),
                table.cell(row.get("patches"), 0),
                table.cell(encode, 4),
                table.cell(full / encode if full and encode else None, 2),
                table.cell(row.get("seconds_select"), 4),
                table.cell(row.get("seconds"), 4),
            ]
        )
    return shown


def _spread(row: dict, stem: str) -> str:
    mean, sd = row.get(f"{stem}_mean", row.get(stem)), row.get(f"{stem}_sd")
    if mean is None:
        return "undefined" if stem == "figure" else "-"
    return f"{mean:.3f}" if sd is None or pd.isna(sd) else f"{mean:.3f} ± {sd:.3f}"


def _bounds(row: dict, stem: str) -> str:
    low, high = row[f"{stem}_low"], row[f"{stem}_high"]
    return "" if low is None else f"[{low:.3f}, {high:.3f}]"


def _difference(row: dict, stem: str) -> str:
    mean = row.get(f"{stem}_mean")
    if mean is None:
        return "-"
    shown = table.difference(mean, (row[f"{stem}_low"], row[f"{stem}_high"]))
    return f"{shown}, {row[f'{stem}_above_zero']} of {row[f'{stem}_count']}"


def save(folder: Path, rows: Sequence[dict], notes: Sequence[str]) -> None:
    """Writes `curve.csv` with every figure, `curve.txt` and `curve.md` as shown, `curve.png`."""
    flat = [{name: value for name, value in row.items() if name != "recalls"} for row in rows]
    files.write_table(folder / "curve.csv", pd.DataFrame(flat))
    shown = cells(rows)
    files.write_text(folder / "curve.txt", "\n".join([*table.aligned(shown), *notes]) + "\n")
    files.write_text(folder / "curve.md", "\n".join([*table.markdown(shown), "", *notes]) + "\n")
    save_plot(folder / "curve.png", rows)


def save_plot(path: Path, rows: Sequence[dict]) -> None:
    """One panel a figure over the budget: WISE-FUSE and its controls as lines with the SD over
    seeds, models without a budget as level lines."""
    panels = [one for one in _PANELS if any(row.get(one[0]) is not None for row in rows)]
    across = min(3, len(panels) + 1)
    down = -(-(len(panels) + 1) // across)
    figure = Figure(figsize=(3.6 * across, 2.9 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    frame = pd.DataFrame(rows)
    for axis, (name, deviation, label) in zip(axes, panels, strict=False):
        shown = f"{label} {rows[0]['title']}" if name == "figure_mean" else label
        _draw(axis, frame, name, deviation, shown)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[len(panels)].legend(handles, labels, loc="center", frameon=False, fontsize=9)
    comparison.save_figure(figure, path)


def _draw(axis, frame: pd.DataFrame, name: str, deviation: str | None, label: str) -> None:
    swept, level = frame[frame.budget.notna()], frame[frame.budget.isna()]
    for number, (line, own) in enumerate(swept.groupby("line", sort=False)):
        own = own.sort_values("budget")
        spread = None if deviation is None else own[deviation].astype(float).fillna(0)
        axis.errorbar(own.budget, own[name].astype(float), spread, fmt="o-", ms=4, lw=1.4,
                      capsize=2, color=_COLOURS[number % len(_COLOURS)], label=line)  # fmt: skip
    for number, row in enumerate(level.to_dict("records")):
        if not pd.isna(row.get(name)):
            axis.axhline(row[name], color="#222222", lw=1, ls=_DASHES[number % len(_DASHES)],
                         label=row["line"])  # fmt: skip
    budgets = sorted(swept.budget.unique())
    if name == "recall" and max(budgets) <= 1:
        axis.plot(budgets, budgets, color="#222222", lw=0.8, ls=(0, (1, 4)))  # by chance
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets], fontsize=8)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("share of regions read at HR" if max(budgets) <= 1 else "regions read at HR",
                    fontsize=8)  # fmt: skip
    axis.set_title(label, fontsize=9)
    if name in ("patches", "seconds"):
        axis.set_ylim(bottom=0)
