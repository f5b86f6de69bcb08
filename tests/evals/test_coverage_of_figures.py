"""How often the 95 % intervals of single figures, differences, subgroups and net benefit hold what
is true in the whole population, in simulated studies of a calibrated model and a poorer one."""

import zlib

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from lrmil_jax.evals import calibration, decision, intervals, metrics


def patients(count, positive, distance, rng):
    """Classes, and the probabilities of two models whose scores share half of their noise."""
    labels = (rng.random(count) < positive).astype(int)
    common = rng.normal(size=count)
    probabilities = []
    for strength in (distance, 0.8 * distance):
        noise = np.sqrt(0.5) * (common + rng.normal(size=count))
        score = strength * labels + noise
        one = expit(logit(positive) + strength * (score - strength / 2))
        probabilities.append(np.stack([1 - one, one], 1))
    return labels, probabilities


def both_classes(count, positive, distance, rng):
    while True:
        labels, probabilities = patients(count, positive, distance, rng)
        if 1 < labels.sum() < count - 1:
            return labels, probabilities


def share(hits):
    """Of each figure the share of intervals that held, and of how many intervals there are."""
    return {name: (float(np.nanmean(values)), int(np.isfinite(values).sum()))
            for name, values in hits.items()}  # fmt: skip


def holds(figures, truth):
    interval = intervals.summarise(figures).interval
    return np.nan if interval is None else interval[0] <= truth <= interval[1]


POPULATION = 400_000


def simulated(situation, simulations):
    """Coverage of every figure, of the difference of two models and of the net benefit."""
    rng = np.random.default_rng(zlib.crc32(repr(situation).encode()))
    count, positive, distance = situation
    labels, models = patients(POPULATION, positive, distance, rng)
    truths = [metrics.compute(labels, one) for one in models]
    worth = {t: decision.benefits(labels == 1, models[0][:, 1], t).mean() for t in (0.1, 0.4)}
    hits = {}

    def add(name, value):
        hits.setdefault(name, []).append(value)

    names = np.arange(count)
    for _ in range(simulations):
        labels, models = both_classes(count, positive, distance, rng)
        one, other = (intervals.figures(labels, model, names) for model in models)
        for name in metrics.NAMES:
            add(name, holds([one[name]], truths[0][name]))
            gap = intervals.difference(one[name], other[name])
            add(f"{name} difference", holds([gap], truths[0][name] - truths[1][name]))
        for threshold, truth in worth.items():
            figure = decision.figures(labels == 1, models[0][:, 1], names, threshold=threshold)
            add(f"net benefit at {threshold}", holds([figure["benefit"]], truth))
        told = calibration.summary(calibration.Forecast.of(models[0][:, 1], labels == 1), names)
        low, high = told["bias_interval"]
        add("bias", low <= 0 <= high)
        add("ECE is not above chance", told["ece"] <= told["ece_if_calibrated_high"])
    return share(hits)


SITUATIONS = [(60, 0.5, 1.2), (160, 0.2, 1.2), (160, 0.5, 2.0), (800, 0.3, 1.2)]


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_intervals_hold_as_often_as_they_say(situation):
    found = simulated(situation, 1000)
    for name, (value, count) in found.items():
        print(f"{value:.3f}", count, name, *situation, flush=True)
    # Two standard errors of the simulation are .014. Average precision of few positives is above
    # its value in the population, by which its intervals hold less often.
    least = {name: 0.90 if "average_precision" in name else 0.925 for name in found}
    assert {name: value for name, (value, _) in found.items() if value < least[name]} == {}


QUALITY = 0.15  # SD of the models' quality, in SDs of the score


def of_folds(size, folds, positive, shift, rng):
    """AUCs of a subgroup and of the others, each fold with a model of its own and its own patients;
    the score of the subgroup tells less by `shift`."""
    pairs = []
    for fold in range(folds):
        # One model alone tells nothing of how models differ.
        quality = 1.4 + (QUALITY * rng.normal() if folds > 1 else 0.0)
        sides = []
        for side, (count, strength) in enumerate(
            ((size // folds, quality - shift), (160 - size // folds, quality))
        ):
            labels = (rng.random(count) < positive).astype(int)
            one = expit(strength * labels + rng.normal(size=count))
            names = [f"{fold}/{side}/{number}" for number in range(count)]
            figures = intervals.figures(labels, np.stack([1 - one, one], 1), names)
            sides.append(figures["auc"])
        pairs.append(sides)
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("size", [20, 40, 100])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_subgroups_and_their_differences(size, folds, shift):
    rng = np.random.default_rng(zlib.crc32(repr((size, folds, shift)).encode()))
    spread = np.sqrt(2 + (QUALITY**2 if folds > 1 else 0.0))
    truth = [norm.cdf(strength / spread) for strength in (1.4 - shift, 1.4)]
    hits = {"value": [], "difference": []}
    for _ in range(1000):
        pairs = of_folds(size, folds, 0.4, shift, rng)
        hits["value"].append(holds([one for one, _ in pairs], truth[0]))
        sides = [intervals.summarise([pair[side] for pair in pairs]) for side in (0, 1)]
        _, bounds = intervals.apart(*sides)
        gap = truth[0] - truth[1]
        hits["difference"].append(np.nan if bounds is None else bounds[0] <= gap <= bounds[1])
    found = share(hits)
    print(f"size {size} folds {folds} shift {shift}", found, flush=True)
    # Four patients of a subgroup in a fold, which lack a class now and then: on the safe side.
    assert all(value >= 0.925 for value, _ in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("patients", [40, 160])
def test_differences_over_folds(patients):
    """Five folds of their own patients, in each two models of one quality or another."""
    rng = np.random.default_rng(patients)
    truth = np.subtract(*(norm.cdf(mean / np.sqrt(2 + QUALITY**2)) for mean in (1.6, 1.3)))
    hits = []
    for _ in range(1000):
        gaps = []
        for _ in range(5):
            labels = (rng.random(patients) < 0.4).astype(int)
            common, names = rng.normal(size=patients), [str(rng.random()) for _ in labels]
            sides = []
            for mean in (1.6, 1.3):
                quality = mean + QUALITY * rng.normal()
                score = quality * labels + np.sqrt(0.5) * (common + rng.normal(size=patients))
                one = expit(score)
                sides.append(intervals.figures(labels, np.stack([1 - one, one], 1), names)["auc"])
            gaps.append(intervals.difference(*sides))
        hits.append(holds(gaps, truth))
    print(f"five folds of {patients}: {np.mean(hits):.3f}", flush=True)
    assert 0.93 <= np.mean(hits) <= 0.98
