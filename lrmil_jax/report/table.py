"""The result table: one line a model, as plain text, CSV and Markdown."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lrmil_jax import files

ARM_NAMES = {
    "teacher": "HR teacher",
    "no_distillation": "LR without distillation",
    "lrmil": "LRMIL",
}
PHASES = ("open_tissue", "read", "encode", "mil")


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or `undefined` where it has no value."""
    return "undefined" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def interval(value: float | None, bounds: Sequence[float | None] | None) -> str:
    """`0.912 [0.850, 0.960]`."""
    if bounds is None or any(bound is None for bound in bounds):
        return number(value)
    return f"{number(value)} [{number(bounds[0])}, {number(bounds[1])}]"


def cells(rows: Sequence[dict]) -> list[list[str]]:
    """The table as shown, the first line being the heading.

    Args:
      rows: dicts with `arm`, `auc`, `auc_interval`, `accuracy`, `patches` and `seconds_<phase>`.
    """
    head = ["model", "AUC [95 % interval]", "accuracy", "patches/slide"]
    head += [f"{phase.replace('_', '+')} s" for phase in PHASES] + ["total s"]
    shown = [head]
    for row in rows:
        seconds = [row.get(f"seconds_{phase}") for phase in PHASES]
        total = None if None in seconds else sum(seconds)
        shown.append(
            [
                ARM_NAMES.get(row["arm"], row["arm"]),
                interval(row["auc"], row.get("auc_interval")),
                number(row["accuracy"]),
                number(row["patches"], 1),
                *("-" if value is None else number(value) for value in (*seconds, total)),
            ]
        )
    return shown


def lines(rows: Sequence[dict]) -> list[str]:
    """`cells` as plain, unwrapped lines with aligned columns."""
    shown = cells(rows)
    widths = [max(len(line[column]) for line in shown) for column in range(len(shown[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    ]


def save(folder: Path, rows: Sequence[dict]) -> None:
    """Writes `table.csv` with every figure, `table.txt` and `table.md` as it is shown."""
    flat = []
    for row in rows:
        low, high = row.get("auc_interval") or (None, None)
        kept = {name: value for name, value in row.items() if name != "auc_interval"}
        flat.append(kept | {"auc_low": low, "auc_high": high})
    with files.atomic_path(folder / "table.csv") as temporary:
        pd.DataFrame(flat).to_csv(temporary, index=False)
    with files.atomic_path(folder / "table.txt") as temporary:
        temporary.write_text("\n".join(lines(rows)) + "\n", encoding="utf-8")
    shown = cells(rows)
    markdown = ["| " + " | ".join(line) + " |" for line in shown]
    markdown.insert(1, "|" + " --- |" * len(shown[0]))
    with files.atomic_path(folder / "table.md") as temporary:
        temporary.write_text("\n".join(markdown) + "\n", encoding="utf-8")
