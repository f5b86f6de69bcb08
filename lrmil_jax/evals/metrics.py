"""Classification metrics per patient; the tests hold them against scikit-learn's."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer

from lrmil_jax.errors import DataError

NAMES = (
    *("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "kappa"),
    *("auc", "average_precision", "brier", "loss"),
)
PROBABILITY_PREFIX = "prob_"


def compute(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> dict[str, float | None]:
    """All metrics of a set of patients.

    Accuracy, balanced accuracy, F1 and Cohen's kappa (unweighted) are those of the most probable
    class. AUC and average precision are those of class 1 for two classes, macro one-vs-rest for
    more. The Brier score is the mean squared error of the probability of class 1 for two classes,
    summed over the classes for more. Loss is the mean cross-entropy in nats.

    Args:
      labels: class of each patient, 0 to C - 1.
      probabilities: predicted, each row summing to 1.

    Returns:
      One entry for each of `NAMES`; None where it is undefined: `auc` and `average_precision`
      where a class has no patient, `kappa` where chance alone agrees on every patient.

    Raises:
      DataError: no patient, labels outside the classes, or probabilities that are none.
    """
    labels, probabilities = checked(labels, probabilities)
    return {
        **_of_classes(labels, probabilities.argmax(1), probabilities.shape[1]),
        "auc": _over_classes(auc, labels, probabilities),
        "average_precision": _over_classes(average_precision, labels, probabilities),
        "brier": float(squared_error(labels, probabilities).mean()),
        "loss": float(cross_entropy(labels, probabilities).mean()),
    }


def _of_classes(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float | None]:
    """What follows from the table of true and predicted classes; all of it at once, as
    scikit-learn's checks of arguments would take most of the time of a bootstrap."""
    seen = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, -1)
    hits, support, claimed = seen.diagonal(), seen.sum(1), seen.sum(0)
    count, size = len(labels), support + claimed
    f1 = 2 * hits / np.maximum(size, 1)
    chance = support @ claimed / count**2
    agreement = hits.sum() / count
    return {
        "accuracy": float(agreement),
        "balanced_accuracy": float((hits[support > 0] / support[support > 0]).mean()),
        "f1_weighted": float(f1 @ support / count),
        "f1_macro": float(f1[size > 0].mean()),
        "kappa": None if chance == 1 else float((agreement - chance) / (1 - chance)),
    }


def cross_entropy(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> Float[np.ndarray, "P"]:
    """Negative log probability of each patient's class; a probability of 0 counts as 1e-12."""
    chosen = np.take_along_axis(np.asarray(probabilities, np.float64), labels[:, None], 1)[:, 0]
    return -np.log(np.clip(chosen, 1e-12, 1.0))


def squared_error(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> Float[np.ndarray, "P"]:
    """What each patient adds to the Brier score, see `compute`.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather
    Review 78 (1950); of two classes half of his sum, as is usual.
    """
    errors = np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(1)
    return errors / 2 if probabilities.shape[1] == 2 else errors


def balanced_loss(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> float:
    """Mean over the classes of their patients' mean cross-entropy."""
    losses = cross_entropy(labels, probabilities)
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))


def probability_columns(frame: pd.DataFrame) -> list[str]:
    """The `prob_<class>` columns in their order, which is the order of the classes."""
    return [c for c in frame.columns if str(c).startswith(PROBABILITY_PREFIX)]


def checked(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> tuple[Integer[np.ndarray, "P"], Float[np.ndarray, "P C"]]:
    """The same arrays as int64 and float64, refused if no metric could be made of them.

    Raises:
      DataError: see `compute`.
    """
    labels = np.asarray(labels).astype(np.int64)
    probabilities = np.asarray(probabilities, np.float64)
    if not len(labels):
        raise DataError("There is no patient to evaluate.")
    classes = probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Labels run from {labels.min()} to {labels.max()}, there are {classes} classes."
        )
    off = ~np.isfinite(probabilities).all(1) | (np.abs(probabilities.sum(1) - 1) > 1e-3)
    if off.any() or probabilities.min() < 0:
        row = int(np.argmax(off | (probabilities < 0).any(1)))
        raise DataError(f"Probabilities of row {row} are no distribution: {probabilities[row]}.")
    return labels, probabilities


def auc(positive: Bool[np.ndarray, "P"], scores: Float[np.ndarray, "P"]) -> float:
    """Share of pairs of a positive and a negative that are in order, ties counted half."""
    from scipy.stats import rankdata  # late: it takes over a second

    positives, negatives = positive.sum(), (~positive).sum()
    above = rankdata(scores)[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(positive: Bool[np.ndarray, "P"], scores: Float[np.ndarray, "P"]) -> float:
    """Mean over the positives of the precision among all of at least their score."""
    distinct, place = np.unique(-scores, return_inverse=True)
    positives = np.bincount(place, positive, len(distinct))
    precision = np.cumsum(positives) / np.cumsum(np.bincount(place, minlength=len(distinct)))
    return float(positives @ precision / positives.sum())


def _over_classes(
    score: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, probabilities: np.ndarray
) -> float | None:
    """A score of class 1 of two, else the mean of each class against the rest."""
    classes = probabilities.shape[1]
    if classes < 2 or len(np.unique(labels)) < classes:
        return None
    wanted = [1] if classes == 2 else range(classes)
    return float(np.mean([score(labels == c, probabilities[:, c]) for c in wanted]))
