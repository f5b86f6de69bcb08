"""The table and plots of several seeds: every row has every column, whatever a model lacks."""

import pytest
from PIL import Image

from lrmil_jax.report import comparison

FULL = {
    "model": "LRMIL", "reference": "LRMIL", "title": "AUC", "figure_mean": 0.9, "figure_sd": 0.05,
    "figure_low": 0.8, "figure_high": 0.95,
    "figure_smallest": 0.85, "figure_largest": 0.93, "patches": 16.0, "attention_auc": 0.8,
    "attention_dice": 0.4, "attention_highest_dice": 0.5, "seconds_open_tissue": 0.01,
    "seconds_read": 0.002, "seconds_encode": 0.005, "seconds_mil": 0.001,
}  # fmt: skip
GAIN = {
    "gain_mean": 0.25, "gain_low": -0.1, "gain_high": 0.4, "gain_above_zero": 4, "gain_count": 5,
}  # fmt: skip
COLOUR = {
    **{key: FULL[key] for key in FULL if key.startswith(("figure", "title", "reference"))},
    **GAIN, "model": "colour only",
    "figure_mean": 0.65, "figure_sd": None, "patches": 16.0,
}  # fmt: skip
UNDEFINED = dict.fromkeys(
    ("figure_mean", "figure_sd", "figure_low", "figure_high", "figure_smallest")
) | {
    "model": "nothing",
    "title": "AUC",
    "figure_largest": None,
}


def test_every_line_has_every_column():
    head, *lines = comparison.cells([FULL, COLOUR, UNDEFINED])
    assert {len(line) for line in lines} == {len(head)}
    first = dict(zip(head, lines[0], strict=True))
    assert first["AUC mean ± SD [95 %]"] == "0.900 ± 0.050 [0.800, 0.950]"
    assert first["LRMIL minus it [95 %]"] == "-"
    assert first["encode s"] == "0.0050"
    assert [first[name] for name in head[-3:]] == ["0.800", "0.400", "0.500"]
    second = dict(zip(head, lines[1], strict=True))
    assert second["LRMIL minus it [95 %]"] == "+0.250 [-0.100, +0.400]"
    assert second["ahead"] == "4 of 5"
    assert second["encode s"] == second["Dice"] == "-"
    assert lines[2][1] == "undefined"


def test_a_difference_of_unknown_spread_has_no_bounds():
    row = COLOUR | {"gain_mean": 0.0, "gain_low": None, "gain_high": None}
    assert comparison.cells([FULL, row])[2][3] == "+0.000"
    alone = COLOUR | {"figure_low": None, "figure_high": None}
    assert comparison.cells([FULL, alone])[2][1] == "0.650"


def test_columns_that_no_model_has_are_left_out():
    head = comparison.cells([COLOUR])[0]
    assert not {"encode s", "Dice"} & set(head)


def test_files(tmp_path):
    comparison.save_table(tmp_path, [FULL, COLOUR], ["A note."])
    assert (tmp_path / "table.md").read_text().endswith("\n\nA note.\n")
    assert (tmp_path / "table.txt").read_text().splitlines()[-1] == "A note."
    comparison.save_plot(tmp_path / "plot.png", [FULL, COLOUR, UNDEFINED])
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize("factors", [1, 2, 4])
def test_effects_of_any_number_of_settings(tmp_path, factors):
    rows = [
        {"factor": f"student.f{factor}", "value": value, "default": value == "1.0", "seed": seed,
         "figure": 0.5 + 0.1 * seed, "val_figure": None if value == "mean" else 0.6,
         "headline_title": "AUC"}
        for factor in range(factors) for value in ("1.0", "0.3", "mean") for seed in (1, 2)
    ]  # fmt: skip
    comparison.save_effects(tmp_path / "effects.png", rows)
    with Image.open(tmp_path / "effects.png") as picture:
        assert picture.height > 100


def test_values_stand_in_order_of_size():
    assert sorted(["mean", "10", "0.3", "2"], key=comparison._order) == ["0.3", "2", "10", "mean"]
