"""One row a patient, as the authors of LRMIL keep it: `P_ID`, a task's column, `fold_k` of
train/val/test. The slides are those in the slide folder whose name begins with the patient's."""

import re

import pandas as pd

from lrmil_jax.data import slide_files, tables
from lrmil_jax.data.layouts.rows import Rows, Sources
from lrmil_jax.errors import DataError


def fits(frame: pd.DataFrame, sources: Sources) -> bool:
    """By the column of patients, without one of slides."""
    del sources
    return "P_ID" in frame and "slide_id" not in frame


def rows(frame: pd.DataFrame, sources: Sources, targets: tuple[str, ...]) -> Rows:
    """See `layouts.read`.

    Raises:
      DataError: no slide folder, or a patient without a slide.
    """
    del targets
    path, slides = sources.labels, sources.slides
    if slides is None and sources.stand_ins is None:
        raise DataError(f"{path} lists patients (P_ID), so data.slides must name the slide folder")
    slide_rows, empty = [], []
    names = sorted(slide_files.find(slides) if sources.stand_ins is None else sources.stand_ins)
    for _, row in frame.iterrows():
        patient = tables.one_form(row["P_ID"])
        mine = [name for name in names if re.fullmatch(re.escape(patient) + r"([-_.].*)?", name)]
        if not mine:
            empty.append(patient)
        slide_rows += [{**row.to_dict(), "slide_id": name} for name in mine]
    if empty:
        raise DataError(
            f"{path} lists {len(empty)} patients without a slide in {slides}: "
            f"{', '.join(empty[:5])}; a slide's name begins with its P_ID"
        )
    table = pd.DataFrame(slide_rows).reset_index(drop=True)
    return Rows(table.rename(columns={"P_ID": "patient_id"}))
