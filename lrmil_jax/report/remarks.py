"""The slides that somebody should look at, as `check` found them: a table, and a CSV."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_jax import files, progress
from lrmil_jax.data import failures

log = logging.getLogger(__name__)

COLUMNS = ("slide_id", "why", "what_to_do")
_SHOWN = 40  # rows in the log
_UNUSABLE = "cannot be used: "


def save(folder: Path, slides: Iterable[Mapping[str, Any]]) -> int:
    """Writes `slides_to_look_at.csv` and logs the same as a table.

    Args:
      folder: where the pictures are.
      slides: of each what `data.inspection.inspect_slide` tells.

    Returns:
      How many slides there are to look at.
    """
    rows = []
    for slide in slides:
        if slide["reason"]:
            rows.append((slide["slide_id"], _UNUSABLE + slide["reason"], "see there"))
        rows += [(slide["slide_id"], one.why, one.advice) for one in slide.get("remarks", ())]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    path = folder / "slides_to_look_at.csv"
    files.write_table(path, table)
    count = table.slide_id.nunique()
    if count:
        titles = [name.replace("_", " ") for name in COLUMNS]
        alike = list(_alike(rows))
        log.info("%d slides to look at (%s):\n%s", count, path,
                 progress.table(titles, alike[:_SHOWN]))  # fmt: skip
        if len(alike) > _SHOWN:
            log.info("and %d lines more in %s", len(alike) - _SHOWN, path)
    return count


def _alike(rows: Iterable[Sequence[str]]) -> Iterable[Sequence[str]]:
    """Rows of COLUMNS that say the same of several slides as one."""
    groups: dict[tuple[str, str], list[Sequence[str]]] = {}
    for row in rows:
        slide_id, why, advice = row
        cause = failures.cause(slide_id, why.removeprefix(_UNUSABLE))
        groups.setdefault((cause, advice), []).append(row)
    for (slide_id, *others), *rest in groups.values():
        yield (f"{slide_id} and {len(rest)} more" if rest else slide_id, *others)
