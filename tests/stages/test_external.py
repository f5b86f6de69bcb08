"""A trained model on slides that it has never seen: figures, leaks, mistakes."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data import regions, slide_files
from lrmil_jax.data.slide_jobs import SlideJob, file_identity
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.models import model_folder
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import external, predict
from lrmil_jax.tasks import predictions
from lrmil_jax.workspace import twins
from tests.integration import random_model

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Six slides of three patients of each class."""
    return (
        synthetic.write_cohort(
            tmp_path_factory.mktemp("cohort"), seed=3, slides=6, size_px=512
        ).parent
        / "slides"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of random parameters that saw one slide of another cohort."""
    folder = tmp_path_factory.mktemp("model")
    model = random_model.write_model(
        folder / "model", random_model.write_weights(folder / "encoder.safetensors")
    )
    facts = json.loads((model / "model.json").read_text())
    files.write_json(model / "model.json", facts | {"thresholds": {"youden": 0.4}})
    files.write_json(model / "fold_1" / twins.SEEN, {"slides": [{"size": 1, "sample": "x"}]})
    return model


@pytest.fixture
def cohort(tmp_path, slides):
    """A label CSV beside the slides, in two slides a patient."""
    frame = pd.DataFrame(
        {
            "slide_id": [f"slide_{number:04d}" for number in range(6)],
            "patient_id": [f"p{number // 2}" for number in range(6)],
            "diagnosis": [("benign", "tumour")[number // 2 % 2] for number in range(6)],
            "path": [str(slides / f"slide_{number:04d}.tif") for number in range(6)],
        }
    )
    frame.to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


def config(**changes):
    config = configuration.default()
    config.update_from_flattened_dict(
        {"data.label_column": "diagnosis", "prepare.workers": 1, "prepare.seconds_per_slide": 0.0}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def test_figures_of_an_external_cohort(model, cohort, tmp_path, caplog):
    workdir = tmp_path / "work"
    with caplog.at_level(logging.INFO):
        assert external.run(model, workdir, cohort, config()) == 0
    rows = pd.read_csv(workdir / "evaluate/predictions.csv")
    assert rows.model.tolist() == ["lrmil"] * 6
    assert rows.label.tolist() == pd.read_csv(cohort).diagnosis.tolist()
    measured = json.loads((workdir / "evaluate/metrics.json").read_text())["lrmil"]
    patients = rows.groupby("patient_id").agg({"label": "first", "prob_tumour": "mean"})
    true = patients.label == "tumour"
    assert measured["patients"] == 3
    assert measured["metrics"]["auc"] == pytest.approx(roc_auc_score(true, patients.prob_tumour))
    point = measured["thresholds"]["youden"]
    assert point["threshold"] == 0.4
    assert point["accuracy"] == pytest.approx(((patients.prob_tumour >= 0.4) == true).mean())
    assert (
        predictions.measure(model_folder.load(model).task, rows)["metrics"] == (measured["metrics"])
    )
    text = (workdir / "report/table.txt").read_text()
    assert "External cohort new.csv, none of whose slides the model was trained on." in text
    assert "the model's own validation patients" in text
    page = (workdir / "report/index.html").read_text()
    assert "../predictions/slide_0000/heatmap.png" in page
    assert (workdir / "predictions/slide_0000/heatmap.png").is_file()
    # The same predictions as those of `predict`, which finds them there.
    before = (workdir / "predictions/slide_0000/prediction.json").read_bytes()
    listed = pd.read_csv(cohort).rename(columns={"diagnosis": "label"})
    listed.to_csv(cohort, index=False)
    assert predict.run(model, workdir, slide=None, slides=cohort) == 0
    assert (workdir / "predictions/slide_0000/prediction.json").read_bytes() == before
    again = json.loads((workdir / "predictions/metrics.json").read_text())
    assert again["metrics"] == measured["metrics"]


def refused(model, cohort, workdir, config=None):
    with pytest.raises(DataError) as caught:
        external.run(model, workdir, cohort, config)
    assert "\n" not in str(caught.value)
    assert not workdir.exists()
    return str(caught.value)


def seen(model, folder, *identities):
    changed = folder / "changed"
    shutil.copytree(model, changed)
    files.write_json(changed / "fold_1" / twins.SEEN, {"slides": list(identities)})
    return changed


def test_slides_of_the_training_set_are_refused(model, cohort, tmp_path, slides):
    identity = file_identity(slides / "slide_0002.tif")
    trained = seen(model, tmp_path, identity)
    said = refused(trained, cohort, tmp_path / "work", config())
    assert "slide slide_0002 is a file that the model was trained on" in said
    assert "data.leaks=warn" in said


def test_a_training_slide_of_another_compression_is_refused(model, cohort, tmp_path, slides):
    settings = model_folder.load(model).settings
    job = SlideJob("x", slides / "slide_0003.tif", None, tmp_path, settings)
    picture = regions.identify_slide(job)["picture"]
    trained = seen(model, tmp_path, {"size": 1, "sample": "x", "picture": picture})
    image = synthetic.tissue_image(
        np.random.default_rng([3, 3]), size_px=512, positive=True
    )[0]  # fmt: skip
    path = tmp_path / "export.tif"
    synthetic.write_slide(path, image, mpp=0.5, quality=50)
    frame = pd.read_csv(cohort)
    frame.loc[0, "path"] = str(path)
    frame[:3].to_csv(cohort, index=False)
    said = refused(trained, cohort, tmp_path / "work", config())
    assert "slide slide_0000 shows the tissue (likeness" in said


def test_what_the_report_says_of_slides_that_were_seen(model, tmp_path, slides, caplog):
    table = slide_files.read_list(slides)[1:3].reset_index(drop=True)
    warned = config(data__leaks="warn")
    trained = model_folder.load(seen(model, tmp_path, file_identity(slides / "slide_0002.tif")))
    said = external._seen(trained, table, "new.csv", warned)
    assert said == "1 slides of which the model was trained on"
    assert "slide slide_0002 is a file that the model was trained on" in caplog.text
    (trained.folder / "fold_1" / twins.SEEN).unlink()  # as of an earlier version
    said = external._seen(trained, table, "new.csv", warned)
    assert said == "not compared with the slides that the model was trained on"
    assert "does not say which slides it was trained on" in caplog.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"diagnosis": "cancer"}, "label 'cancer', which is none of the model's classes"),
        ({"diagnosis": ""}, "has no diagnosis in line 2"),
        ({"path": "nowhere.tif"}, "lists 1 slide that is not there"),
        ({"patient_id": ""}, "has no patient_id in line 2"),
    ],
)
def test_mistakes_of_the_table_are_told_before_anything_is_read(
    model, cohort, tmp_path, change, sentence
):
    frame = pd.read_csv(cohort)
    for name, value in change.items():
        frame.loc[0, name] = value
    frame.to_csv(cohort, index=False)
    assert sentence in refused(model, cohort, tmp_path / "work", config())


def test_the_column_must_be_there(model, cohort, tmp_path):
    said = refused(model, cohort, tmp_path / "work")
    assert "has no column label" in said
    assert "data.label_column" in said


def test_flags_that_do_not_go_together(tmp_path, monkeypatch):
    from lrmil_jax import main

    class Flag:
        def __init__(self, value):
            self.value = value

    for name, value in {"_WORKDIR": str(tmp_path), "_COHORT": "new.csv", "_MODEL": None,
                        "_STAGES": ["evaluate"]}.items():  # fmt: skip
        monkeypatch.setattr(main, name, Flag(value))
    with pytest.raises(ConfigError, match="--cohort CSV is for --stages evaluate --model DIR"):
        main.dispatch()
