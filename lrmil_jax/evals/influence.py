"""How much each patient moves a metric: the infinitesimal jackknife, in closed form.

The influence of a patient is the derivative of the metric with respect to the patient's weight, the
weights being 1 / P. The squares of the influences add up to the variance that the choice of
patients gives the metric (for the AUC this is DeLong's variance), without any resampling.

Sources: Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), chapter 6; DeLong,
DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated ROC Curves, Biometrics
44 (1988).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer

from lrmil_jax.evals import metrics

# Means over classes: the size that counts is the class's.
OVER_CLASSES = ("auc", "average_precision", "balanced_accuracy")


def influences(
    labels: Integer[np.ndarray, "P"],
    probabilities: Float[np.ndarray, "P C"],
    *,
    groups: Integer[np.ndarray, "P"] | None = None,
) -> dict[str, Float[np.ndarray, " G"]]:
    """Each patient's influence on each of `metrics.NAMES`, scaled so that the sum of the squares is
    an unbiased variance: by P / (P - 1), or, where the metric is a mean over classes, by the number
    of patients of the class.

    Args:
      labels, probabilities: as for `metrics.compute`.
      groups: the group of each row, 0 to G - 1, where rows are drawn together, such as the tiles of
        one patient; the influences are then those of the groups. None: G is P.

    Returns:
      NaN where nothing is known of the spread: in a class with one patient, or a metric that is
      undefined.

    Raises:
      DataError: see `metrics.compute`.
    """
    labels, probabilities = metrics.checked(labels, probabilities)
    one_hot = np.eye(probabilities.shape[1])
    true, predicted = one_hot[labels], one_hot[probabilities.argmax(1)]
    right, support = (true * predicted).sum(1), true.sum(0)
    recall = (true * predicted).sum(0) / np.maximum(support, 1)
    loss = metrics.cross_entropy(labels, probabilities)
    error = metrics.squared_error(labels, probabilities)
    derivatives = {
        "accuracy": (right - right.mean()) / len(labels),
        "balanced_accuracy": (right - recall[labels]) / (support[labels] * (support > 0).sum()),
        **_f1(true, predicted),
        "kappa": _kappa(true, predicted),
        "auc": _over_classes(_auc, labels, probabilities),
        "average_precision": _over_classes(_average_precision, labels, probabilities),
        "brier": (error - error.mean()) / len(labels),
        "loss": (loss - loss.mean()) / len(labels),
    }
    if groups is not None:
        sums = {name: np.bincount(groups, values) for name, values in derivatives.items()}
        return {name: values * _scale(np.full_like(values, len(values)))
                for name, values in sums.items()}  # fmt: skip
    over_all, over_class = _scale(np.full(len(labels), float(len(labels)))), _scale(support)[labels]
    return {
        name: values * (over_class if name in OVER_CLASSES else over_all)
        for name, values in derivatives.items()
    }


def _scale(count: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    return np.sqrt(np.divide(count, count - 1, out=np.full_like(count, np.nan), where=count > 1))


def _f1(
    true: Float[np.ndarray, "P C"], predicted: Float[np.ndarray, "P C"]
) -> dict[str, Float[np.ndarray, "P"]]:
    """Derivatives of 2 hits / (support + claims) of every class, averaged as scikit-learn does."""
    count, support = len(true), true.sum(0)
    size = support + predicted.sum(0)
    f1 = 2 * (true * predicted).sum(0) / np.maximum(size, 1)
    each = (2 * true * predicted - f1 * (true + predicted)) / np.maximum(size, 1)
    weighted = (each @ support + true @ f1) / count
    return {
        "f1_weighted": weighted - (f1 @ support) / count**2,
        "f1_macro": each.sum(1) / (size > 0).sum(),
    }


def _kappa(
    true: Float[np.ndarray, "P C"], predicted: Float[np.ndarray, "P C"]
) -> Float[np.ndarray, "P"]:
    """Derivative of 1 - (1 - agreement) / (1 - chance)."""
    count, right = len(true), (true * predicted).sum(1)
    support, size = true.mean(0), predicted.mean(0)
    chance = support @ size
    if np.isclose(chance, 1):
        return np.full(count, np.nan)
    of_chance = (true @ size + predicted @ support - 2 * chance) / count
    agreement = right.mean()
    of_agreement = (right - agreement) / count
    return of_agreement / (1 - chance) - (1 - agreement) * of_chance / (1 - chance) ** 2


def _over_classes(
    derivative: Callable[[np.ndarray, np.ndarray], np.ndarray],
    labels: Integer[np.ndarray, "P"],
    probabilities: Float[np.ndarray, "P C"],
) -> Float[np.ndarray, "P"]:
    classes = probabilities.shape[1]
    if classes < 2 or len(np.unique(labels)) < classes:
        return np.full(len(labels), np.nan)
    wanted = [1] if classes == 2 else range(classes)
    return np.mean([derivative(labels == c, probabilities[:, c]) for c in wanted], axis=0)


def _auc(positive: np.ndarray, scores: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """Share of the other kind that each patient is on the right side of, less the AUC."""
    from scipy.stats import rankdata  # late: it takes over a second

    rank, found = rankdata(scores), np.empty(len(scores))
    for kind in (positive, ~positive):
        below = (rank[kind] - rankdata(scores[kind])) / (~kind).sum()  # ties count half
        found[kind] = (below - below.mean()) / kind.sum()
    return np.where(positive, found, -found)


def _average_precision(
    positive: np.ndarray, scores: Float[np.ndarray, "P"]
) -> Float[np.ndarray, "P"]:
    """A positive adds its own precision, and each patient changes the precision at every positive
    of a lower or an equal score."""
    distinct, place = np.unique(-scores, return_inverse=True)
    positives = np.bincount(place, positive, len(distinct))
    hits, called = np.cumsum(positives), np.cumsum(np.bincount(place, minlength=len(distinct)))
    precision = hits / called

    def below(change: np.ndarray) -> np.ndarray:
        return np.cumsum((positives * change)[::-1])[::-1][place]

    of_positive = precision[place] + below((called - hits) / called**2)
    total = positives.sum()
    mean = positives @ precision / total
    return np.where(positive, of_positive - mean, -below(hits / called**2)) / total
