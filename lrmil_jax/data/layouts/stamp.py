"""STAMP's two tables: a clini table of patients (`PATIENT` and what is known of them), and a slide
table (`PATIENT`, `FILENAME`), which `data.slide_table` names.

`FILENAME` is that of a slide's features; the slide is the file of the same name in `data.slides`.
As STAMP does, patients without an outcome or without a slide are left out, and told.
"""

import logging
from pathlib import PurePosixPath

import pandas as pd

from lrmil_jax.data import slide_files, tables
from lrmil_jax.data.layouts.rows import Rows, Sources
from lrmil_jax.errors import DataError

log = logging.getLogger(__name__)


def fits(frame: pd.DataFrame, sources: Sources) -> bool:
    """By the column of patients, which no other layout writes in capitals."""
    del sources
    return "PATIENT" in frame and "slide_id" not in frame


def rows(frame: pd.DataFrame, sources: Sources, targets: tuple[str, ...]) -> Rows:
    """See `layouts.read`.

    Raises:
      DataError: no slide table, a patient listed twice, or no slide of a patient with an outcome.
    """
    path = sources.labels
    if sources.slide_table is None:
        raise DataError(
            f"{path} lists patients (PATIENT), as STAMP's clini table does, so data.slide_table "
            "must name the slide table (PATIENT, FILENAME)"
        )
    frame = frame.assign(PATIENT=frame["PATIENT"].map(tables.one_form))
    _refuse_twice(frame["PATIENT"], f"{path} lists patient")
    slides = tables.read(sources.slide_table, what="the slide table")
    tables.require_columns(
        slides, ("PATIENT", "FILENAME"), sources.slide_table, what="the slide table"
    )
    slides = slides.assign(PATIENT=slides["PATIENT"].map(tables.one_form))
    _refuse_twice(slides["FILENAME"], f"{sources.slide_table} lists FILENAME")
    columns = [name for name in targets if name in frame]
    has_outcome = frame[columns].apply(tables.with_blanks).notna().all(axis=1)
    _tell(frame["PATIENT"][~has_outcome], f"{path}: no {' or '.join(columns)} is given")
    complete = frame[has_outcome]
    _tell(slides["PATIENT"][~slides["PATIENT"].isin(complete["PATIENT"])],
          f"{sources.slide_table}: no outcome is given")  # fmt: skip
    _tell(complete["PATIENT"][~complete["PATIENT"].isin(slides["PATIENT"])],
          f"{path}: no slide is given")  # fmt: skip
    table = slides[["PATIENT", "FILENAME"]].merge(complete, on="PATIENT", how="inner")
    if table.empty:
        raise DataError(
            f"no patient of {path} with an outcome has a slide in {sources.slide_table}; both name "
            "patients by PATIENT"
        )
    table["slide_id"] = table["FILENAME"].map(_slide_name)
    return Rows(table.rename(columns={"PATIENT": "patient_id"}), draws_val=True)


def _slide_name(filename: str) -> str:
    name = PurePosixPath(filename).name
    return slide_files.without_suffix(name.removesuffix(".h5"))


def _refuse_twice(values: pd.Series, start: str) -> None:
    twice = values[values.duplicated()]
    if len(twice):
        raise DataError(f"{start} {twice.iloc[0]} more than once; keep one row")


def _tell(patients: pd.Series, why: str) -> None:
    names = patients.drop_duplicates()
    if len(names):
        log.warning("%s of %d patients, who are left out: %s%s", why, len(names),
                    ", ".join(names[:5]), " ..." if len(names) > 5 else "")  # fmt: skip
