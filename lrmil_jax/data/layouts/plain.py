"""One row a slide: `slide_id,patient_id,<targets>[,path][,mpp][,pool][,fold_1..fold_k | split]`.

`case_id` stands for `patient_id`, as in tables of CLAM.
"""

import pandas as pd

from lrmil_jax.data import tables
from lrmil_jax.data.layouts.rows import Rows, Sources


def fits(frame: pd.DataFrame, sources: Sources) -> bool:
    """Whatever no other layout fits."""
    del frame, sources
    return True


def rows(frame: pd.DataFrame, sources: Sources, targets: tuple[str, ...]) -> Rows:
    """See `layouts.read`."""
    del targets
    for name in ("P_ID", "case_id"):
        if "patient_id" not in frame:
            frame = frame.rename(columns={name: "patient_id"})
    tables.require_columns(frame, ("slide_id", "patient_id"), sources.labels)
    return Rows(frame)
