"""The subgroup table: one line a model and subgroup."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lrmil_jax import files
from lrmil_jax.report import table


def cells(
    rows: Mapping[str, Sequence[dict]], titles: Mapping[str, str], headline: str, title: str
) -> list[list[str]]:
    """The table as shown, the first line being the heading.

    Args:
      rows: of each model those of `tasks.subgroups.table`.
      titles: of the models, by name.
      headline: the metric that is shown; title: its name.
    """
    shown = [["model", "subgroup", "patients", f"{title} [95 %]", "minus the others [95 %]"]]
    for model, lines in rows.items():
        for row in lines:
            metric = row["metrics"][headline]
            value = table.interval(metric["value"], metric["value_interval"])
            gap = "-"
            if metric["difference"] is not None:
                bounds = metric["difference_interval"] or (None, None)
                gap = table.difference(metric["difference"], bounds)
            shown.append([
                titles.get(model, model), f"{row['subgroup']}: {row['level']}",
                str(row["patients"]),
                row["note"] if metric["value"] is None else value, gap,
            ])  # fmt: skip
    return shown


def save(folder: Path, rows: Mapping[str, Sequence[dict]], shown: Sequence[Sequence[str]]) -> None:
    """Writes `subgroups.csv` with every metric, `subgroups.txt` and `subgroups.md` as shown."""
    flat = [
        {"model": model, **{name: row[name] for name in ("subgroup", "level", "patients", "note")},
         "metric": metric, **table.flat(figures)}
        for model, lines in rows.items()
        for row in lines
        for metric, figures in row["metrics"].items()
    ]  # fmt: skip
    files.write_table(folder / "subgroups.csv", pd.DataFrame(flat))
    files.write_text(folder / "subgroups.txt", "\n".join(table.aligned(shown)) + "\n")
    files.write_text(folder / "subgroups.md", "\n".join(table.markdown(shown)) + "\n")
