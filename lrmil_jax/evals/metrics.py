"""Classification metrics per patient, each from well-kept scikit-learn."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

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
    from sklearn import metrics as sk  # late, here and below: it takes over a second

    labels, probabilities = checked(labels, probabilities)
    predicted = probabilities.argmax(1)
    with warnings.catch_warnings():
        # A predicted class without a true patient is no news in a small fold.
        warnings.simplefilter("ignore")
        return {
            "accuracy": float(sk.accuracy_score(labels, predicted)),
            "balanced_accuracy": float(sk.balanced_accuracy_score(labels, predicted)),
            "f1_weighted": _f1(labels, predicted, "weighted"),
            "f1_macro": _f1(labels, predicted, "macro"),
            "kappa": _kappa(labels, predicted),
            "auc": _over_classes(sk.roc_auc_score, labels, probabilities),
            "average_precision": _over_classes(
                sk.average_precision_score, labels, probabilities
            ),
            "brier": float(squared_error(labels, probabilities).mean()),
            "loss": float(cross_entropy(labels, probabilities).mean()),
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


def _f1(labels: np.ndarray, predicted: np.ndarray, average: str) -> float:
    from sklearn import metrics as sk

    return float(sk.f1_score(labels, predicted, average=average, zero_division=0))


def _kappa(labels: np.ndarray, predicted: np.ndarray) -> float | None:
    from sklearn import metrics as sk

    value = float(sk.cohen_kappa_score(labels, predicted))
    return value if np.isfinite(value) else None


def _over_classes(
    score: Callable[..., float], labels: np.ndarray, probabilities: np.ndarray
) -> float | None:
    """A score of class 1 of two, else the mean of each class against the rest."""
    classes = probabilities.shape[1]
    if classes < 2 or len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return float(score(labels, probabilities[:, 1]))
    # One score a class, not sklearn's multi_class="ovr": that one asks for sums exactly 1.
    return float(np.mean([score(labels == c, p) for c, p in enumerate(probabilities.T)]))
