"""Metrics by hand and at their edges."""

import math

import numpy as np
import pandas as pd
import pytest

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


def test_undefined_auc_is_none_and_quiet():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    assert metrics.compute(np.array([1, 1]), probabilities)["auc"] is None
    three = np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    got = metrics.compute(np.array([0, 1]), three)
    assert got["auc"] is None
    assert got["accuracy"] == 0.0


def test_certain_and_wrong_has_a_finite_loss():
    got = metrics.compute(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert got["loss"] == pytest.approx(-math.log(1e-12) / 2)


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


def test_by_patient():
    slides = pd.DataFrame(
        {
            "slide_id": ["s1", "s2", "s3"],
            "patient_id": ["b", "a", "b"],
            "label": ["tumour", "benign", "tumour"],
            "prob_benign": [0.2, 0.9, 0.4],
            "prob_tumour": [0.8, 0.1, 0.6],
        }
    )
    got = metrics.by_patient(slides)
    assert got["patient_id"].tolist() == ["a", "b"]
    assert got["label"].tolist() == ["benign", "tumour"]
    assert got["slides"].tolist() == [1, 2]
    np.testing.assert_allclose(got[metrics.probability_columns(got)], [[0.9, 0.1], [0.3, 0.7]])
    with pytest.raises(DataError, match="'b' has slides with different labels"):
        metrics.by_patient(slides.assign(label=["tumour", "benign", "benign"]))
    with pytest.raises(DataError, match="lack the columns label, patient_id"):
        metrics.by_patient(slides.drop(columns=["label", "patient_id"]))
    with pytest.raises(DataError, match="prob_<class>"):
        metrics.by_patient(slides[["patient_id", "label"]])
