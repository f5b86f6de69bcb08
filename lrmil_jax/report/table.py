"""The result tables: one line a model, as plain text, CSV and Markdown."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lrmil_jax import files

EXHAUSTIVE = "exhaustive HR"  # plain MIL at HR, where a choice of regions is held against it
PHASES = ("open_tissue", "read", "encode", "mil")


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or `undefined` where it has no value."""
    return "undefined" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def cell(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where a model has none."""
    return "-" if value is None else f"{value:.{digits}f}"


def count(value: float) -> str:
    """A median of counts: whole, unless it lies between two."""
    return number(value, 1).removesuffix(".0")


def interval(value: float | None, bounds: Sequence[float | None] | None) -> str:
    """`0.912 [0.850, 0.960]`."""
    if bounds is None or any(bound is None for bound in bounds):
        return number(value)
    return f"{number(value)} [{number(bounds[0])}, {number(bounds[1])}]"


def mean_and_spread(mean: float | None, deviation: float | None, bounds: Sequence | None) -> str:
    """`0.912 ± 0.031 [0.850, 0.960]`, less what there is not."""
    spread = "" if deviation is None or pd.isna(deviation) else f" ± {number(deviation)}"
    value, bracket, rest = interval(mean, bounds).partition(" [")
    return value + spread + bracket + rest


def difference(mean: float, bounds: Sequence[float | None]) -> str:
    """`+0.012 [-0.020, +0.044]`, without the bounds where nothing is known of them."""
    if any(bound is None for bound in bounds):
        return f"{mean:+.3f}"
    return f"{mean:+.3f} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """The table as shown, the first line being the heading.

    Args:
      rows: dicts with `title`, `headline` (the metric that stands for the task), `headline_title`,
        that metric and its `_interval`, `patches`, `seconds_<phase>`, `accuracy` where there are
        classes, of two of them `youden_accuracy`, and of several `folds` the metric's `_sd`,
        `_folds` (how many define it) and `_pooled`.
    """
    several = any(row.get("folds", 1) > 1 for row in rows)
    title = rows[0]["headline_title"] if rows else "AUC"
    classes = any("accuracy" in row for row in rows)
    head = ["model"]
    head += (
        [f"{title} mean ± SD over folds [95 %]", f"pooled {title}"]
        if several
        else [f"{title} [95 % interval]"]
    )
    head += ["accuracy", "accuracy at Youden's"] if classes else []
    head += ["patches/slide"]
    head += [f"{phase.replace('_', '+')} s" for phase in PHASES] + ["total s"]
    shown = [head]
    for row in rows:
        seconds = [row.get(f"seconds_{phase}") for phase in PHASES]
        total = None if None in seconds else sum(seconds) + row.get("seconds_select", 0.0)
        shown.append(
            [
                row["title"],
                *_headline_cells(row, several),
                *((number(row["accuracy"]), cell(row.get("youden_accuracy"))) if classes else ()),
                count(row["patches"]),
                *("-" if value is None else number(value) for value in (*seconds, total)),
            ]
        )
    return shown


def _headline_cells(row: dict, several: bool) -> list[str]:
    name = row["headline"]
    bounds = row.get(f"{name}_interval")
    if not several:
        return [interval(row[name], bounds)]
    shown = mean_and_spread(row[name], row[f"{name}_sd"], bounds)
    if row[f"{name}_folds"] < row["folds"]:
        shown += f" ({row[f'{name}_folds']} of {row['folds']} folds)"
    return [shown, number(row[f"{name}_pooled"])]


def attention_cells(rows: Sequence[dict]) -> list[list[str]]:
    """The table of attention against lesion masks, the first line being the heading.

    Args:
      rows: those of `cells`; models that were scored have `lesion_slides`, `attention_auc`,
        `attention_auc_sd`, `attention_dice`, `attention_highest_dice` and the intervals
        `attention_auc_interval`, `attention_dice_interval`.

    Returns:
      The heading alone if no model was scored.
    """
    head = ["model", "lesion slides", "attention AUC [95 % interval]", "SD"]
    shown = [[*head, "Dice [95 % interval]", "highest Dice possible"]]
    for row in rows:
        if "lesion_slides" in row:
            scores = [
                interval(row[f"attention_{name}"], row.get(f"attention_{name}_interval"))
                for name in ("auc", "dice")
            ]
            deviation = row["attention_auc_sd"]
            spread = "-" if deviation is None else number(deviation)
            line = [row["title"], str(row["lesion_slides"]), scores[0], spread, scores[1]]
            shown.append([*line, number(row["attention_highest_dice"])])
    return shown


def lines(rows: Sequence[dict]) -> list[str]:
    """`cells` as plain, unwrapped lines with aligned columns."""
    return aligned(cells(rows))


def aligned(shown: Sequence[Sequence[str]]) -> list[str]:
    """Cells as plain, unwrapped lines with aligned columns."""
    widths = [max(len(line[column]) for line in shown) for column in range(len(shown[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    ]


def markdown(shown: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines of a Markdown table."""
    found = ["| " + " | ".join(line) + " |" for line in shown]
    return [found[0], "|" + " --- |" * len(shown[0]), *found[1:]]


def save(folder: Path, rows: Sequence[dict], notes: Sequence[str] = ()) -> None:
    """Writes `table.csv` with every figure, `table.txt` and `table.md` as it is shown, with notes.

    Where attention was scored against masks, `attention.csv`, `.txt` and `.md` as well.
    """
    _save(folder, "table", [flat(row) for row in rows], cells(rows), notes)
    scored = [row for row in rows if "lesion_slides" in row]
    if scored:
        kept = [
            {name: value for name, value in flat(row).items()
             if name == "model" or name.startswith(("attention_", "lesion_"))}
            for row in scored
        ]  # fmt: skip
        _save(folder, "attention", kept, attention_cells(scored))


def flat(row: dict) -> dict:
    """The row with an interval's two bounds as figures of their own."""
    flat = {name: value for name, value in row.items() if not name.endswith("_interval")}
    for name, value in row.items():
        if name.endswith("_interval"):
            low, high = value or (None, None)
            stem = name.removesuffix("_interval")
            flat |= {f"{stem}_low": low, f"{stem}_high": high}
    return flat


def _save(
    folder: Path,
    name: str,
    figures: list[dict],
    shown: list[list[str]],
    notes: Sequence[str] = (),
) -> None:
    with files.atomic_path(folder / f"{name}.csv") as temporary:
        pd.DataFrame(figures).to_csv(temporary, index=False)
    files.write_text(folder / f"{name}.txt", "\n".join([*aligned(shown), *notes]) + "\n")
    lines = [*markdown(shown), *(line for note in notes for line in ("", note))]
    files.write_text(folder / f"{name}.md", "\n".join(lines) + "\n")
