"""Label tables of several layouts, read as they are. One file a layout and one line in `LAYOUTS`.

Whatever the layout, what comes out has a row a slide with `slide_id`, `patient_id`, the targets'
columns as text and, where the table has them, path, mpp, pool and splits.
"""

from collections.abc import Sequence

from lrmil_jax.data import tables
from lrmil_jax.data.layouts import patho_bench, patients, plain, stamp
from lrmil_jax.data.layouts.rows import Rows, Sources

__all__ = ["LAYOUTS", "Rows", "Sources", "read"]

# The first that fits reads the table; the last one fits all.
LAYOUTS = (patho_bench, stamp, patients, plain)


def read(sources: Sources, targets: Sequence[str]) -> Rows:
    """The rows of a label table, a slide each.

    Args:
      sources: the table and what belongs to it.
      targets: the columns that hold what is to be predicted (`tasks.Task.asked`).

    Raises:
      DataError: it cannot be read, a column is missing, or what belongs to it is.
    """
    frame = tables.read(sources.labels)
    layout = next(one for one in LAYOUTS if one.fits(frame, sources))
    rows = layout.rows(frame, sources, tuple(targets))
    for name in ("slide_id", "patient_id"):
        rows.frame[name] = tables.with_blanks(
            rows.frame[name].map(tables.one_form, na_action="ignore")
        )
    return rows
