"""Figures of test patients, each with the tasks that have it."""

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import tasks
from lrmil_jax.report import agreement, confusion, discrimination, doubt, fold_points
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.tasks.cox import Cox
from lrmil_jax.tasks.regression import Regression

TITLES = {"lrmil": "LRMIL"}


def classified(truth, tumour, *, fold=1, names=("benign", "tumour")):
    values = np.stack([1 - np.array(tumour), np.array(tumour)], 1)
    slides = [f"s{fold}{number}" for number in range(len(truth))]
    predicted = [names[row.argmax()] for row in values]
    return pd.DataFrame({
        "slide_id": slides, "patient_id": slides, "case_id": slides, "model": "lrmil",
        "label": [names[one] for one in truth], "prob_benign": values[:, 0],
        "prob_tumour": values[:, 1], "predicted": predicted, "fold": fold, "task": "classification",
    })  # fmt: skip


TESTED = pd.concat([
    classified([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9]), classified([0, 1], [0.3, 0.8], fold=2),
])  # fmt: skip


def test_confusion_at_each_folds_threshold_or_the_most_probable_class():
    by_class = confusion.count(TESTED, {})
    np.testing.assert_array_equal(by_class, [[2, 1], [1, 2]])
    # Fold 1 from 0.35 on: 0.6, 0.4 and 0.9 are called; fold 2 by the most probable class.
    np.testing.assert_array_equal(confusion.count(TESTED, {(1, "lrmil"): 0.35}), [[2, 1], [0, 3]])


def test_slides_where_the_model_errs_come_first():
    # A slide that both folds test stands as the worse of them has it.
    again = classified([1], [0.05], fold=3).assign(slide_id="s23")
    ordered = doubt.ordered(pd.concat([TESTED, again, classified([1], [0.9], fold=4)
                                       .assign(slide_id="s23")]))  # fmt: skip
    assert ordered.slide_id.tolist()[:3] == ["s23", "s11", "s12"]
    assert ordered.fold[0] == 3
    assert ordered.is_wrong.tolist()[:3] == [True, True, True]
    assert not any(ordered.is_wrong[3:])
    np.testing.assert_allclose(ordered.loss[0], -np.log(0.05), rtol=1e-5)
    assert ordered.slide_id.is_unique


@pytest.mark.parametrize(("rows", "drawn"), [
    (TESTED, {"fold_points", "roc", "confusion"}),
    (pd.concat([
        pd.DataFrame({"slide_id": ["a", "b", "c"], "case_id": ["a", "b", "c"], "model": "lrmil",
                      "number": [1.0, 2, 4], "predicted_number": [1.5, 2, 3], "fold": fold})
        for fold in (1, 2)
    ]), {"fold_points", "agreement"}),
])  # fmt: skip
def test_each_task_gets_the_figures_that_it_has(tmp_path, rows, drawn):
    task = Classification(("benign", "tumour")) if "label" in rows else Regression()
    if "number" in rows:
        rows = rows.rename(columns={"predicted_number": task.values[0]})
    row = {"model": "lrmil", "title": "LRMIL", "folds": 2, "headline": task.headline,
           "headline_title": "AUC", task.headline: 0.7}  # fmt: skip
    captions = {
        "fold_points": fold_points.save(tmp_path / "fold_points.png", [row], rows),
        "roc": discrimination.save(tmp_path / "roc.png", rows, TITLES, "lrmil"),
        "confusion": confusion.save(tmp_path / "confusion.png", rows, {}, TITLES),
        "agreement": agreement.save(tmp_path / "agreement.png", rows, TITLES),
    }
    assert {name for name, caption in captions.items() if caption} == drawn
    assert {path.stem for path in tmp_path.iterdir()} == drawn


def test_losses_of_follow_ups():
    frame = pd.DataFrame({"slide_id": ["a", "b"], "case_id": ["a", "b"], "model": "lrmil",
                          "time": [1.0, 1.0], "event": [1, 1], "survival_1": [0.2, 0.9],
                          "survival_2": [0.1, 0.8], "until_1": 2.0, "risk": [0.9, 0.1],
                          "fold": 1})  # fmt: skip
    ordered = doubt.ordered(frame)
    assert ordered.slide_id.tolist() == ["b", "a"]
    np.testing.assert_allclose(ordered.loss, [-np.log(0.1), -np.log(0.8)], rtol=1e-5)
    assert ordered.is_wrong.tolist() == [None, None]
    hazards = frame.rename(columns={"risk": Cox.risk_column})
    assert tasks.of_columns(hazards).joint
    ordered = doubt.ordered(hazards)  # the loss is of all patients together
    assert ordered.slide_id.tolist() == ["a", "b"]
    assert ordered.loss.isna().all()
