"""The colour-only baseline: what mean and SD of a slide's colours say of its class.

A classifier of slides that beats this one by little has learnt stain, not tissue.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Integer, UInt8

from lrmil_jax.errors import DataError
from lrmil_jax.evals import metrics

if typing.TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

NAMES = ("mean_red", "mean_green", "mean_blue", "sd_red", "sd_green", "sd_blue")
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse regularisation C to choose from


def statistics(tiles: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, 6]:
    """Mean and SD of red, green and blue over all pixels of a slide's tiles, in grey levels.

    Raises:
      DataError: there is no tile.
    """
    # Whole numbers: the order of the tiles changes nothing, and there is nothing to round.
    count, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for tile in tiles:
        pixels = tile.reshape(-1, 3).astype(np.int64)
        count += len(pixels)
        total += pixels.sum(0)
        squares += np.square(pixels).sum(0)
    if not count:
        raise DataError("A slide without LR patches has no colour.")
    mean = total / count
    return np.concatenate([mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))])


@dataclasses.dataclass(frozen=True)
class ColourClassifier:
    """A logistic regression on standardised colour statistics.

    Attributes:
      model: of scikit-learn, fitted.
      mean, sd: [6] of the training slides.
      num_classes: C, also of classes that no training slide has.
    """

    model: LogisticRegression
    mean: Float[np.ndarray, 6]
    sd: Float[np.ndarray, 6]
    num_classes: int

    @property
    def strength(self) -> float:
        """The inverse regularisation that the validation slides chose."""
        return float(self.model.C)

    def predict(self, values: Float[np.ndarray, "S 6"]) -> Float[np.ndarray, "S C"]:
        """Class probabilities of slides, from what `statistics` gives."""
        probabilities = np.zeros((len(values), self.num_classes))
        probabilities[:, self.model.classes_] = self.model.predict_proba(
            (values - self.mean) / self.sd
        )
        return probabilities


def fit(
    values: Float[np.ndarray, "S 6"],
    labels: Integer[np.ndarray, " S"],
    *,
    val_values: Float[np.ndarray, "V 6"],
    val_labels: Integer[np.ndarray, " V"],
    num_classes: int,
) -> ColourClassifier:
    """Trains on the training slides, the regularisation of least validation loss.

    Args:
      values: `statistics` of the training slides.
      labels: their classes, two different ones at least.
      val_values, val_labels: those of the validation slides.
      num_classes: C.
    """
    from sklearn.linear_model import LogisticRegression  # late: it takes over a second

    # A channel that is the same on all slides would otherwise be divided by 0.
    mean, sd = values.mean(0), np.maximum(values.std(0), 1e-6)
    tried = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=10_000)
        model.fit((values - mean) / sd, labels)
        classifier = ColourClassifier(model, mean, sd, num_classes)
        loss = metrics.cross_entropy(val_labels, classifier.predict(val_values)).mean()
        tried.append((float(loss), strength, classifier))
    # Of equal losses the stronger regularisation.
    return min(tried, key=lambda entry: entry[:2])[2]
