"""One figure of several seeds: mean, SD, and an interval over seeds and patients.

A seed changes the split and the training, often the slides too, and its test patients are a sample
of their own; an interval over patients alone would forget the first, one over seeds the second.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lrmil_jax.evals import bootstrap


@dataclasses.dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes:
      mean: of the seeds' figures.
      sd: of the seeds' figures (n - 1); None with one seed.
      low, high: interval of the mean; None where it is undefined.
      smallest, largest: of the seeds' figures.
      above_zero: how many seeds have a figure above 0, for differences.
      seeds: how many seeds have a figure at all.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    smallest: float | None
    largest: float | None
    above_zero: int
    seeds: int


def summarise(
    figures: Sequence[float | None],
    resampled: Sequence[Float[np.ndarray, " S"]],
    *,
    seed: int,
    level: float = 0.95,
) -> Summary:
    """Mean over seeds with a two-level bootstrap interval: seeds are drawn with replacement, and
    for each drawn seed one of its resamples of patients.

    Args:
      figures: one a seed; None where it is undefined, which leaves the seed out.
      resampled: the same figure of each seed's resampled patients, as
        `bootstrap.resampled` gives it; for a paired difference, the difference of two models'.
      seed: of the draws.
      level: coverage.
    """
    known = [index for index, figure in enumerate(figures) if figure is not None]
    if not known:
        return Summary(None, None, None, None, None, None, 0, 0)
    values = np.array([figures[index] for index in known], np.float64)
    table = np.stack([np.asarray(resampled[index], np.float64) for index in known])
    rng = np.random.default_rng(seed)
    samples = table.shape[1]
    drawn = rng.integers(len(known), size=(samples, len(known)))
    patients = rng.integers(samples, size=drawn.shape)
    bounds = bootstrap.interval(table[drawn, patients].mean(1), level=level) or (None, None)
    return Summary(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(known) > 1 else None,
        low=bounds[0],
        high=bounds[1],
        smallest=float(values.min()),
        largest=float(values.max()),
        above_zero=int((values > 0).sum()),
        seeds=len(known),
    )
