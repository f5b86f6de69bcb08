"""Intervals over patients and models: one rule for a figure, a mean over folds or seeds, and a
paired difference.

A figure of k models, each measured on its test patients, varies for two reasons: other patients
could have been tested, and other models trained. A patient that several models are tested on is one
patient, so patients are accounted for first, over all models together; what the figures differ by
beyond that is the models'. See `summarise`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer
from scipy.special import expit, logit, stdtr, stdtrit

from lrmil_jax.errors import ConfigError
from lrmil_jax.evals import influence, metrics

Bounds = tuple[float, float]
SHARE: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)
ANYTHING: Bounds = (-float("inf"), float("inf"))
# Of metrics; the others are shares.
_RANGES = {"loss": (0.0, float("inf")), "brier": (0.0, float("inf")), "kappa": DIFFERENCE}


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one model reached on its test patients.

    Attributes:
      value: the figure; None where it is undefined.
      influence: [P] of each patient on it, as `influence.influences` gives it.
      patients: [P] their identities, each once; equal names in two figures are one patient.
      strata: [P] the group of each whose size counts: the class where a figure compares classes.
      range: what the figure cannot leave.
    """

    value: float | None
    influence: Float[np.ndarray, " P"]
    patients: np.ndarray
    strata: Integer[np.ndarray, " P"]
    range: Bounds = SHARE


@dataclasses.dataclass(frozen=True)
class Summary:
    """A figure over models.

    Attributes:
      mean: of the models' figures.
      sd: of the models' figures (k - 1); None with one.
      low, high: interval of the mean; None where nothing is known of the spread.
      smallest, largest: of the models' figures.
      above_zero: how many figures are above 0, for differences.
      count: how many models have a figure at all.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    smallest: float | None
    largest: float | None
    above_zero: int
    count: int

    @property
    def interval(self) -> Bounds | None:
        """(low, high), or None."""
        return None if self.low is None else (self.low, self.high)


def figures(
    labels: Integer[np.ndarray, "P"],
    probabilities: Float[np.ndarray, "P C"],
    patients: Sequence[str] | np.ndarray,
) -> dict[str, Figure]:
    """Every metric of one model.

    Args:
      labels, probabilities: as for `metrics.compute`.
      patients: who each row is of. Rows with one name are drawn together: the tiles of a patient,
        or the patients whose slides are composed of the same fields.

    Returns:
      One figure for each of `metrics.NAMES`.

    Raises:
      DataError: see `metrics.compute`.
    """
    values = metrics.compute(labels, probabilities)
    names, groups = np.unique(np.asarray(patients, str), return_inverse=True)
    single, order = len(names) == len(groups), np.argsort(groups)
    if single:
        labels, probabilities = np.asarray(labels)[order], np.asarray(probabilities)[order]
    each = influence.influences(labels, probabilities, groups=None if single else groups)
    made = {}
    for name, value in values.items():
        by_class = single and name in influence.OVER_CLASSES
        strata = labels.astype(np.int64) if by_class else np.zeros(len(names), np.int64)
        made[name] = Figure(value, each[name], names, strata, _RANGES.get(name, SHARE))
    return made


def of_one(measured: dict[str, Figure]) -> dict[str, Bounds | None]:
    """The 95 % interval of every figure of one model, over its patients."""
    return {name: summarise([figure]).interval for name, figure in measured.items()}


def mean(of: Sequence[Figure]) -> Figure:
    """The mean of the defined figures of several models as one figure, over all their patients."""
    of = [figure for figure in of if figure.value is not None]
    if not of:
        return Figure(None, np.zeros(0), np.zeros(0, str), np.zeros(0, np.int64))
    table, names, strata = _table(of)
    value = float(np.mean([figure.value for figure in of]))
    return Figure(value, table.mean(0), names, strata, of[0].range)


def difference(one: Figure, other: Figure) -> Figure | None:
    """The first figure less the second, of the same patients; None if they are others."""
    if not np.array_equal(one.patients, other.patients):
        return None
    undefined = one.value is None or other.value is None
    # Two models at a bound have influences of 0, which would make their difference certain.
    certain = not undefined and one.value == other.value and one.value in one.range
    return Figure(
        None if undefined else one.value - other.value,
        np.full_like(one.influence, np.nan) if certain else one.influence - other.influence,
        one.patients,
        one.strata,
        DIFFERENCE if one.range == SHARE else ANYTHING,
    )


def apart(one: Summary, other: Summary) -> tuple[float | None, Bounds | None]:
    """The first figure less the second, of other patients, such as those of two hospitals, and the
    interval that follows from theirs; None where one of them is not known.

    The bounds of a difference lie as far from it as those of both figures together, by Pythagoras,
    so that what is lopsided about theirs stays so.
    Source: Newcombe, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17 (1998); for any figure Zou and Donner, Statistics in Medicine 27
    (2008). Where the same models gave both figures it is on the safe side.
    """
    if one.mean is None or other.mean is None:
        return None, None
    gap = one.mean - other.mean
    if one.interval is None or other.interval is None:
        return gap, None
    down = np.hypot(one.mean - one.low, other.high - other.mean)
    up = np.hypot(one.high - one.mean, other.mean - other.low)
    return gap, (float(gap - down), float(gap + up))


def over_rows(
    values: Float[np.ndarray, " n"], patients: np.ndarray, limits: Bounds = SHARE
) -> Figure:
    """The mean over rows, such as slides, as a figure of patients with all of their rows.

    Args:
      values: of each row; NaN is left out.
      patients: [n] whose each is.
      limits: what the mean cannot leave.
    """
    defined = np.isfinite(values)
    values, (names, place) = values[defined], np.unique(patients[defined], return_inverse=True)
    mean = float(values.mean()) if len(values) else None
    influences = np.zeros(0)
    if mean is not None:
        scale = np.sqrt(len(names) / (len(names) - 1)) if len(names) > 1 else np.nan
        influences = scale * np.bincount(place, values - mean) / len(values)
    return Figure(mean, influences, names, np.zeros(len(names), np.int64), limits)


def p_value(of: Sequence[Figure]) -> float | None:
    """Two-sided p of differences that in truth have the mean 0, by the variance and the degrees of
    freedom of `summarise`; None where nothing is known of the spread."""
    of = [figure for figure in of if figure.value is not None]
    if not of:
        return None
    values = np.array([figure.value for figure in of], np.float64)
    table, _, strata = _table(of)
    if len(of) == 1 and np.isnan(table).any():
        return None
    variance, freedom = _variance(np.nan_to_num(table), strata, values)
    if variance == 0:
        return None
    return float(2 * stdtr(freedom, -abs(values.mean()) / np.sqrt(variance)))


def summarise(of: Sequence[Figure], *, level: float = 0.95) -> Summary:
    """Mean over models, with an interval for the mean of the procedure on the whole population.

    With the influence d[f, i] of patient i on model f's figure (0 where i is not tested under f),
    s2 the variance of the k figures:
      patients     Vp = sum_i (mean_f d[f, i])^2,
      interaction  I = sum_i var_f d[f, i], by how much patients alone make the figures differ,
      models       M = max(0, s2 - I),
    the variance of the mean is Vp + M / k. Disjoint patients, shared patients and all between are
    the same formula. Its degrees of freedom are Satterthwaite's; as M is a difference, it is as
    uncertain as s2 is. The interval is Student's on the logit scale for shares, on the log scale
    for what is above 0, and as it is, clipped to the range, for differences.

    Where all figures are at 0 or 1 no influence tells of the spread: the bound is then Clopper and
    Pearson's, as if each patient of the smallest stratum were one trial.

    Args:
      of: one a model. Undefined figures leave their model out.
      level: coverage.

    Returns:
      Without a defined figure, all None.

    Raises:
      ConfigError: `level` out of range.
    """
    if not 0 < level < 1:
        raise ConfigError(f"The level of an interval lies between 0 and 1, it is {level}.")
    of = [figure for figure in of if figure.value is not None]
    if not of:
        return Summary(None, None, None, None, None, None, 0, 0)
    values = np.array([figure.value for figure in of], np.float64)
    low, high = _interval(of, values, level) or (None, None)
    return Summary(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(of) > 1 else None,
        low=low,
        high=high,
        smallest=float(values.min()),
        largest=float(values.max()),
        above_zero=int((values > 0).sum()),
        count=len(of),
    )


def _interval(of: Sequence[Figure], values: Float[np.ndarray, " k"], level: float) -> Bounds | None:
    table, _, strata = _table(of)
    middle, limits = values.mean(), of[0].range
    if limits == SHARE and middle in SHARE:
        beyond = ((1 - level) / 2) ** (1 / np.bincount(strata)[np.unique(strata)].min())
        return (float(beyond), 1.0) if middle == 1 else (0.0, float(1 - beyond))
    if len(of) == 1 and np.isnan(table).any():
        return None
    # Of several models, what a lone patient's spread lacks shows in the spread of the figures.
    variance, freedom = _variance(np.nan_to_num(table), strata, values)
    if variance == 0:
        # At a bound, such as a kappa of 1, influences of 0 tell of no certainty.
        unknown = np.isnan(table).any() or middle in limits
        return None if unknown else (float(middle), float(middle))
    half = stdtrit(freedom, (1 + level) / 2) * np.sqrt(variance)
    ends = np.array([-half, half])
    if limits == SHARE:
        ends = expit(logit(middle) + ends / (middle * (1 - middle)))
    elif limits[0] == 0:
        ends = middle * np.exp(ends / middle)
    else:
        ends = np.clip(middle + ends, *limits)
    return float(ends[0]), float(ends[1])


def _variance(
    table: Float[np.ndarray, "k U"],
    strata: Integer[np.ndarray, " U"],
    values: Float[np.ndarray, " k"],
) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom."""
    count, squares = len(values), table.mean(0) ** 2
    of_strata = np.bincount(strata, squares)
    sizes = np.bincount(strata)
    uncertain = (of_strata**2 / np.maximum(sizes - 1, 1)).sum()
    variance = squares.sum()
    if count > 1:
        spread = values.var(ddof=1)
        models = max(0.0, spread - table.var(0, ddof=1).sum())
        variance += models / count
        if models > 0:
            uncertain += (spread / count) ** 2 / (count - 1)
    return float(variance), float(variance**2 / uncertain) if uncertain > 0 else np.inf


def _table(
    of: Sequence[Figure],
) -> tuple[Float[np.ndarray, "k U"], np.ndarray, Integer[np.ndarray, " U"]]:
    """Influences of all patients of all models, 0 where a patient is not tested; who they are."""
    names, where = np.unique(np.concatenate([one.patients for one in of]), return_inverse=True)
    strata = np.zeros(len(names), np.int64)
    table = np.zeros((len(of), len(names)))
    start = 0
    for row, figure in zip(table, of, strict=True):
        places = where[start : start + len(figure.patients)]
        row[places], strata[places] = figure.influence, figure.strata
        start += len(figure.patients)
    return table, names, strata
