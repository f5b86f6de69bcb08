"""Thresholds on the probability of class 1, chosen on validation patients.

A patient is called positive whose probability of class 1 is at least the threshold. A threshold
lies half-way between the lowest probability that it calls positive and the next lower one, so that
no patient stands on its edge.

Source of Youden's index, sensitivity + specificity - 1: Youden, Index for rating diagnostic tests,
Cancer 3 (1950).
"""

import math

import numpy as np
from jaxtyping import Float, Integer

from lrmil_jax.evals import metrics

NAMES = ("youden", "sensitivity")


def choose(
    labels: Integer[np.ndarray, "P"],
    probabilities: Float[np.ndarray, "P C"],
    *,
    sensitivity: float,
) -> dict[str, float]:
    """The thresholds that a set of validation patients asks for.

    `youden` has the highest Youden's index; of equally good ones the lowest is taken, which misses
    fewest positives, as a missed tumour costs more than a false alarm. `sensitivity` is the highest
    threshold that reaches the wanted sensitivity, and so the one of highest specificity.

    Args:
      labels: 0, or 1 for the positive class.
      probabilities: of both classes, each row summing to 1.
      sensitivity: wanted, above 0 and up to 1.

    Returns:
      {name: threshold}. What the patients cannot tell is left out: `sensitivity` without a
      positive, `youden` without both classes, and both where there are not two classes.

    Raises:
      DataError: see `metrics.compute`.
    """
    labels, probabilities = metrics.checked(labels, probabilities)
    positives = int(labels.sum())
    if probabilities.shape[1] != 2 or not positives:
        return {}
    scores, place = np.unique(probabilities[:, 1], return_inverse=True)
    # Of patients at or above each score: how many there are of each class.
    hits, alarms = (
        np.cumsum(np.bincount(place[labels == label], minlength=len(scores))[::-1])[::-1]
        for label in (1, 0)
    )
    # A product such as 0.95 x 20 may lie a rounding error above the whole number.
    wanted = math.ceil(sensitivity * positives - 1e-9)
    chosen = {"sensitivity": int(np.flatnonzero(hits >= wanted)[-1])}
    negatives = len(labels) - positives
    if negatives:
        # In whole numbers, so that equal indices are equal.
        chosen["youden"] = int(np.argmax(hits * negatives - alarms * positives))
    return {name: _below(scores, chosen[name]) for name in NAMES if name in chosen}


def _below(scores: Float[np.ndarray, " S"], place: int) -> float:
    """Half-way down to the next lower score, or to 0."""
    score, lower = scores[place], scores[place - 1] if place else 0.0
    middle = (score + lower) / 2
    return float(middle if middle > lower else score)


def at(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"], threshold: float
) -> dict[str, float | None]:
    """What a threshold gives on patients, those of the test.

    Args:
      labels, probabilities: as for `choose`, of two classes.
      threshold: from which probability of class 1 on a patient is called positive.

    Returns:
      `threshold`, `accuracy`, `balanced_accuracy`, `sensitivity`, `specificity`; what needs a class
      without patients is None.

    Raises:
      DataError: see `metrics.compute`.
    """
    from sklearn.metrics import confusion_matrix  # late: it takes over a second

    labels, probabilities = metrics.checked(labels, probabilities)
    called = (probabilities[:, 1] >= threshold).astype(int)
    (clear, alarms), (missed, hits) = confusion_matrix(labels, called, labels=[0, 1]).tolist()
    sensitivity = hits / (hits + missed) if hits + missed else None
    specificity = clear / (clear + alarms) if clear + alarms else None
    both = sensitivity is not None and specificity is not None
    return {
        "threshold": float(threshold),
        "accuracy": (hits + clear) / len(labels),
        "balanced_accuracy": (sensitivity + specificity) / 2 if both else None,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }
