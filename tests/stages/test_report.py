"""report over several folds: whose attention is pooled and whose is drawn."""

import pandas as pd
import pytest

from lrmil_jax import config as configuration
from lrmil_jax.data import writer
from lrmil_jax.stages import layout, lesions, report


def row(slide_id, arm, auc, dice):
    return (slide_id, slide_id.split("_")[0], arm, auc, dice, 0.7, 16, 2)


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
        writer.write_table(path, pd.DataFrame(rows, columns=list(lesions.COLUMNS)))
    return config, tmp_path


def test_scores_of_all_folds_together(run):
    scored = report.pooled_localisation(*run)
    assert scored.fold.tolist() == [1, 1, 1, 1, 3, 3]
    # The same patient in two folds counts as two: two models were asked.
    assert scored.case_id.tolist() == ["a/1", "b/1", "a/1", "b/1", "a/3", "a/3"]
    found = report.localisation_columns(run[0], scored)
    assert found["lrmil"]["lesion_slides"] == found["lrmil"]["lesion_patients"] == 3
    assert found["lrmil"]["attention_auc"] == pytest.approx(0.7)
    assert found["lrmil"]["attention_dice"] == pytest.approx(0.2)
    assert found["teacher"]["attention_auc"] == pytest.approx(2.8 / 3)
    assert found["teacher"]["attention_dice_interval"] == pytest.approx((0.5, 0.7))


def test_without_masks_there_is_nothing_to_pool(tmp_path):
    scored = report.pooled_localisation(configuration.default(), tmp_path)
    assert scored.empty
    assert report.localisation_columns(configuration.default(), scored) == {}


def test_slides_are_drawn_from_all_folds_in_turn(run):
    scored = report.pooled_localisation(*run)
    assert report.in_turn(scored, 2) == [(1, "a_1"), (3, "a_1")]
    assert report.in_turn(scored, 9) == [(1, "a_1"), (3, "a_1"), (1, "b_1")]
