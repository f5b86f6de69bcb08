"""The result table: aligned lines that never wrap, and every figure in files."""

import numpy as np
import pandas as pd
import pytest

from lrmil_jax.report import table

ROWS = [
    {
        "model": model,
        "title": title,
        "patients": 40,
        "headline": "auc",
        "headline_title": "AUC",
        "auc": auc,
        "auc_interval": bounds,
        "accuracy": 0.9,
        "youden_accuracy": 0.875,
        "patches": patches,
        "seconds_open_tissue": 0.5,
        "seconds_read": 1.25,
        "seconds_encode": 10.0,
        "seconds_mil": 0.25,
    }
    for model, title, auc, bounds, patches in (
        ("teacher", "HR teacher", 0.9512, (0.9, 0.99), 4096.0),
        ("no_distillation", "LR without distillation", None, (None, None), 256.0),
        ("lrmil", "LRMIL", 0.9499, (0.85, 1.0), 256.0),
    )
]


def test_lines_begin_with_the_names_that_users_look_for():
    lines = table.lines(ROWS)
    assert len(lines) == 4
    assert [line.split("  ")[0] for line in lines[1:]] == [
        *("HR teacher", "LR without distillation", "LRMIL")
    ]
    assert lines[1].split() == [
        *("HR", "teacher", "0.951", "[0.900,", "0.990]", "0.900", "0.875", "4096"),
        *("0.500", "1.250", "10.000", "0.250", "12.000"),
    ]
    assert "undefined" in lines[2]
    assert "[" not in lines[2]


def test_columns_are_aligned_and_nothing_wraps():
    lines = table.lines([dict(row, title="a" * 300) for row in ROWS] + ROWS)
    assert len(lines) == 7
    assert not any("\n" in line or line != line.rstrip() for line in lines)
    starts = {line.index("0.9", 300) for line in lines[1:] if "[" in line}
    assert len(starts) == 1


def test_rows_without_times_say_so_and_sum_nothing():
    row = {name: value for name, value in ROWS[0].items() if not name.startswith("seconds")}
    assert table.cells([row])[1][-5:] == ["-"] * 5
    partly = table.cells([row | {"seconds_mil": 0.25}])[1][-5:]
    assert partly == ["-", "-", "-", "0.250", "-"]


FOLDS = {"folds": 5, "auc_folds": 5, "auc_sd": 0.0312, "auc_pooled": 0.9}


def test_several_folds_show_their_mean_and_the_pooled_auc_beside_it():
    lacking = FOLDS | {"auc_folds": 1, "auc_sd": None}
    nothing = FOLDS | {"auc_folds": 0, "auc_sd": None, "auc_pooled": None}
    rows = [own | more for own, more in zip(ROWS, (FOLDS, nothing, lacking), strict=True)]
    head, *lines = table.cells(rows)
    assert head[1:3] == ["AUC mean ± SD over folds [95 %]", "pooled AUC"]
    assert lines[0][1:3] == ["0.951 ± 0.031 [0.900, 0.990]", "0.900"]
    assert lines[1][1:3] == ["undefined (0 of 5 folds)", "undefined"]
    assert lines[2][1:3] == ["0.950 [0.850, 1.000] (1 of 5 folds)", "0.900"]
    assert table.cells([ROWS[0] | FOLDS | {"folds": 1}])[0][1] == "AUC [95 % interval]"


def test_more_classes_have_no_threshold():
    row = {name: value for name, value in ROWS[0].items() if name != "youden_accuracy"}
    assert dict(zip(*table.cells([row]), strict=True))["accuracy at Youden's"] == "-"


def test_notes_follow_the_table(tmp_path):
    table.save(tmp_path, ROWS, ["A note."])
    assert (tmp_path / "table.txt").read_text().splitlines() == [*table.lines(ROWS), "A note."]
    assert (tmp_path / "table.md").read_text().endswith(" |\n\nA note.\n")


@pytest.mark.parametrize(
    ("value", "bounds", "shown"),
    [
        (0.5, None, "0.500"),
        (None, (0.1, 0.2), "undefined [0.100, 0.200]"),
        (0.5, (None, 0.2), "0.500"),
        (float("nan"), None, "undefined"),
        (1.0, (0.9999, 1.0), "1.000 [1.000, 1.000]"),
    ],
)
def test_intervals(value, bounds, shown):
    assert table.interval(value, bounds) == shown


def test_files_hold_every_figure(tmp_path):
    table.save(tmp_path, ROWS)
    assert (tmp_path / "table.txt").read_text().splitlines() == table.lines(ROWS)
    frame = pd.read_csv(tmp_path / "table.csv")
    assert frame.auc_low.tolist()[0] == 0.9
    assert np.isnan(frame.auc[1])
    assert frame.auc_high[2] == 1.0
    assert frame.patients.tolist() == [40, 40, 40]
    markdown = (tmp_path / "table.md").read_text().splitlines()
    assert len(markdown) == 5
    assert {line.count("|") for line in markdown} == {len(table.cells(ROWS)[0]) + 1}
    assert set(markdown[1]) == set("|- ")


SCORED = [
    ROWS[0]
    | {
        "lesion_slides": 12,
        "lesion_patients": 11,
        "attention_auc": 0.9123,
        "attention_auc_sd": 0.05,
        "attention_auc_interval": (0.88, 0.94),
        "attention_dice": 0.4,
        "attention_dice_interval": (0.3, 0.5),
        "attention_highest_dice": 0.61,
    },
    ROWS[2]
    | {
        "lesion_slides": 1,
        "lesion_patients": 1,
        "attention_auc": None,
        "attention_auc_sd": None,
        "attention_auc_interval": None,
        "attention_dice": None,
        "attention_dice_interval": None,
        "attention_highest_dice": 0.5,
    },
    {**ROWS[1], "model": "colour", "title": "colour only"},
]


def test_attention_has_a_table_of_the_models_that_were_scored():
    shown = table.attention_cells(SCORED)
    assert [line[0] for line in shown[1:]] == ["HR teacher", "LRMIL"]
    assert shown[1][1:] == ["12", "0.912 [0.880, 0.940]", "0.050", "0.400 [0.300, 0.500]", "0.610"]
    assert shown[2][1:] == ["1", "undefined", "-", "undefined", "0.500"]
    assert len({len(line) for line in shown}) == 1
    assert len(table.attention_cells(ROWS)) == 1
    assert table.cells(SCORED)[3][0] == "colour only"


def test_attention_files(tmp_path):
    table.save(tmp_path, ROWS)
    assert list(tmp_path.glob("attention.*")) == []
    table.save(tmp_path, SCORED)
    frame = pd.read_csv(tmp_path / "attention.csv")
    assert frame.model.tolist() == ["teacher", "lrmil"]
    assert frame.attention_auc_low[0] == 0.88
    assert frame.attention_dice_high[0] == 0.5
    assert np.isnan(frame.attention_auc_high[1])
    assert not [name for name in frame if name.startswith(("seconds", "auc", "accuracy"))]
    whole = pd.read_csv(tmp_path / "table.csv")
    assert whole.attention_auc.tolist()[0] == 0.9123
    assert whole.auc_low[0] == 0.9
    assert np.isnan(whole.attention_dice[2])
    text = (tmp_path / "attention.txt").read_text().splitlines()
    assert text == table.aligned(table.attention_cells(SCORED))
    assert (tmp_path / "attention.md").read_text().splitlines()[1].count("---") == 6
