"""Thresholds by hand, against scikit-learn's ROC curve, and where there is nothing to choose."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_curve

from lrmil_jax.evals import thresholds


def both(scores):
    scores = np.asarray(scores, float)
    return np.stack([1 - scores, scores], 1)


def test_by_hand():
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    # Youden: from 0.4 on all 4 positives and 1 of 4 negatives (3/4), from 0.6 on 3 positives and
    # no negative (3/4 too): the lower of the two.
    found = thresholds.choose(labels, both(scores), sensitivity=0.75)
    assert found == pytest.approx({"youden": 0.35, "sensitivity": 0.55})
    assert thresholds.choose(labels, both(scores), sensitivity=0.76)["sensitivity"] == (
        pytest.approx(0.35)
    )
    got = thresholds.at(labels, both(scores), found["youden"])
    assert got == pytest.approx({"threshold": 0.35, "accuracy": 7 / 8, "balanced_accuracy": 7 / 8,
                                 "sensitivity": 1.0, "specificity": 0.75})  # fmt: skip


def test_patients_of_one_score_are_called_together():
    labels, scores = np.array([0, 1, 1, 0]), [0.5, 0.5, 0.9, 0.1]
    found = thresholds.choose(labels, both(scores), sensitivity=0.5)
    # 0.5: both positives, one of two negatives (1/2); 0.9: one positive, no negative (1/2).
    assert found == pytest.approx({"youden": 0.3, "sensitivity": 0.7})


def test_a_blind_score_calls_everybody_positive():
    found = thresholds.choose(np.array([0, 1, 0, 1]), both([0.4] * 4), sensitivity=0.95)
    assert found == pytest.approx({"youden": 0.2, "sensitivity": 0.2})
    assert thresholds.at(np.array([0, 1]), both([0.4, 0.4]), 0.2)["specificity"] == 0


def test_a_whole_number_of_positives_is_not_rounded_up():
    """0.07 x 100 is 7.000000000000001 in floating point."""
    labels = np.r_[np.zeros(2, int), np.ones(100, int)]
    scores = np.r_[0.0, 0.001, np.linspace(0.01, 0.99, 100)]
    threshold = thresholds.choose(labels, both(scores), sensitivity=0.07)["sensitivity"]
    assert (scores >= threshold).sum() == 7


def test_nothing_to_choose():
    assert thresholds.choose(np.zeros(3, int), both([0.1, 0.2, 0.3]), sensitivity=0.9) == {}
    only = thresholds.choose(np.ones(3, int), both([0.1, 0.2, 0.3]), sensitivity=0.9)
    assert only == pytest.approx({"sensitivity": 0.05})
    three = np.full((3, 3), 1 / 3)
    assert thresholds.choose(np.arange(3), three, sensitivity=0.9) == {}


def test_scores_too_close_for_a_middle():
    high = np.nextafter(0.5, 1)
    found = thresholds.choose(np.array([0, 1]), both([0.5, high]), sensitivity=1.0)
    assert found == {"youden": high, "sensitivity": high}


def test_without_a_class_its_figures_are_none():
    got = thresholds.at(np.zeros(4, int), both([0.1, 0.2, 0.3, 0.9]), 0.5)
    assert (got["sensitivity"], got["balanced_accuracy"]) == (None, None)
    assert (got["specificity"], got["accuracy"]) == (0.75, 0.75)


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learns_curve_says(seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3 == 0).astype(int)
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 2)  # with ties
    found = thresholds.choose(labels, both(scores), sensitivity=0.9)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    got = thresholds.at(labels, both(scores), found["youden"])
    assert got["sensitivity"] + got["specificity"] - 1 == pytest.approx((true - false).max())
    assert got["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, scores >= found["youden"])
    )
    reached = true >= 0.9
    got = thresholds.at(labels, both(scores), found["sensitivity"])
    assert got["sensitivity"] == pytest.approx(true[reached].min())
    assert got["specificity"] == pytest.approx(1 - false[reached].min())
