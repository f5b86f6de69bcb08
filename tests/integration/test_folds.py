"""Several folds: what is delivered, what it costs, and what it was trained on."""

import json

import pandas as pd
import pytest

from lrmil_jax import checks, graph
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.stages import layout, model_folder, predict
from tests.integration import runs
from tests.integration.test_end_to_end import go, tiny

CHANGES = {"folds": 2, "student__no_distillation": False, "evaluate__timed_slides": 0}


@pytest.fixture(scope="module")
def two_folds(finished, tmp_path_factory):
    """The tiny run's slides in two folds, delivering one model of all patients."""
    workdir = finished.copy(tmp_path_factory.mktemp("folds") / "run")
    assert go(tiny(**CHANGES), workdir) == 0
    return workdir


def encodings(model, workdir, slide):
    """Images that were encoded for a slide, and its LR patches."""
    assert predict.run(model, workdir, slide=slide, slides=None) == 0
    path = workdir / "predictions" / slide.stem / "prediction.json"
    record = json.loads(path.read_text())
    return record["patches_encoded"], record["lr_patches"]


def test_one_model_of_all_patients_is_delivered(two_folds, tmp_path):
    """Each LR patch is encoded once, however many folds there were."""
    facts = json.loads((two_folds / "model/model.json").read_text())
    assert facts["members"] == ["final"]
    assert sorted(path.name for path in (two_folds / "model").iterdir()) == ["final", "model.json"]
    slide = two_folds / "synthetic/slides/slide_0000.tif"
    encoded, patches = encodings(two_folds / "model", tmp_path, slide)
    assert encoded == patches > 0


def test_the_final_model_sees_all_but_the_patients_that_choose_it(two_folds):
    folds = pd.read_csv(two_folds / "folds.csv").set_index("slide_id")
    cohort = layout.prepared_cohort(tiny(**CHANGES), two_folds)
    validation = set(cohort.slides(0, "val").slide_id)
    assert validation == set(folds.index[folds.fold_1 == "val"])
    assert set(cohort.slides(0, "train").slide_id) == set(folds.index) - validation
    assert cohort.slides(0, "test").empty
    outputs = {path.stem for path in (two_folds / "folds/final/teacher/outputs").iterdir()}
    assert outputs == set(folds.index)  # of every patient, as a fold's are of train and val
    assert not (two_folds / "folds/final/evaluate").exists()


def test_the_folds_own_models_when_asked_for(two_folds, tmp_path):
    """An ensemble changes what is delivered and nothing that was trained."""
    workdir = tmp_path / "run"
    runs.Finished(two_folds, None, "").copy(workdir)
    before = runs.files(workdir / "folds")
    assert go(tiny(**CHANGES, deliver="ensemble"), workdir) == 0
    assert runs.changed(before, runs.files(workdir / "folds")) == set()
    facts = json.loads((workdir / "model/model.json").read_text())
    assert facts["members"] == ["fold_1", "fold_2"]
    slide = workdir / "synthetic/slides/slide_0000.tif"
    encoded, patches = encodings(workdir / "model", tmp_path, slide)
    assert encoded == 2 * patches


def test_which_folds_a_stage_runs_for():
    stage = graph.STAGES
    several = tiny(folds=3)
    assert graph.folds(several, stage["student"]) == (1, 2, 3, 0)
    assert graph.folds(several, stage["evaluate"]) == (1, 2, 3)
    assert graph.folds(several, stage["baseline"]) == (1, 2, 3)
    assert graph.folds(several, stage["prepare"]) == (None,)
    assert graph.folds(tiny(folds=1), stage["student"]) == (1,)
    assert graph.folds(tiny(folds=3, deliver="ensemble"), stage["student"]) == (1, 2, 3)
    assert graph.folds(tiny(folds=3, method="mil"), stage["teacher"]) == (1, 2, 3)


def test_an_ensemble_of_one_fold_is_refused():
    with pytest.raises(ConfigError, match="deliver=ensemble needs several folds, but folds is 1"):
        checks.validate(tiny(deliver="ensemble", folds=1))


def test_a_model_folder_of_the_old_schema_is_refused(two_folds, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    facts = json.loads((two_folds / "model/model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"schema": 1}))
    with pytest.raises(WeightsError, match="has schema 1, this version reads schema 2; run the"):
        model_folder.load(folder)
