"""Curves of risk groups: who is in which, and the test between them."""

import numpy as np
import pandas as pd
import pytest
from lifelines.statistics import logrank_test
from PIL import Image

from lrmil_jax.report import follow_up


def predictions_of_two_folds():
    """Two folds of twenty patients whose risks are of another size in each."""
    rng = np.random.default_rng(0)
    risk = np.tile(np.arange(20.0), 2)
    time = np.where(risk > 9.5, 5.0, 50.0) + rng.uniform(0, 4, 40)
    names = [f"p{number}" for number in range(40)]
    frame = pd.DataFrame(
        {"case_id": names, "time": time, "event": 1, "fold": np.repeat([1, 2], 20)}
    )
    frame["risk"] = risk + 100 * (frame.fold == 2)
    return pd.concat([frame.assign(model="teacher"), frame.assign(model="lrmil", risk=risk[::-1])])


def test_groups_are_parted_in_each_fold_and_compared(tmp_path):
    rows = predictions_of_two_folds()
    found = follow_up.save(tmp_path / "curves.png", rows, {"teacher": "A", "lrmil": "B"})
    teacher = rows[rows.model == "teacher"]
    high = teacher.time < 25
    wanted = logrank_test(teacher.time[~high], teacher.time[high]).p_value
    assert found["teacher"] == pytest.approx(wanted)
    assert set(found) == {"teacher", "lrmil"}
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height
