"""Influences against numerical derivatives of scikit-learn's weighted metrics."""

import numpy as np
import pytest
from sklearn import metrics as sk

from lrmil_jax.evals import influence, metrics


def data(patients=40, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(patients) % classes)
    logits = rng.normal(size=(patients, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Rounded so that scores tie, as they do with few slides.
    probabilities[:, 0] = np.round(probabilities[:, 0], 1)
    probabilities[:, 1:] *= (1 - probabilities[:, :1]) / probabilities[:, 1:].sum(1, keepdims=True)
    return labels, probabilities


def weighted(name, labels, probabilities, weights):
    predicted = probabilities.argmax(1)
    how = {"sample_weight": weights}
    if name == "accuracy":
        return sk.accuracy_score(labels, predicted, **how)
    if name == "balanced_accuracy":
        return sk.balanced_accuracy_score(labels, predicted, **how)
    if name == "loss":
        return np.average(metrics.cross_entropy(labels, probabilities), weights=weights)
    if name == "kappa":
        return sk.cohen_kappa_score(labels, predicted, **how)
    if name == "brier":
        return np.average(metrics.squared_error(labels, probabilities), weights=weights)
    if name in ("auc", "average_precision"):
        score = sk.roc_auc_score if name == "auc" else sk.average_precision_score
        columns = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
        return np.mean([score(labels == c, probabilities[:, c], **how) for c in columns])
    return sk.f1_score(labels, predicted, average=name.removeprefix("f1_"), **how)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", metrics.NAMES)
def test_they_are_derivatives_by_the_weight_of_a_patient(name, classes):
    labels, probabilities = data(36, classes)
    count, step = len(labels), 1e-5
    slopes = []
    for patient in range(count):
        ends = []
        for sign in (1, -1):
            weights = np.ones(count)
            weights[patient] += sign * step
            ends.append(weighted(name, labels, probabilities, weights))
        slopes.append((ends[0] - ends[1]) / (2 * step))
    per_class = name in influence.OVER_CLASSES
    size = count // classes if per_class else count
    expected = np.array(slopes) * np.sqrt(size / (size - 1))
    got = influence.influences(labels, probabilities)[name]
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_variance_of_the_auc_by_hand():
    """DeLong: positives 3, 1 against negatives 2, 0 win 1 and 1/2, negatives lose 1/2 and 1."""
    labels = np.array([1, 1, 0, 0])
    score = np.array([0.9, 0.4, 0.6, 0.1])
    got = influence.influences(labels, np.stack([1 - score, score], 1))["auc"]
    np.testing.assert_allclose(got, np.sqrt(2) * np.array([0.125, -0.125, -0.125, 0.125]))
    # S10 / 2 + S01 / 2 with both 1/8: 0.125.
    assert (got**2).sum() == pytest.approx(0.125)


def test_variance_of_accuracy_is_the_binomial_one():
    labels = np.zeros(400, int)
    probabilities = np.where(np.arange(400)[:, None] < 300, [[0.9, 0.1]], [[0.1, 0.9]])
    got = influence.influences(labels, probabilities)["accuracy"]
    assert (got**2).sum() == pytest.approx(0.75 * 0.25 / 399)


def test_unknown_spread_is_nan():
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1]] * 3 + [[0.2, 0.8]])
    got = influence.influences(labels, probabilities)
    assert np.isnan(got["auc"]).tolist() == [False, False, False, True]
    assert np.isnan(got["balanced_accuracy"][3])
    assert np.isfinite(got["accuracy"]).all()
    one_class = influence.influences(np.zeros(3, int), np.full((3, 2), 0.5))
    assert np.isnan(one_class["auc"]).all()
    assert np.isnan(influence.influences(labels[:1], probabilities[:1])["loss"]).all()


def test_rows_that_are_drawn_together():
    labels, probabilities = data(12)
    groups = np.arange(12) % 4
    got = influence.influences(labels, probabilities, groups=groups)["accuracy"]
    right = (probabilities.argmax(1) == labels).astype(float)
    sums = [(right - right.mean())[groups == group].sum() / 12 for group in range(4)]
    np.testing.assert_allclose(got, np.sqrt(4 / 3) * np.array(sums), atol=1e-12)
    one = influence.influences(labels, probabilities, groups=np.zeros(12, int))
    assert all(np.isnan(values).all() for values in one.values())
