"""The paired bootstrap: what a difference is when other patients of the same kind are drawn.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from lrmil_jax.progress import progress

Measure = Callable[[Int[np.ndarray, " n"]], Mapping[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A difference over draws of patients.

    Attributes:
      low, high: 2.5th and 97.5th percentile.
      p: two-sided, twice the smaller share of draws at or beyond 0, never below 2 / (draws + 1).
      draws: of how many the difference is defined.
    """

    low: float
    high: float
    p: float
    draws: int


def paired(
    tests: Sequence[tuple[np.ndarray, Measure]], *, draws: int, seed: int = 0
) -> dict[str, Resampled | None]:
    """Differences, the mean over tests (folds) of those that define them.

    Patients are drawn with replacement, each with all of his or her rows in all tests, so that one
    who is tested in several folds is one patient.

    Args:
      tests: of each test who its rows are of, [n], and the differences of the two models on rows
        that are given by their numbers.
      draws: how many.
      seed: of the draws.

    Returns:
      By metric; None where fewer than nine in ten draws define it.
    """
    names, place = np.unique(np.concatenate([who for who, _ in tests]), return_inverse=True)
    places = np.split(place, np.cumsum([len(who) for who, _ in tests])[:-1])
    rng = np.random.default_rng(seed)
    differences: dict[str, list[float]] = {}
    with progress("bootstrap", draws) as bar:
        for _ in range(draws):
            times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
            for name, value in _mean(tests, places, times).items():
                differences.setdefault(name, []).append(value)
            bar.advance()
    return {name: _resampled(np.array(values)) for name, values in differences.items()}


def _mean(
    tests: Sequence[tuple[np.ndarray, Measure]],
    places: Sequence[np.ndarray],
    times: Int[np.ndarray, " U"],
) -> dict[str, float]:
    """Mean over the tests of one draw, NaN where none defines it."""
    drawn = [np.repeat(np.arange(len(place)), times[place]) for place in places]
    measured = [measure(rows) for (_, measure), rows in zip(tests, drawn, strict=True) if len(rows)]
    means = {}
    for name in dict.fromkeys(name for one in measured for name in one):
        values = [one[name] for one in measured if one[name] is not None]
        means[name] = float(np.mean(values)) if values else np.nan
    return means


def _resampled(values: np.ndarray) -> Resampled | None:
    defined = values[np.isfinite(values)]
    if len(defined) < 0.9 * len(values):
        return None
    beyond = min((defined <= 0).sum(), (defined >= 0).sum())
    low, high = np.quantile(defined, (0.025, 0.975))
    p = min(1.0, 2 * (beyond + 1) / (len(defined) + 1))
    return Resampled(float(low), float(high), float(p), len(defined))
