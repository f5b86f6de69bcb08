"""What of a label table settles keys of the config."""

import logging

import pytest

from lrmil_jax import config as configuration
from lrmil_jax.workspace import cohorts


def config_of(folder, header, **changes):
    (folder / "labels.csv").write_text(f"slide_id,patient_id,label{header}\na,b,c{header}\n")
    config = configuration.default()
    config.data.labels = str(folder / "labels.csv")
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("header", [",fold_1", ",split"])
def test_a_table_with_one_split_is_one_fold_and_told(header, tmp_path, caplog):
    config = config_of(tmp_path, header)
    with caplog.at_level(logging.WARNING):
        cohorts.take_one_split(config)
    assert config.folds == 1
    assert f"has the column {header[1:]} alone" in caplog.text


@pytest.mark.parametrize(
    ("header", "changes", "folds"),
    [
        ("", {}, 5),
        (",fold_1,fold_2", {}, 5),  # refused where it is read: it may be a column too few
        (",fold_1", {"folds": 3}, 3),
        (",fold_1", {"data.split_columns": ("fold_1",)}, 5),
        (",fold_1", {"data.labels": "none.csv"}, 5),
    ],
)
def test_other_folds_are_left_as_they_are(header, changes, folds, tmp_path):
    config = config_of(tmp_path, header, **changes)
    cohorts.take_one_split(config)
    assert config.folds == folds
