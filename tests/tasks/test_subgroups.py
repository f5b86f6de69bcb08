"""Subgroups: the figures of their patients alone, and small ones that say that they are small."""

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import tasks
from lrmil_jax.evals import intervals
from lrmil_jax.tasks import predictions, subgroups
from tests.tasks import simulated


def by_level(rows, name):
    """The table's rows of one column, by level."""
    made = subgroups.table(tasks.of_columns(rows), [f for _, f in rows.groupby("fold")])
    return {row["level"]: row for row in made if row["subgroup"] == name}


@pytest.fixture(scope="module")
def rows():
    return simulated.rows("binary", patients=120)


def test_a_level_is_measured_alone(rows):
    made = by_level(rows, "site")
    assert list(made) == ["north", "south"]
    task = tasks.of_columns(rows)
    sides = {level: rows[rows.subgroup_site == level] for level in made}
    for level, row in made.items():
        alone = predictions.measure(task, sides[level])
        assert row["patients"] == alone["patients"]
        for name, metric in row["metrics"].items():
            assert metric["value"] == pytest.approx(alone["metrics"][name])
            assert metric["value_interval"] == pytest.approx(alone["intervals"][name])
    assert sum(row["patients"] for row in made.values()) == rows.case_id.nunique()
    alone = [intervals.summarise([predictions.figures(task, side)["auc"]])
             for side in sides.values()]  # fmt: skip
    gap, bounds = intervals.apart(*alone)
    auc = made["north"]["metrics"]["auc"]
    assert auc["difference"] == pytest.approx(gap)
    assert auc["difference_interval"] == pytest.approx(bounds)
    assert made["south"]["metrics"]["auc"]["difference"] == pytest.approx(-auc["difference"])


def test_patients_of_several_levels_and_of_none_are_in_the_table(rows):
    made = by_level(rows, "scanner")
    assert list(made) == ["A", "B", "missing", "several"]
    mixed = rows.groupby("case_id").subgroup_scanner.nunique() > 1
    assert made["several"]["patients"] == mixed.sum()
    assert sum(row["patients"] for row in made.values()) == rows.case_id.nunique()


def test_small_subgroups_say_so(rows):
    few = rows.case_id.unique()[:9]
    made = by_level(rows.assign(subgroup_site=np.where(rows.case_id.isin(few), "x", "y")), "site")
    assert made["x"]["note"] == "undefined: fewer than 10 patients"
    assert {metric["value"] for metric in made["x"]["metrics"].values()} == {None}
    assert made["x"]["metrics"].keys() == made["y"]["metrics"].keys()
    of_one_class = np.where(rows.label == "null", "x", "y")
    made = by_level(rows.assign(subgroup_site=of_one_class), "site")
    assert made["x"]["note"].startswith("AUC undefined")
    assert made["x"]["metrics"]["auc"]["value"] is None
    assert made["x"]["metrics"]["accuracy"]["value"] is not None


def test_folds_are_averaged_and_a_level_may_be_absent_from_one():
    folds = [simulated.rows("binary", fold=fold) for fold in (1, 2, 3)]
    folds[2] = folds[2].assign(subgroup_site="north")
    rows = pd.concat(folds, ignore_index=True)
    task = tasks.of_columns(rows)
    made = by_level(rows, "site")["south"]
    wanted = [
        predictions.measure(task, fold[fold.subgroup_site == "south"])["metrics"]["auc"]
        for fold in folds[:2]
    ]
    assert made["metrics"]["auc"]["value"] == pytest.approx(np.mean(wanted))
    assert made["metrics"]["auc"]["difference"] is not None


@pytest.mark.parametrize("name", ["ordinal", "multi_label", "regression", "survival"])
def test_every_task_has_them(name):
    rows = simulated.rows(name, patients=50)
    task = tasks.of_columns(rows)
    for row in subgroups.table(task, [rows]):
        if row["patients"] >= subgroups.LEAST:
            assert row["metrics"][task.headline]["value"] is not None


def test_without_columns_there_are_none(rows):
    bare = rows.drop(columns=["subgroup_site", "subgroup_scanner"])
    assert subgroups.table(tasks.of_columns(bare), [bare]) == []
