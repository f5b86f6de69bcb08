"""Classification metrics per patient, each from well-kept scikit-learn."""

import warnings

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

from lrmil_jax.errors import DataError

NAMES = ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auc", "loss")
PROBABILITY_PREFIX = "prob_"


def compute(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> dict[str, float | None]:
    """All metrics of a set of patients.

    Accuracy, balanced accuracy and F1 are those of the most probable class. AUC is that of class
    1 for two classes, macro one-vs-rest for more. Loss is the mean cross-entropy in nats.

    Args:
      labels: class of each patient, 0 to C - 1.
      probabilities: predicted, each row summing to 1.

    Returns:
      One entry for each of `NAMES`; `auc` is None where it is undefined, because a class has no
      patient or all patients are of one class.

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
            "auc": _auc(labels, probabilities),
            "loss": float(cross_entropy(labels, probabilities).mean()),
        }


def cross_entropy(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> Float[np.ndarray, "P"]:
    """Negative log probability of each patient's class; a probability of 0 counts as 1e-12."""
    chosen = np.take_along_axis(np.asarray(probabilities, np.float64), labels[:, None], 1)[:, 0]
    return -np.log(np.clip(chosen, 1e-12, 1.0))


def balanced_loss(
    labels: Integer[np.ndarray, "P"], probabilities: Float[np.ndarray, "P C"]
) -> float:
    """Mean over the classes of their patients' mean cross-entropy."""
    losses = cross_entropy(labels, probabilities)
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))


def by_patient(slides: pd.DataFrame) -> pd.DataFrame:
    """A patient's prediction: the mean of the probabilities of the patient's slides.

    Args:
      slides: one row a slide, with `patient_id`, `label` and one `prob_<class>` column a class.

    Returns:
      One row a patient in the order of `patient_id`: `patient_id`, `label`, `slides` (their
      number) and the mean probabilities.

    Raises:
      DataError: a column is missing, or the slides of a patient carry different labels.
    """
    columns = probability_columns(slides)
    missing = {"patient_id", "label"} - set(slides.columns)
    if missing or not columns:
        wanted = sorted(missing) or [f"{PROBABILITY_PREFIX}<class>"]
        raise DataError(f"Predictions lack the columns {', '.join(wanted)}.")
    groups = slides.groupby("patient_id", sort=True)
    distinct = groups["label"].nunique()
    if (distinct > 1).any():
        patient = distinct.index[distinct > 1][0]
        raise DataError(
            f"Patient {patient!r} has slides with different labels: metrics are per patient, so "
            "give the patient one label or the slides patient ids of their own."
        )
    table = groups[columns].mean()
    table.insert(0, "label", groups["label"].first())
    table.insert(1, "slides", groups.size())
    return table.reset_index()


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


def _auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    from sklearn import metrics as sk

    classes = probabilities.shape[1]
    if classes < 2 or len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return float(sk.roc_auc_score(labels, probabilities[:, 1]))
    # One score a class, not sklearn's multi_class="ovr": that one asks for sums exactly 1.
    return float(np.mean([sk.roc_auc_score(labels == c, p) for c, p in enumerate(probabilities.T)]))
