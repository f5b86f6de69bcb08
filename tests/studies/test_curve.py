"""The curve over budgets: which runs it takes, and what is paired with what."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax.evals.intervals import Figure
from lrmil_jax.report import curve as curve_report
from lrmil_jax.studies import curve
from lrmil_jax.studies.measured import Measured

PHASES = ("open_tissue", "read", "encode", "mil")


def one(model, seed, auc, *, budget=None, recall=None, seconds=1.0, patients=("a", "b")):
    record = {"seed": seed, "model": model, "budget": budget, "accuracy": auc, "patches": 80.0}
    record["headline_title"] = "AUC"
    record |= {f"seconds_{phase}": seconds for phase in PHASES}
    if budget is not None:
        record |= {"seconds_select": 0.5, "lesion_recall": recall}
    names = np.array([f"{seed}: {name}" for name in patients])
    figure = Figure(auc, np.array([0.01, -0.01]), names, np.zeros(2, int))
    return Measured(model, record, (figure,))


@pytest.fixture
def rows():
    measured = []
    for seed in (1, 2):
        shift = 0.01 * seed
        measured += [
            one("WISE-FUSE", seed, 0.9 + shift, budget=0.25, recall=0.5 + shift, seconds=2.0),
            one("WISE-FUSE 0.125", seed, 0.8, budget=0.125, recall=0.3),
            one("without CS-VPT 0.25", seed, 0.7, budget=0.25, recall=0.4),
            one("random 0.25", seed, 0.6, budget=0.25, recall=0.25),
            one("exhaustive HR", seed, 0.95, seconds=6.0),
            one("LRMIL", seed, 0.85),
        ]
    return curve.points(measured)


def test_lines_by_budget_then_the_models_without(rows):
    assert [(row["line"], row["budget"]) for row in rows] == [
        ("WISE-FUSE", 0.125),
        ("WISE-FUSE", 0.25),
        ("without CS-VPT", 0.25),
        ("random", 0.25),
        ("exhaustive HR", None),
        ("LRMIL", None),
    ]


def test_what_is_paired(rows):
    low, high, *_ = rows
    assert high["figure_mean"] == pytest.approx(0.915)
    assert high["to_random_mean"] == pytest.approx(0.315)
    assert high["to_random_above_zero"] == 2
    assert high["to_exhaustive_mean"] == pytest.approx(-0.035)
    assert high["recall"] == pytest.approx(0.515)
    assert high["seconds"] == pytest.approx(4 * 2.0 + 0.5)
    assert "to_random_mean" not in low  # there is no random choice of that size
    assert "to_exhaustive_mean" not in rows[4]


def test_other_patients_are_not_paired():
    measured = [
        one("WISE-FUSE", 1, 0.9, budget=0.25, recall=0.5),
        one("exhaustive HR", 1, 0.9, patients=("a", "c")),
    ]
    assert "to_exhaustive_mean" not in curve.points(measured)[0]


def test_what_prompts_add_to_recall(rows):
    assert curve.notes(rows) == [
        "Recall of lesion area, WISE-FUSE less without CS-VPT: 0.25: +0.115 (2 of 2 seeds)."
    ]


def test_table_and_picture(rows, tmp_path):
    curve_report.save(tmp_path, rows, ["A note."])
    head, *lines = curve_report.cells(rows)
    assert {len(line) for line in lines} == {len(head)}
    shown = dict(zip(head, lines[1], strict=True))
    assert shown["minus random [95 %]"].startswith("+0.315 [+0.2")
    assert shown["times less"] == "3.00"
    assert shown["lesion area chosen"] == "0.515 ± 0.007"
    assert (tmp_path / "curve.md").read_text().endswith("\n\nA note.\n")
    assert pd.read_csv(tmp_path / "curve.csv").line.tolist() == [row["line"] for row in rows]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 1000


def test_without_masks_or_seconds(tmp_path):
    measured = [one("WISE-FUSE", 1, None, budget=4), one("WISE-FUSE 2", 1, 0.8, budget=2)]
    for each in measured:
        for name in [name for name in each.record if name.startswith(("seconds", "lesion"))]:
            del each.record[name]
    rows = curve.points(measured)
    curve_report.save(tmp_path, rows, [])
    assert curve_report.cells(rows)[2][2] == "undefined"
    assert curve.notes(rows) == []
