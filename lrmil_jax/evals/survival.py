"""How well a risk orders patients by their time to an event, some of whom were followed for less.

`event` is True where it was observed at `time`, False where the patient was last seen without it.
"""

import numpy as np
from jaxtyping import Bool, Float

from lrmil_jax.evals import jackknife
from lrmil_jax.evals.intervals import SHARE, Figure


def concordance(
    time: Float[np.ndarray, " P"], event: Bool[np.ndarray, " P"], risk: Float[np.ndarray, " P"]
) -> float | None:
    """Harrell's C: of the pairs whose order is known, the share whose risks are in that order.

    A pair is known where one has the event while the other is still followed, also where both
    times are equal and the other is censored. Equal risks count half; None without a known pair.
    Source: Harrell et al., "Evaluating the yield of medical tests", JAMA 247 (1982).
    """
    known, right = _pairs(time, event, risk)
    return float(right.sum() / known.sum()) if known.any() else None


def concordance_figure(
    time: Float[np.ndarray, " P"],
    event: Bool[np.ndarray, " P"],
    risk: Float[np.ndarray, " P"],
    patients: np.ndarray,
) -> Figure:
    """`concordance` with each patient's influence: the jackknife of a ratio of sums over pairs, of
    which a patient's own are a row and a column."""
    names, groups = np.unique(np.asarray(patients, str), return_inverse=True)
    count = len(names)
    known, right = (_between(pairs, groups, count) for pairs in _pairs(time, event, risk))
    total = [known.sum(), right.sum()]
    own = [pairs.sum(0) + pairs.sum(1) - pairs.diagonal() for pairs in (known, right)]
    left_known = total[0] - own[0]
    without = np.full(count, np.nan)
    np.divide(total[1] - own[1], left_known, out=without, where=left_known > 0)
    value = float(total[1] / total[0]) if total[0] else None
    return Figure(value, jackknife.influence(without), names, np.zeros(count, np.int64), SHARE)


def _pairs(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[P, P]: the first has the event first; and how right the risks are of that."""
    earlier = time[:, None] < time[None]
    same = (time[:, None] == time[None]) & ~event[None]
    known = event[:, None] & (earlier | same)
    right = (risk[:, None] > risk[None]) + 0.5 * (risk[:, None] == risk[None])
    return known.astype(np.float64), known * right


def _between(pairs: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    if count == len(groups):
        order = np.argsort(groups)
        return pairs[order][:, order]
    one = np.eye(count)[groups]
    return one.T @ pairs @ one


def time_dependent_auc(
    time: Float[np.ndarray, " P"], event: Bool[np.ndarray, " P"], risk: Float[np.ndarray, " P"]
) -> float | None:
    """Mean over the quartiles of the observed event times t of the AUC that tells those with the
    event by t from those followed beyond it, cases weighted by the inverse probability of not being
    censored before their event.

    Source: Uno et al., "Evaluating prediction rules for t-year survivors with censored regression
    models", JASA 102 (2007); the mean is over times, not weighted. None without a case and a
    control.
    """
    if not event.any():
        return None
    weight = 1 / np.maximum(_uncensored(time, event), 1e-8)
    found = []
    for limit in np.quantile(time[event], (0.25, 0.5, 0.75)):
        case, control = event & (time <= limit), time > limit
        if case.any() and control.any():
            others = np.sort(risk[control])
            lower = np.searchsorted(others, risk[case], "left")
            equal = np.searchsorted(others, risk[case], "right") - lower
            share = (lower + 0.5 * equal) / len(others)
            found.append(np.average(share, weights=weight[case]))
    return float(np.mean(found)) if found else None


def status_weights(
    time: Float[np.ndarray, " P"], event: Bool[np.ndarray, " P"], limit: float
) -> Float[np.ndarray, " P"]:
    """What patients count for when it is asked whether they had the event by a time: 0 where that
    is not known, else the inverse probability of not being censored before it is.

    Source: Graf et al., "Assessment and comparison of prognostic classification schemes for
    survival data", Statistics in Medicine 18 (1999).
    """
    times, kept = _censoring(time, event)
    by_then = np.concatenate([[1.0], kept])[np.searchsorted(times, limit, "right")]
    uncensored = np.where(time > limit, by_then, _uncensored(time, event))
    return np.where((time > limit) | event, 1 / np.maximum(uncensored, 1e-8), 0.0)


def _uncensored(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Probability of not being censored before each patient's own time."""
    times, kept = _censoring(time, event)
    return np.concatenate([[1.0], kept[:-1]])[np.searchsorted(times, time)]


def _censoring(time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan and Meier's probability of not being censored up to each time that occurs."""
    times, place = np.unique(time, return_inverse=True)
    at_risk = len(time) - np.searchsorted(np.sort(time), times, "left")
    # Whoever has the event at a time was no longer at risk of being censored at it.
    at_risk = at_risk - np.bincount(place, event, len(times))
    censored = np.bincount(place, ~event, len(times))
    share = np.divide(censored, at_risk, out=np.zeros(len(times)), where=at_risk > 0)
    return times, np.cumprod(1 - share)
