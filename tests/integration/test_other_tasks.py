"""Other questions than a class, from slides to a prediction, by both methods."""

import json

import pandas as pd
import pytest

import lrmil_jax
from lrmil_jax import tasks
from lrmil_jax.tasks import predictions
from tests.integration.test_end_to_end import go, tiny

pytestmark = pytest.mark.usefixtures("one_device", "figures_not_drawn")
# What synthetic slides answer (`slides.outcomes`), with a metric that is then in the table.
ASKED = {
    "survival": {"data__bins": 2},
    "cox": {"data__bins": 2},
    "ordinal": {"data__label_column": "grade", "data__classes": ("none", "small", "large")},
    "regression": {"data__label_column": "burden"},
    "multi_label": {"data__label_column": "event"},
}
GRADES = {
    "none": "benign epithelium",
    "small": "a small clump of tumour",
    "large": "a large clump of tumour",
}
METHODS = {
    "lrmil": {"student__no_distillation": False, "distill__steps": 2, "distill__eval_every": 2},
    # HR patches as `predict` reads them: from the slide, not through a mosaic's JPEG.
    "wise_fuse": {
        "method": "wise_fuse",
        "text__descriptions": "shipped:procedural",
        "prepare__hr": "skip",
    },
}


@pytest.mark.parametrize(
    ("task", "method"),
    [
        pytest.param(task, method, marks=() if (task, method) == ("survival", "lrmil") else
                     pytest.mark.slow)
        for task in ASKED for method in METHODS
    ],
)  # fmt: skip
def test_from_slides_to_a_prediction(tmp_path, task, method):
    config = tiny(
        task=task, synthetic__slides=30, encoder__weights="shipped:procedural",
        evaluate__timed_slides=0, report__heatmaps=0, teacher__select="headline",
        **ASKED[task], **METHODS[method],
    )  # fmt: skip
    if (task, method) == ("ordinal", "wise_fuse"):  # grades have descriptions of their own
        config.text.descriptions = str(tmp_path / "grades.toml")
        (tmp_path / "grades.toml").write_text(
            "".join(f'[{grade}]\nlow = ["{words}"]\n' for grade, words in GRADES.items())
        )
    assert go(config, tmp_path) == 0
    rows = pd.read_csv(tmp_path / "folds/1/evaluate/predictions.csv")
    kind = tasks.of_columns(rows)
    assert kind.name == task
    measured = json.loads((tmp_path / "folds/1/evaluate/metrics.json").read_text())
    assert measured[method]["metrics"].keys() == set(kind.metrics)
    again = predictions.measure(kind, rows[rows.model == method])["metrics"]
    assert again[kind.headline] == pytest.approx(measured[method]["metrics"][kind.headline])
    assert (tmp_path / "report/follow_up.png").exists() == kind.has_follow_up
    title = kind.titles[kind.headline]
    assert title in (tmp_path / "report/table.txt").read_text().splitlines()[0]

    row = rows[rows.model == method].iloc[0]
    slide = tmp_path / "synthetic/slides" / f"{row.slide_id}.tif"
    result = lrmil_jax.load_model(tmp_path / "model").predict(slide)
    for name in kind.values:
        assert result.prediction[name] == pytest.approx(row[name], rel=2e-2, abs=2e-3)
    assert result.sentence
