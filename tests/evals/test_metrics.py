"""Metrics by hand and at their edges."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from lrmil_jax.errors import DataError
from lrmil_jax.evals import metrics


def test_binary_by_hand():
    labels = np.array([0, 0, 1, 1])
    ones = np.array([0.1, 0.6, 0.4, 0.8])
    got = metrics.compute(labels, np.stack([1 - ones, ones], 1))
    assert got["accuracy"] == 0.5
    assert got["balanced_accuracy"] == 0.5
    assert got["f1_macro"] == got["f1_weighted"] == 0.5
    assert got["auc"] == 0.75  # of four pairs only (0.6, 0.4) is the wrong way round
    expected = -np.mean([math.log(0.9), math.log(0.4), math.log(0.4), math.log(0.8)])
    assert got["loss"] == pytest.approx(expected)
    # At 0.8 precision is 1, at 0.4 2 of 3: each finds half of the positives.
    assert got["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)
    assert got["kappa"] == 0.0  # as often right as by chance
    assert tuple(got) == metrics.NAMES


def test_several_classes_by_hand():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.5, 0.2]])
    got = metrics.compute(labels, probabilities)
    assert got["accuracy"] == 0.5
    assert got["balanced_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    f1 = np.array([2 / 3, 0.0, 2 / 3])
    assert got["f1_macro"] == pytest.approx(f1.mean())
    assert got["f1_weighted"] == pytest.approx((f1 * [0.25, 0.25, 0.5]).sum())
    # Class 0: 3 of 3 pairs; class 1: 0.3 beats 0.1 and 0.2 of three; class 2: 0.7 beats both
    # others, 0.2 beats 0.1 and ties with 0.2.
    assert got["auc"] == pytest.approx((1 + 2 / 3 + 3.5 / 4) / 3)
    # Of four each, chance agrees in 2/4 x 1/4 + 1/4 x 1/4 + 1/4 x 2/4 = 5/16.
    assert got["kappa"] == pytest.approx((1 / 2 - 5 / 16) / (1 - 5 / 16))
    errors = [0.06, 0.78, 0.14, 0.98]
    assert got["brier"] == pytest.approx(np.mean(errors))


def test_undefined_auc_is_none_and_quiet():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    assert metrics.compute(np.array([1, 1]), probabilities)["auc"] is None
    three = np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    got = metrics.compute(np.array([0, 1]), three)
    assert got["auc"] is None
    assert got["average_precision"] is None
    assert got["accuracy"] == 0.0
    sure = metrics.compute(np.array([1, 1]), np.array([[0.2, 0.8], [0.1, 0.9]]))
    assert sure["kappa"] is None  # chance alone agrees


def test_certain_and_wrong_has_a_finite_loss():
    got = metrics.compute(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert got["loss"] == pytest.approx(-math.log(1e-12) / 2)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("present", [2, 5])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
def test_as_scikit_learn_has_them(classes, present):
    """With ties, and with classes that nobody has, or that nobody is called."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, min(present, classes), 60)
    logits = rng.normal(size=(60, classes)).round(1) + 0.8 * np.eye(classes)[labels]
    logits[:, -1] -= 3 * (classes == 5)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted, got = probabilities.argmax(1), metrics.compute(labels, probabilities)
    wanted = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "kappa": sk.cohen_kappa_score(labels, predicted),
        "loss": sk.log_loss(labels, probabilities, labels=range(classes)),
        **{f"f1_{how}": sk.f1_score(labels, predicted, average=how, zero_division=0)
           for how in ("macro", "weighted")},
        "brier": sk.brier_score_loss(labels, probabilities, labels=range(classes)),
    }  # fmt: skip
    if len(set(labels)) == classes:
        columns = [1] if classes == 2 else range(classes)
        for name, score in (("auc", sk.roc_auc_score),
                            ("average_precision", sk.average_precision_score)):  # fmt: skip
            wanted[name] = np.mean([score(labels == c, probabilities[:, c]) for c in columns])
    else:
        assert (got["auc"], got["average_precision"]) == (None, None)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("labels", "probabilities", "said"),
    [
        ([], np.zeros((0, 2)), "no patient"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "2 classes"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "row 1"),
        ([0, 1], [[2.0, -1.0], [0.5, 0.5]], "row 0"),
        ([0, 1], [[0.5, 0.5], [3.0, 0.5]], "row 1"),
    ],
)
def test_nonsense_is_refused(labels, probabilities, said):
    with pytest.raises(DataError, match=said):
        metrics.compute(np.array(labels, int), np.array(probabilities, float))
