"""Several folds: what is delivered, what it costs, and what it was trained on."""

import json
import shutil

import pandas as pd
import pytest

from lrmil_jax import checks, graph
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.evals import __main__ as program
from lrmil_jax.models import model_folder
from lrmil_jax.stages import predict
from lrmil_jax.workspace import cohorts
from tests.integration import random_model, runs
from tests.integration.test_end_to_end import go, tiny

pytestmark = pytest.mark.usefixtures("one_device", "figures_not_drawn")
# Nothing is learned here: an encoder of random weights, two updates of each training.
CHANGES = {
    "folds": 2, "student__no_distillation": False, "evaluate__timed_slides": 0,
    "report__heatmaps": 0, "synthetic__slides": 12, "distill__steps": 2, "distill__eval_every": 2,
    "teacher__epochs": 1, "student__epochs": 1, "evaluate__subgroups": ("grade", "burden"),
}  # fmt: skip


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    weights = random_model.write_weights(tmp_path_factory.mktemp("weights") / "vit.safetensors")
    return {**CHANGES, "encoder__weights": str(weights)}


@pytest.fixture(scope="module")
def two_folds(cache, changes, tmp_path_factory):
    """A run of two folds that delivers one model of all patients."""
    workdir = tmp_path_factory.mktemp("folds") / "run"
    assert go(tiny(**changes), workdir) == 0
    return workdir


def encodings(model, workdir, slide):
    """Images that were encoded for a slide, and its LR patches."""
    assert predict.run(model, workdir, slide=slide, slides=None) == 0
    path = workdir / "predictions" / slide.stem / "prediction.json"
    record = json.loads(path.read_text())
    assert set(record["predicted_at"]) == {"youden", "sensitivity"}
    return record["patches_encoded"], record["lr_patches"]


def test_one_model_of_all_patients_is_delivered(two_folds, tmp_path):
    """Each LR patch is encoded once, however many folds there were."""
    facts = json.loads((two_folds / "model/model.json").read_text())
    assert facts["members"] == ["final"]
    assert set(facts["thresholds"]) == {"youden", "sensitivity"}
    names = sorted(path.name for path in (two_folds / "model").iterdir())
    assert names == ["README.md", "final", "model.json"]
    slide = two_folds / "synthetic/slides/slide_0000.tif"
    encoded, patches = encodings(two_folds / "model", tmp_path, slide)
    assert encoded == patches > 0


def test_the_final_model_sees_all_but_the_patients_that_choose_it(two_folds, changes):
    folds = pd.read_csv(two_folds / "folds.csv").set_index("slide_id")
    cohort = cohorts.prepared(tiny(**changes), two_folds)
    validation = set(cohort.slides(0, "val").slide_id)
    assert validation == set(folds.index[folds.fold_1 == "val"])
    assert set(cohort.slides(0, "train").slide_id) == set(folds.index) - validation
    assert cohort.slides(0, "test").empty
    outputs = {path.stem for path in (two_folds / "folds/final/teacher/outputs").iterdir()}
    assert outputs == set(folds.index)  # of every patient, as a fold's are of train and val
    assert not (two_folds / "folds/final/evaluate").exists()


def test_the_table_has_the_mean_over_folds_and_the_pooled_figure(two_folds):
    table = pd.read_csv(two_folds / "report/table.csv").set_index("model")
    assert (table.folds == 2).all()
    assert table[["auc", "auc_sd", "auc_pooled", "auc_low", "auc_high"]].notna().all(axis=None)
    metrics = [
        json.loads((two_folds / f"folds/{fold}/evaluate/metrics.json").read_text())
        for fold in (1, 2)
    ]
    for model in table.index:
        folds = [fold[model]["metrics"]["auc"] for fold in metrics]
        assert table.auc[model] == pytest.approx(sum(folds) / 2)


def test_every_figure_follows_from_the_predictions(two_folds, tmp_path, capsys):
    """`python -m lrmil_jax.evals` on both folds' files gives what both metrics.json have."""
    folds = [two_folds / f"folds/{fold}/evaluate" for fold in (1, 2)]
    paths = [str(folder / "predictions.csv") for folder in folds]
    assert program.main([*paths, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["folds"]
    for number, folder in enumerate(folds, 1):
        measured = json.loads((folder / "metrics.json").read_text())
        for model in measured.values():
            for side in (model, model["validation"]):
                del side["localisation"]  # of masks and attention, not of predictions
            levels = {(row["subgroup"], row["note"]) for row in model["subgroups"]}
            assert levels >= {("grade", "undefined: fewer than 10 patients")}
        assert found[str(number)] == measured
    capsys.readouterr()
    pooled = str(two_folds / "report/predictions.csv")
    within = ["--model", "lrmil", "--other", "teacher", "--bootstrap", "0"]
    assert program.main(["compare", pooled, pooled, *within]) == 0
    assert "lrmil - teacher: " in capsys.readouterr().out


def test_the_report_shows_calibration_decisions_and_subgroups(two_folds):
    page = (two_folds / "report/index.html").read_text(encoding="utf-8")
    for name in ("reliability.png", "decision_curve.png"):
        assert (two_folds / "report" / name).is_file()
        assert name in page
    assert "Subgroups of test patients" in page
    assert "Net benefit [95 %]" in page
    assert "grade: large" in (two_folds / "report/subgroups.txt").read_text()


def test_subgroups_concern_evaluate_and_report_alone(two_folds, changes):
    """Neither other columns nor another site in the CSV trains anything again."""
    config, other = tiny(**changes), tiny(**changes | {"evaluate__subgroups": ()})
    marks = [
        [graph.fingerprint(one, two_folds, graph.STAGES[name], fold) for one in (config, other)]
        for name, fold in (("student", 1), ("evaluate", 1), ("report", None))
    ]
    assert [one == two for one, two in marks] == [True, False, False]


@pytest.mark.slow
def test_the_folds_own_models_when_asked_for(two_folds, changes, tmp_path):
    """An ensemble changes what is delivered and nothing that was trained."""
    workdir = tmp_path / "run"
    shutil.copytree(two_folds, workdir, symlinks=True)
    before = runs.files(workdir / "folds")
    assert go(tiny(**changes, deliver="ensemble"), workdir) == 0
    assert runs.changed(before, runs.files(workdir / "folds")) == set()
    facts = json.loads((workdir / "model/model.json").read_text())
    assert facts["members"] == ["fold_1", "fold_2"]
    slide = workdir / "synthetic/slides/slide_0000.tif"
    encoded, patches = encodings(workdir / "model", tmp_path, slide)
    assert encoded == 2 * patches


def test_one_lr_encoder_for_all_folds(two_folds, changes, tmp_path):
    """Stage 1 and its encoding are done once, whatever teachers say; students are each fold's."""
    workdir = tmp_path / "run"
    shutil.copytree(two_folds, workdir, symlinks=True)
    once = tiny(**changes, distill__per_fold=False)
    assert go(once, workdir) == 0
    assert (workdir / "distill/encoder.safetensors").is_file()
    assert (workdir / "encode_lr/features").is_dir()
    made = model_folder.read_facts(workdir / "model")["sha256"]["final/encoder.safetensors"]
    assert made == pretrained.weights_hash(workdir / "distill/encoder.safetensors")
    assert set(pd.read_csv(workdir / "report/predictions.csv").fold) == {1, 2}
    before = runs.files(workdir)
    again = tiny(**changes, distill__per_fold=False, teacher__hidden=8)
    assert go(again, workdir, "teacher", "distill", "encode_lr", "student") == 0
    changed = runs.changed(before, runs.files(workdir))
    assert not [name for name in changed if name.startswith(("distill/", "encode_lr/"))]
    assert "folds/2/student/model.safetensors" in changed


def test_which_folds_a_stage_runs_for():
    stage = graph.STAGES
    several = tiny(folds=3)
    assert graph.folds(several, stage["student"]) == (1, 2, 3, 0)
    assert graph.folds(several, stage["evaluate"]) == (1, 2, 3)
    assert graph.folds(several, stage["baseline"]) == (1, 2, 3)
    assert graph.folds(several, stage["prepare"]) == (None,)
    assert graph.folds(tiny(folds=1), stage["student"]) == (1,)
    assert graph.folds(tiny(folds=3, deliver="ensemble"), stage["student"]) == (1, 2, 3)
    assert graph.folds(tiny(folds=3, method="mil"), stage["teacher"]) == (1, 2, 3, 0)
    once = graph.stage_of("distill", per_fold=False)
    assert graph.folds(tiny(folds=3, distill__per_fold=False), once) == (None,)


def test_an_ensemble_of_one_fold_is_refused():
    with pytest.raises(ConfigError, match="deliver=ensemble needs several folds, but folds is 1"):
        checks.validate(tiny(deliver="ensemble", folds=1))


def test_a_model_folder_of_the_old_schema_is_refused(two_folds, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    facts = json.loads((two_folds / "model/model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"schema": 1}))
    with pytest.raises(WeightsError, match="has schema 1, this version reads schema 4; run the"):
        model_folder.load(folder)
