"""predictions.csv explains itself, and holds every number to the last bit."""

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import tasks
from lrmil_jax.errors import DataError
from lrmil_jax.tasks import prediction_files, predictions
from tests.tasks import simulated

TASKS = ("binary", "classification", "ordinal", "multi_label", "regression", "survival")


@pytest.mark.parametrize("name", TASKS)
def test_read_as_written(name, tmp_path):
    test, validation = (simulated.rows(name, split=split) for split in ("test", "val"))
    prediction_files.write(tmp_path, test, validation)
    again, chosen = prediction_files.read_with_validation(tmp_path / "predictions.csv")
    assert set(chosen.split) == {"val"}
    for column in test:
        assert again[column].tolist() == test[column].tolist(), column
    task = tasks.of_columns(again)
    assert task.name == test.task[0]
    if name == "survival":
        assert len(task.edges) == task.bins - 1
        later = simulated.rows(name, fold=2)
        assert tasks.of_columns(pd.concat([test, later])).edges == ()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("pooling", ["probability", "logit"])
def test_a_row_a_patient_has_the_same_figures(name, pooling, tmp_path):
    rows = pd.concat([simulated.rows(name, fold=fold, models=("lrmil", "teacher")).assign(
        pooling=pooling) for fold in (1, 2)])  # fmt: skip
    prediction_files.write_test(tmp_path, rows)
    patients = prediction_files.read(tmp_path / "patient_predictions.csv")
    assert len(patients) == len(rows.drop_duplicates(["case_id", "fold", "model"]))
    for (fold, model), mine in rows.groupby(["fold", "model"]):
        theirs = patients[(patients.fold == fold) & (patients.model == model)]
        task = tasks.of_columns(mine)
        assert tasks.of_columns(theirs) == task
        figures = predictions.measure(task, mine)["metrics"]
        assert predictions.measure(task, theirs)["metrics"] == pytest.approx(figures, abs=1e-6)


def test_a_patient_by_hand(tmp_path):
    rows = pd.DataFrame({"slide_id": ["s3", "s1", "s2"], "patient_id": ["p", "q", "p"],
                         "case_id": ["p", "q", "p"], "label": ["b", "a", "b"],
                         "subgroup_scanner": ["A", "A", "B"], "fold": 1, "model": "m",
                         "prob_a": [0.2, 0.7, 0.5], "prob_b": [0.8, 0.3, 0.5]})  # fmt: skip
    prediction_files.write_test(tmp_path, rows)
    first, second = pd.read_csv(tmp_path / "patient_predictions.csv").itertuples()
    assert (first.patient_id, first.label, first.predicted) == ("p", "b", "b")
    assert (first.prob_a, first.prob_b) == pytest.approx((0.35, 0.65))
    assert (first.slides, first.slide_ids) == (2, "s3; s2")
    assert (first.subgroup_scanner, second.subgroup_scanner) == ("several", "A")
    assert (second.slides, second.slide_ids) == (1, "s1")


def test_classes_that_pandas_takes_for_nothing(tmp_path):
    rows = simulated.rows("binary")
    assert "null" in set(rows.label)
    rows.to_csv(tmp_path / "predictions.csv", index=False)
    again = prediction_files.read(tmp_path / "predictions.csv")
    assert again.label.tolist() == rows.label.tolist()


def test_both_splits_in_one_file(tmp_path):
    both = pd.concat([simulated.rows("binary", split=split) for split in ("test", "val")])
    both.to_csv(tmp_path / "all.csv", index=False)
    test, validation = prediction_files.read_with_validation(tmp_path / "all.csv")
    assert (set(test.split), set(validation.split)) == ({"test"}, {"val"})
    validation.to_csv(tmp_path / "validation.csv", index=False)
    with pytest.raises(DataError, match="validation rows alone"):
        prediction_files.read_with_validation(tmp_path / "validation.csv")


def test_what_another_tool_leaves_out(tmp_path):
    rows = pd.DataFrame({"slide_id": ["s1", "s2", "s3"], "patient_id": ["p", "p", "q"],
                         "label": ["b", "a", "a"], "prob_a": [0.2, 0.7, 0.6]})  # fmt: skip
    rows["prob_b"] = 1 - rows.prob_a
    rows.to_csv(tmp_path / "other.csv", index=False)
    test, validation = prediction_files.read_with_validation(tmp_path / "other.csv")
    assert validation is None
    assert test.case_id.tolist() == ["p/b", "p/a", "q"]
    assert set(test.model) == {"model"}
    assert (set(test.fold), set(test.split)) == ({1}, {"test"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns=["label"]), "hold predictions of no known task"),
        (lambda rows: rows.assign(task="nonsense"), "column task of these predictions has nons"),
        (lambda rows: rows.assign(prob_null=["x", *rows.prob_null[1:]]), "prob_null in line 2 is"),
        (lambda rows: rows.assign(prob_null=[*rows.prob_null[:-1], np.nan]), "is no number"),
        (lambda rows: rows[:0], "has no rows"),
        (lambda rows: rows.drop(columns=["case_id", "patient_id", "slide_id"]), "none of the col"),
    ],
)
def test_mistakes_are_one_sentence(change, message, tmp_path):
    change(simulated.rows("binary")).drop(columns=["task"], errors="ignore").assign(
        **({"task": "nonsense"} if "has nons" in message else {})
    ).to_csv(tmp_path / "predictions.csv", index=False)
    with pytest.raises(DataError, match=message):
        prediction_files.read(tmp_path / "predictions.csv")
    with pytest.raises(DataError, match="does not exist"):
        prediction_files.read(tmp_path / "nothing.csv")
