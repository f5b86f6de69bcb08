"""How often the 95 % intervals hold the truth, in simulated studies whose truth is known.

The truth is the expected AUC of the procedure: the mean over the models that training could give,
each on the whole population. A patient has a score of its own that all models share in part, so
that models agree on patients; a model has a quality of its own.
"""

import dataclasses
import zlib

import numpy as np
import pytest
from scipy.stats import norm

from lrmil_jax.evals import intervals


@dataclasses.dataclass(frozen=True)
class Situation:
    """Attributes:
    layout: who is tested under the models: the same patients (`shared`), a third of one cohort each
      (`drawn`), each patient once (`disjoint`).
    models: k.
    patients: tested under each model.
    positive: share of positive patients.
    auc: of the model of median quality.
    quality: SD of the models' quality, in SDs of the score; 0.4 is an SD of the AUC of .07.
    """

    layout: str
    models: int
    patients: int
    positive: float
    auc: float
    quality: float

    @property
    def distance(self):
        return np.sqrt(2) * norm.ppf(self.auc)

    @property
    def truth(self):
        """E Phi((distance + quality z) / sqrt 2)."""
        return norm.cdf(self.distance / np.sqrt(2 + self.quality**2))

    def members(self, rng):
        if self.layout == "shared":
            return [np.arange(self.patients)] * self.models
        everyone = np.arange(self.patients * (3 if self.layout == "drawn" else self.models))
        if self.layout == "disjoint":
            return np.split(everyone, self.models)
        return [rng.choice(everyone, self.patients, replace=False) for _ in range(self.models)]

    def draw(self, rng):
        """Patients, labels and scores of each model's test; every test has both classes."""
        members = self.members(rng)
        while True:
            labels = (rng.random(1 + max(map(np.max, members))) < self.positive).astype(int)
            if all(0 < labels[own].sum() < len(own) for own in members):
                break
        common = np.sqrt(0.7) * rng.normal(size=len(labels))
        quality = self.distance + self.quality * rng.normal(size=self.models)
        tests = []
        for own, shift in zip(members, quality, strict=True):
            noise = np.sqrt(0.3) * rng.normal(size=len(own))
            tests.append((own, labels[own], shift * labels[own] + common[own] + noise))
        return tests


def figure(patients, labels, scores):
    """The AUC alone, as `intervals.figures` gives it, which would take minutes."""
    positive, changes = labels == 1, np.empty(len(labels))
    for kind in (positive, ~positive):
        below = (scores[kind][:, None] > scores[~kind]).mean(1)
        size = kind.sum()
        scale = np.sqrt(size / (size - 1)) if size > 1 else np.nan
        changes[kind] = scale * (below - below.mean()) / size
        auc = 1 - below.mean()  # in the end that of the negatives
    changes[~positive] *= -1
    return intervals.Figure(float(auc), changes, patients, labels)


def test_the_figures_of_the_simulation_are_those_of_the_library():
    (test,) = Situation("shared", 1, 60, 0.2, 0.85, 0.0).draw(np.random.default_rng(0))
    patients, labels, scores = test
    probability = 1 / (1 + np.exp(-scores))
    names = [f"{patient:03d}" for patient in patients]
    found = intervals.figures(labels, np.stack([1 - probability, probability], 1), names)["auc"]
    own = figure(*test)
    assert own.value == pytest.approx(found.value)
    np.testing.assert_allclose(own.influence, found.influence, atol=1e-12)


def coverage(situation, simulations):
    rng = np.random.default_rng(zlib.crc32(repr(situation).encode()))
    hits, truth = 0, situation.truth
    for _ in range(simulations):
        found = intervals.summarise([figure(*test) for test in situation.draw(rng)])
        if found.low is None:  # a lone positive: nothing is claimed
            continue
        hits += found.low <= truth <= found.high
    return hits / simulations


SITUATIONS = [
    Situation(layout, models, patients, positive, auc, quality)
    for layout, models in (("shared", 1), ("shared", 5), ("drawn", 5), ("disjoint", 5))
    for patients, positive, auc in ((60, 0.5, 0.7), (60, 0.2, 0.85), (60, 0.2, 0.95),
                                    (100, 0.5, 0.85), (200, 0.2, 0.9))
    for quality in ((0.0,) if models == 1 else (0.0, 0.15, 0.4))
]  # fmt: skip
# Folds of a usual cross-validation: few patients a fold.
SITUATIONS += [
    Situation("disjoint", 5, patients, positive, auc, quality)
    for patients, positive, auc in ((20, 0.5, 0.85), (40, 0.2, 0.9))
    for quality in (0.0, 0.15, 0.4)
]


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say():
    """.95 in the mean of the situations, and in each from .93 to .97, to two standard errors of
    the simulation and a hundredth."""
    simulations = 1000
    found = {}
    for situation in SITUATIONS:
        found[situation] = coverage(situation, simulations)
        print(f"{found[situation]:.3f}", *dataclasses.astuple(situation), flush=True)
    assert 0.94 <= np.mean(list(found.values())) <= 0.96
    error = 0.01 + 2 * np.sqrt(0.95 * 0.05 / simulations)
    off = {s: value for s, value in found.items() if not 0.93 - error <= value <= 0.97 + error}
    assert off == {}


@pytest.mark.parametrize("layout", ["shared", "disjoint"])
def test_intervals_hold_in_a_small_simulation(layout):
    """Taking patients of five models for different people holds in 73 of 100, an interval twice as
    wide as it should be in all."""
    value = coverage(Situation(layout, 5, 60, 0.5, 0.85, 0.15), 150)
    assert 0.90 <= value < 1
