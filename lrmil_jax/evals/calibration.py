"""Calibration: is what a model gives a probability of 0.8 so in 80 of 100 patients?

Bins hold equally many patients (equal mass), so that none is empty however probabilities lie.
Sources: expected calibration error, Naeini et al., "Obtaining well calibrated probabilities using
Bayesian binning", AAAI 2015; temperature and the confidence of several classes, Guo et al., "On
calibration of modern neural networks", ICML 2017; the error that chance alone gives, Bröcker and
Smith, "Increasing the reliability of reliability diagrams", Weather and Forecasting 22 (2007).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaincinv

from lrmil_jax.evals import intervals

BINS = 10
_DRAWS = 1000  # of outcomes, for the error that chance alone gives
_HOTTEST = 20.0  # temperatures from 1 / 20 to 20: beyond, nothing is learned from the patients


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Something that is so or not, and the probability that a model gave it, for each patient.

    Attributes:
      probability: [P] from 0 to 1.
      outcome: [P] True where it was so.
      weight: [P] of each patient; 0 where it is not known (censored), else 1 without censoring.
    """

    probability: Float[np.ndarray, " P"]
    outcome: Bool[np.ndarray, " P"]
    weight: Float[np.ndarray, " P"]

    @classmethod
    def of(
        cls, probability: Float[np.ndarray, " P"], outcome: Bool[np.ndarray, " P"]
    ) -> "Forecast":
        """One whose outcome is known of every patient."""
        return cls(np.asarray(probability, np.float64), outcome, np.ones(len(outcome)))

    @property
    def is_weighted(self) -> bool:
        """Some patient counts for more or less than one."""
        return bool((self.weight != 1).any())


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    Attributes:
      predicted, observed: [B] mean probability and share of patients where it was so, by bin.
      low, high: [B] 95 % interval of the share (Clopper and Pearson); NaN where patients weigh
        unequally.
      count: [B] patients.
      weight: [B] share of all weight, sums to 1.
    """

    predicted: Float[np.ndarray, " B"]
    observed: Float[np.ndarray, " B"]
    low: Float[np.ndarray, " B"]
    high: Float[np.ndarray, " B"]
    count: Int[np.ndarray, " B"]
    weight: Float[np.ndarray, " B"]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of predicted and observed."""
        return float(self.weight @ np.abs(self.predicted - self.observed))


def reliability(forecast: Forecast, *, bins: int = BINS) -> Reliability | None:
    """Patients in bins of equal mass; those of equal probability share theirs, so that there may
    be fewer bins. None without a patient whose outcome is known."""
    observable = forecast.weight > 0
    if not observable.any():
        return None
    probability, outcome, weight = (
        one[observable] for one in (forecast.probability, forecast.outcome, forecast.weight)
    )
    place = _bins(probability, bins)
    count, total = np.bincount(place), np.bincount(place, weight)
    observed = np.bincount(place, weight * outcome) / total
    low, high = np.full((2, len(count)), np.nan)
    if not forecast.is_weighted:
        hits = np.bincount(place, outcome)
        low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), count - hits + 1, 0.025), 0.0)
        misses = count - hits
        high = np.where(misses > 0, betaincinv(hits + 1, np.maximum(misses, 1), 0.975), 1.0)
    return Reliability(
        predicted=np.bincount(place, weight * probability) / total,
        observed=observed,
        low=low,
        high=high,
        count=count,
        weight=total / total.sum(),
    )


def _bins(probability: Float[np.ndarray, " P"], bins: int) -> Int[np.ndarray, " P"]:
    """The bin of each patient, from 0, none of them empty."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    return np.unique(np.searchsorted(edges, probability), return_inverse=True)[1]


def error_by_chance(forecast: Forecast, *, bins: int = BINS) -> tuple[float, float] | None:
    """Mean and 95th percentile of the calibration error of a model whose probabilities are right,
    on as many patients: it is never 0, and an error below the percentile tells of nothing.

    None where patients weigh unequally, as weights hang on what happened.
    """
    if forecast.is_weighted or not len(forecast.outcome):
        return None
    place = _bins(forecast.probability, bins)
    member = np.eye(place.max() + 1)[place]
    drawn = np.random.default_rng(0).random((_DRAWS, len(place))) < forecast.probability
    distance = np.abs((drawn - forecast.probability) @ member)
    errors = distance.sum(1) / len(place)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def summary(forecast: Forecast, patients: np.ndarray) -> dict[str, float | tuple | None]:
    """What is told of the calibration of one forecast.

    Args:
      forecast: of the patients.
      patients: [P] who they are, see `intervals.figures`.

    Returns:
      `ece`, and of a model whose probabilities are right on as many patients its mean
      `ece_if_calibrated` and 95th percentile `ece_if_calibrated_high`; `bias`, by how much the
      mean probability is above the share of patients of whom it is so, with its `bias_interval`,
      None where patients weigh unequally; `brier`, the mean squared error.
    """
    diagram = reliability(forecast)
    weight = forecast.weight / len(forecast.weight)
    error = forecast.probability - forecast.outcome
    chance = error_by_chance(forecast) or (None, None)
    figure = intervals.over_rows(error, patients, intervals.DIFFERENCE)
    weighted = forecast.is_weighted
    return {
        "ece": None if diagram is None else diagram.error,
        "ece_if_calibrated": chance[0],
        "ece_if_calibrated_high": chance[1],
        "bias": float(weight @ error),
        "bias_interval": None if weighted else intervals.summarise([figure]).interval,
        "brier": float(weight @ error**2),
    }


def temperature(loss: Callable[[float], float]) -> float | None:
    """The temperature of least loss, by which logits are divided.

    Args:
      loss: mean loss of the validation patients at a temperature.

    Returns:
      None where the patients do not tell: every temperature nearer to 0 would be better still, as
      all of them are predicted right, or every higher one, as the predictions say nothing.
    """
    from scipy.optimize import minimize_scalar  # late: few runs ask for it

    limit = math.log(_HOTTEST)
    best = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=(-limit, limit), options={"xatol": 1e-6}
    )
    return None if abs(best.x) > limit - 1e-3 else float(math.exp(best.x))
