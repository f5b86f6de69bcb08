"""How much each patient moves any figure: the jackknife, which leaves out one after another.

Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), chapter 3.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lrmil_jax.errors import DataError
from lrmil_jax.evals.intervals import Bounds, Figure

Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, float | None]]


def figures(
    measure: Measure,
    targets: Float[np.ndarray, "P T"],
    values: Float[np.ndarray, "P V"],
    patients: Sequence[str] | np.ndarray,
    ranges: Mapping[str, Bounds],
) -> dict[str, Figure]:
    """Every figure in `ranges` of one model, for `intervals.summarise`.

    Args:
      measure: of targets and values.
      targets, values: a row a patient.
      patients: who each row is of; rows of one name are left out together.
      ranges: what each figure cannot leave.

    Raises:
      DataError: there is no patient, or a value is not finite.
    """
    if not len(targets):
        raise DataError("There is no patient to evaluate.")
    if not np.isfinite(values).all():
        raise DataError("A predicted value is not finite; look for broken features or weights.")
    whole = measure(targets, values)
    names, groups = np.unique(np.asarray(patients, str), return_inverse=True)
    count = len(names)
    kept = (groups != group for group in range(count if count > 1 else 0))
    without = [measure(targets[rows], values[rows]) for rows in kept]
    made = {}
    for name, limits in ranges.items():
        left = np.array([np.nan if one[name] is None else one[name] for one in without])
        known = left if len(left) == count else np.full(count, np.nan)
        made[name] = Figure(whole[name], influence(known), names, np.zeros(count, np.int64), limits)
    return made


def influence(without: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
    """Each one's influence on a figure, scaled as in `influence.influences`, from the figure
    without it."""
    count = len(without)
    return np.sqrt((count - 1) / count) * (without.mean() - without)
