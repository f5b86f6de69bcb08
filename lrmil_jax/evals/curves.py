"""ROC and precision-recall curves over folds, with bands of patients drawn again.

A band is pointwise: at each false positive rate (or recall) the 2.5th and the 97.5th percentile
over draws of patients, each with all of his or her rows in all folds.
Source of the mean curve: Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27
(2006), section 9.1, vertical averaging.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lrmil_jax.evals import bootstrap

GRID = np.linspace(0, 1, 51)
DRAWS = 300
# With fewer patients of a kind the curve has so few steps that drawing them again tells nothing.
LEAST_FOR_BAND = 10


@dataclasses.dataclass(frozen=True)
class Scored:
    """One fold's test patients for one yes-or-no question.

    Attributes:
      patients: [P] who is drawn with each.
      positive: [P]; score: [P], more where the model says yes.
    """

    patients: np.ndarray
    positive: Bool[np.ndarray, " P"]
    score: Float[np.ndarray, " P"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve over GRID: of the ROC the sensitivity, else the precision.

    Attributes:
      mean: [G] over folds.
      low, high: [G] its band; None with too few patients.
    """

    mean: Float[np.ndarray, " G"]
    low: Float[np.ndarray, " G"] | None
    high: Float[np.ndarray, " G"] | None


def both(
    positive: Bool[np.ndarray, " P"], score: Float[np.ndarray, " P"]
) -> dict[str, Float[np.ndarray, " G"]] | None:
    """`roc`, the sensitivity at each false positive rate of GRID (the higher one at a step), and
    `pr`, the precision at the first threshold that reaches each recall of GRID.

    Returns:
      None without both kinds of patients.
    """
    total = int(positive.sum())
    if not 0 < total < len(positive):
        return None
    order = np.argsort(-score, kind="stable")
    # The last place of each score: patients of one score are called together.
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    hits = np.cumsum(positive[order])[last]
    called = last + 1
    sensitivity = np.append(0.0, hits / total)
    alarms = np.append(0.0, (called - hits) / (len(positive) - total))
    place = np.searchsorted(alarms, GRID, side="right") - 1
    after = np.minimum(place + 1, len(alarms) - 1)
    gap = np.where(after > place, alarms[after] - alarms[place], 1.0)
    share = (GRID - alarms[place]) / gap
    roc = sensitivity[place] + share * (sensitivity[after] - sensitivity[place])
    # A recall that is reached but for a rounding error is reached.
    reached = np.searchsorted(hits / total, GRID - 1e-12)
    return {"roc": roc, "pr": (hits / called)[reached]}


def over_folds(folds: Sequence[Scored]) -> dict[str, Curve]:
    """Mean curves over the folds that have both kinds of patients; {} if none has."""
    means = [both(fold.positive, fold.score) for fold in folds]
    defined = [one for one in means if one is not None]
    if not defined:
        return {}
    smallest = min(
        len(np.unique(np.concatenate([fold.patients[fold.positive == kind] for fold in folds])))
        for kind in (True, False)
    )
    band = _band(folds) if smallest >= LEAST_FOR_BAND else {}
    return {
        name: Curve(np.mean([one[name] for one in defined], 0), *band.get(name, (None, None)))
        for name in ("roc", "pr")
    }


def _band(folds: Sequence[Scored]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = [f"{name}{place}" for name in ("roc", "pr") for place in range(len(GRID))]

    def measure(fold: Scored):
        def at(rows):
            curves = both(fold.positive[rows], fold.score[rows])
            if curves is None:
                return dict.fromkeys(names)
            return dict(zip(names, np.concatenate([curves["roc"], curves["pr"]]), strict=True))

        return at

    drawn = bootstrap.paired([(fold.patients, measure(fold)) for fold in folds], draws=DRAWS)
    bands = {}
    for name in ("roc", "pr"):
        points = [drawn.get(f"{name}{i}") for i in range(len(GRID))]
        if None not in points:
            bands[name] = (np.array([p.low for p in points]), np.array([p.high for p in points]))
    return bands
