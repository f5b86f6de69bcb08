"""`data.patient=bag`: training, evaluation and predictions see the slides of a patient as one."""

import functools

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import checks, processes, verify
from lrmil_jax.errors import ConfigError
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import predict
from lrmil_jax.workspace import stage_files
from tests.integration import random_model
from tests.integration.test_end_to_end import evaluated, go, tiny

pytestmark = pytest.mark.usefixtures("one_device", "optimised_encoders", "figures_not_drawn")
# Nothing is learned here: an encoder of random weights, two updates of each training.
CHANGES = {
    "data__patient": "bag", "student__no_distillation": False, "evaluate__timed_slides": 0,
    "report__heatmaps": 2, "distill__steps": 2, "distill__eval_every": 2, "teacher__epochs": 1,
    "student__epochs": 1, "student__head": "transformer",
    "student__options": ("width=8", "heads=2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ten patients of two slides; labels in an order that parts the slides of a patient."""
    home = tmp_path_factory.mktemp("bags")
    here = functools.partial(processes.map_jobs, workers=1, label="slides")
    labels = synthetic.write_cohort(
        home / "cohort", seed=0, slides=20, size_px=768, slides_per_patient=2, run=here
    )
    table = pd.read_csv(labels)
    pd.concat([table[::2], table[1::2]]).to_csv(labels, index=False)
    weights = random_model.write_weights(home / "vit.safetensors")
    config = tiny(
        **CHANGES, encoder__weights=str(weights), data__labels=str(labels),
        data__slides=str(home / "cohort/slides"),
    )  # fmt: skip
    assert go(config, home / "run") == 0
    return home


def test_slides_of_a_patient_have_one_prediction_and_share_its_attention(run):
    rows = evaluated(run / "run")
    assert set(rows.model) == {"teacher", "lrmil"}
    values = rows.groupby(["model", "patient_id"]).agg({"prob_tumour": "nunique", "label": "size"})
    assert (values.prob_tumour == 1).all()
    assert (values.label == 2).all()
    assert (rows.pooling == "bag").all()
    folds = pd.read_csv(run / "run/folds.csv")
    patient = folds[folds.fold_1 == "train"].groupby("patient_id").slide_id.apply(list).iloc[0]
    first, second = (stage_files.read_teacher(run / "run", 1, name) for name in patient)
    np.testing.assert_array_equal(first["logits"], second["logits"])
    assert first["attention_logits"].shape != (0,)


@pytest.mark.slow
def test_predict_sees_the_same_bags(run, tmp_path):
    wanted = evaluated(run / "run").query("model == 'lrmil'").set_index("slide_id")
    labels = pd.read_csv(run / "cohort/labels.csv")
    listed = labels[labels.slide_id.isin(wanted.index)].assign(
        path=lambda t: [str(run / "cohort/slides" / name) for name in t.path]
    )
    listed.to_csv(tmp_path / "list.csv", index=False)
    arguments = {"slide": None, "slides": tmp_path / "list.csv"}
    model = run / "run/model"
    assert predict.run(model, tmp_path / "out", **arguments) == 0
    got = pd.read_csv(tmp_path / "out/predictions/predictions.csv").set_index("slide_id")
    assert got.index.tolist() == listed.slide_id.tolist()
    np.testing.assert_allclose(
        got.prob_tumour, wanted.prob_tumour.reindex(got.index), rtol=0, atol=2e-3
    )
    marks = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("prediction.json")}
    lost = sorted(marks)[0]
    lost.unlink()
    assert predict.run(model, tmp_path / "out", **arguments) == 0
    again = {p: p.stat().st_mtime_ns for p in marks}
    assert sum(again[path] != marks[path] for path in marks) == 2  # its patient's, and no other
    alone = pd.read_csv(tmp_path / "out/predictions/predictions.csv").set_index("slide_id")
    pd.testing.assert_series_equal(alone.prob_tumour, got.prob_tumour)
    assert verify.verify(model, lost.parent) == []


def test_wise_fuse_refuses_it():
    config = tiny(data__patient="bag", method="wise_fuse")
    with pytest.raises(ConfigError, match="wise_fuse chooses and predicts slide by slide"):
        checks.validate(config)
