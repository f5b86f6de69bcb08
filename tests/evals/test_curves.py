"""ROC and precision-recall curves against scikit-learn, and their bands."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from lrmil_jax.evals import curves
from lrmil_jax.evals.curves import GRID, Scored


@pytest.mark.parametrize("ties", [False, True])
def test_curves_against_scikit_learn(ties):
    rng = np.random.default_rng(int(ties))
    positive = rng.random(60) < 0.3
    score = rng.normal(positive, 1.0)
    score = np.round(score) if ties else score
    made = curves.both(positive, score)
    alarms, hits, _ = roc_curve(positive, score, drop_intermediate=False)
    for rate, sensitivity in zip(GRID, made["roc"], strict=True):
        below = hits[alarms <= rate].max()
        above = hits[alarms >= rate].min()
        assert min(below, above) - 1e-12 <= sensitivity <= max(below, above) + 1e-12
    on_a_point = np.isin(np.round(GRID, 9), np.round(alarms, 9))
    for rate, sensitivity in zip(GRID[on_a_point], made["roc"][on_a_point], strict=True):
        assert sensitivity == pytest.approx(hits[np.isclose(alarms, rate)].max())
    precision, recall, _ = precision_recall_curve(positive, score)
    # scikit-learn's last point is no threshold's.
    precision, recall = precision[:-1], recall[:-1]
    for wanted, value in zip(GRID, made["pr"], strict=True):
        reached = recall >= wanted - 1e-12
        assert value == pytest.approx(precision[reached][-1])


def test_a_perfect_and_a_lone_kind():
    positive = np.array([True, True, False, False])
    made = curves.both(positive, np.array([0.9, 0.8, 0.2, 0.1]))
    np.testing.assert_array_equal(made["roc"], 1)
    np.testing.assert_array_equal(made["pr"], 1)
    assert curves.both(np.array([True, True]), np.array([0.1, 0.2])) is None


def fold(count, seed=0):
    rng = np.random.default_rng(seed)
    positive = np.arange(count) % 2 == 0
    names = np.array([f"{seed}_{number}" for number in range(count)])
    return Scored(names, positive, rng.normal(positive, 1.0))


def test_bands_hold_the_curve_and_need_patients():
    folds = [fold(40, 1), fold(40, 2), Scored(np.array(["x"]), np.array([True]), np.ones(1))]
    made = curves.over_folds(folds)
    expected = np.mean([curves.both(one.positive, one.score)["roc"] for one in folds[:2]], 0)
    np.testing.assert_allclose(made["roc"].mean, expected)
    inside = (made["roc"].low - 1e-9 <= expected) & (expected <= made["roc"].high + 1e-9)
    assert inside.mean() > 0.9
    assert (made["roc"].high - made["roc"].low).max() < 0.5
    assert curves.over_folds([fold(18)])["roc"].low is None
    assert curves.over_folds([folds[2]]) == {}
