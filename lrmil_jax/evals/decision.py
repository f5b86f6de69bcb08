"""Decision curves: what acting on a model's probabilities is worth.

Whoever treats from a probability t on holds one needless treatment to be as bad as t / (1 - t) of
a missed case: that is what the threshold means. Net benefit counts cases found less needless
treatments at this rate, per patient; treating nobody is worth 0.

Source: Vickers and Elkin, "Decision curve analysis: a novel method for evaluating prediction
models", Medical Decision Making 26 (2006).
"""

import numpy as np
from jaxtyping import Bool, Float

from lrmil_jax.evals import intervals
from lrmil_jax.evals.intervals import Figure

THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)
# The worth of a needless treatment has no bound as the threshold nears 1.
_LIMITS = (-float("inf"), 1.0)


def benefits(
    positive: Bool[np.ndarray, " P"], probability: Float[np.ndarray, " P"], threshold: float
) -> Float[np.ndarray, " P"]:
    """What each patient adds to the net benefit, their mean."""
    treated = probability >= threshold
    return np.where(positive, 1.0, -threshold / (1 - threshold)) * treated


def figures(
    positive: Bool[np.ndarray, " P"],
    probability: Float[np.ndarray, " P"],
    patients: np.ndarray,
    *,
    threshold: float,
) -> dict[str, Figure]:
    """Net benefit at a threshold: `benefit`, the model's, that of treating `all`, and how much the
    model is worth `beyond` the better of treating all and nobody.

    Which of these two is better is decided on the same patients.
    """
    model = benefits(positive, probability, threshold)
    everyone = benefits(positive, np.ones(len(positive)), threshold)
    default = everyone if everyone.mean() > 0 else np.zeros(len(positive))
    kinds = {"benefit": model, "all": everyone, "beyond": model - default}
    return {name: intervals.over_rows(one, patients, _LIMITS) for name, one in kinds.items()}
