"""report over several folds: what the headline is of, and whose attention is drawn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.report import results, table
from lrmil_jax.stages import report
from lrmil_jax.studies import measured, plan
from lrmil_jax.workspace import layout, lesions


def row(slide_id, model, auc, dice):
    return (slide_id, slide_id.split("_")[0], model, auc, dice, 0.7, 16, 2)


FOLDS = {
    1: [row("a_1", "lrmil", 0.5, 0.1), row("b_1", "lrmil", None, 0.2),
        row("a_1", "teacher", 1, 0.6), row("b_1", "teacher", 1, 0.7)],
    2: [],
    3: [row("a_1", "lrmil", 0.9, 0.3), row("a_1", "teacher", 0.8, 0.5)],
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of four folds: the second tests no lesion, the fourth has no masks at all."""
    config = configuration.default()
    config.folds = 4
    for fold, rows in FOLDS.items():
        path = layout.stage_folder(tmp_path, "evaluate", fold) / "localisation.csv"
        files.write_table(path, pd.DataFrame(rows, columns=list(lesions.COLUMNS)))
    return config, tmp_path


def test_scores_of_all_folds_together(run):
    scored = results.pooled_localisation(*run)
    assert scored.fold.tolist() == [1, 1, 1, 1, 3, 3]
    assert scored.case_id.tolist() == ["a", "b", "a", "b", "a", "a"]
    found = results.localisation_columns(scored)
    # The same patient in two folds is one.
    assert found["lrmil"]["lesion_slides"] == found["lrmil"]["lesion_patients"] == 2
    assert found["lrmil"]["attention_auc"] == pytest.approx(0.7)
    assert found["lrmil"]["attention_dice"] == pytest.approx((0.15 + 0.3) / 2)
    assert found["teacher"]["attention_auc"] == pytest.approx(0.9)
    low, high = found["teacher"]["attention_dice_interval"]
    assert low < (0.65 + 0.5) / 2 < high


def test_without_masks_there_is_nothing_to_pool(tmp_path):
    scored = results.pooled_localisation(configuration.default(), tmp_path)
    assert scored.empty
    assert results.localisation_columns(scored) == {}


def predictions_of(fold, *, models=("teacher", "lrmil"), labels="babab", shift=0.0):
    """Five patients, the first of whom is tested in every fold."""
    names = ["shared", *(f"p{fold}{number}" for number in range(4))]
    score = np.array([0.9, 0.2, 0.6, 0.7, 0.4]) - shift
    frame = pd.DataFrame({"slide_id": names, "patient_id": names, "case_id": names})
    frame = frame.assign(label=list(labels), prob_a=1 - score, prob_b=score, predicted="a")
    return pd.concat([frame.assign(model=model) for model in models])


@pytest.fixture
def evaluated(tmp_path):
    """Three folds, the last of which tests one class alone."""
    config = configuration.default()
    config.folds = 3
    for fold, (labels, shift) in enumerate((("babab", 0.0), ("bbbaa", 0.1), ("aaaaa", 0.0)), 1):
        folder = layout.stage_folder(tmp_path, "evaluate", fold)
        files.write_table(folder / "predictions.csv",
                           predictions_of(fold, labels=labels, shift=shift))  # fmt: skip
        point = {"threshold": 0.1 * fold, "accuracy": 0.5, "balanced_accuracy": 0.5,
                 "sensitivity": None if fold == 3 else 0.5, "specificity": 0.25 * fold,
                 "validation": {}}  # fmt: skip
        points = {} if fold == 2 else {"youden": point, "sensitivity": point}
        measured = {
            model: {"title": model, "patches": 4.0, "thresholds": points}
            for model in ("teacher", "lrmil")
        }
        files.write_json(folder / "metrics.json", measured)
    return config, tmp_path


def test_the_headline_is_the_mean_over_folds(evaluated):
    rows = results.result_rows(*evaluated, results.test_predictions(*evaluated))
    assert [row["model"] for row in rows] == ["teacher", "lrmil"]
    row = rows[0]
    # Fold 1: of 3 x 2 pairs 0.6 and 0.9, 0.4 against 0.2, 0.7: 4 right. Fold 2: 0.8, 0.1, 0.5
    # against 0.6, 0.3: 3 right.
    assert row["auc"] == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert row["auc_sd"] == pytest.approx(np.std([4 / 6, 3 / 6], ddof=1))
    assert (row["folds"], row["auc_folds"]) == (3, 2)
    assert row["patients"] == 13
    low, high = row["auc_interval"]
    assert low < row["auc"] < high
    of_folds = (("babab", 0.0), ("bbbaa", 0.1), ("aaaaa", 0.0))
    frame = pd.concat([predictions_of(1, labels=own, shift=shift) for own, shift in of_folds])
    frame = frame[frame.model == "lrmil"]
    assert row["auc_pooled"] == pytest.approx(roc_auc_score(frame.label == "b", frame.prob_b))
    assert row["accuracy"] == pytest.approx((3 / 5 + 2 / 5 + 2 / 5) / 3)
    assert table.cells(rows)[1][1].endswith("(2 of 3 folds)")


def test_thresholds_are_averaged_over_the_folds_that_have_them(evaluated):
    row = results.result_rows(*evaluated, results.test_predictions(*evaluated))[0]
    assert row["youden_threshold"] == pytest.approx(0.2)
    assert row["youden_sensitivity"] == 0.5
    assert row["wanted_sensitivity_specificity"] == pytest.approx(0.5)
    assert "youden_validation" not in row


def test_notes_say_what_the_intervals_are_of(evaluated):
    tested = results.test_predictions(*evaluated)
    rows = results.result_rows(*evaluated, tested)
    notes = " ".join(results.result_notes(rows, tested))
    assert "mean of 3 folds" in notes
    assert "left out" in notes
    assert "pool of" not in notes
    shared = results.result_notes(rows, tested.assign(pool="test"))
    assert "too narrow" in shared[-1]
    alone = results.result_notes([rows[0] | {"folds": 1, "auc_folds": 1}], tested)
    assert alone[0] == "AUC with a 95 % interval over patients."


@pytest.mark.parametrize(
    ("interval", "said"),
    [([0.04, 0.11], True), ([0.4, 0.6], False), ([0.7, 0.9], False), (None, False)],
)
def test_notes_say_whose_attention_lies_away_from_the_lesion(evaluated, interval, said):
    tested = results.test_predictions(*evaluated)
    rows = [row | {"title": "LRMIL"} for row in results.result_rows(*evaluated, tested)[:1]]
    rows[0]["attention_auc_interval"] = interval
    notes = " ".join(results.result_notes(rows, tested))
    assert ("The attention of LRMIL lies away from the masks' lesions" in notes) == said


def test_a_study_knows_which_patients_are_the_same(evaluated):
    config, folder = evaluated

    def patients(seed, labels):
        made = config.copy_and_resolve_references()
        made.unlock()
        made.data.labels = labels
        files_of = measured.measure(plan.Run(seed, plan.BASE, {}, made, folder))[0].folds
        return set(np.concatenate([fold.patients for fold in files_of]))

    assert len(patients(1, "cohort.csv")) == 13
    assert patients(1, "cohort.csv") == patients(2, "cohort.csv")
    assert not patients(1, None) & patients(2, None)
    assert not patients(1, "cohort_1.csv") & patients(2, "cohort_2.csv")


def test_slides_are_drawn_from_all_folds_in_turn(run):
    scored = results.pooled_localisation(*run)
    assert report.in_turn(scored, 2) == [(1, "a_1"), (3, "a_1")]
    assert report.in_turn(scored, 9) == [(1, "a_1"), (3, "a_1"), (1, "b_1")]
