"""ZoomMIL and HDMIL from slides to a prediction: what is chosen, read and said of a slide file."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import checks, load_model
from lrmil_jax.errors import ConfigError
from lrmil_jax.selection import score
from lrmil_jax.workspace import stage_files
from tests.integration import runs
from tests.integration.test_end_to_end import go, tiny

pytestmark = pytest.mark.usefixtures("one_device", "optimised_encoders", "figures_not_drawn")
PATCHES, CHOSEN = 4, 2  # LR patches of a slide, and ceil(0.4 * 4)
CHANGES = {"select.rho": 0.4, "evaluate.timed_slides": 1, "report.slides": 0}


def config(method, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny(method=method, **CHANGES | changes)


@pytest.fixture(scope="module", params=["zoom_mil", pytest.param("hdmil", marks=pytest.mark.slow)])
def run(request, finished, tmp_path_factory):
    """A method's name and its run, from where one of LRMIL has slides and features already."""
    workdir = finished.copy(tmp_path_factory.mktemp(request.param) / "run")
    before = runs.files(workdir)
    assert go(config(request.param), workdir) == 0
    changed = runs.changed(before, runs.files(workdir))
    assert not [name for name in changed if name.startswith(("features", "regions"))]
    return request.param, workdir


def says_the_same(workdir, model, *, tolerance):
    """A model folder alone predicts of slide files what the run's predictions.csv has."""
    frame = pd.read_csv(workdir / "folds/1/evaluate/predictions.csv").set_index("slide_id")
    model = load_model(shutil.copytree(workdir / "model", model))
    paths = [workdir / f"synthetic/slides/{name}.tif" for name in frame.index]
    for row, result in zip(frame.itertuples(), model.predict_many(paths), strict=True):
        assert result.probabilities["tumour"] == pytest.approx(row.prob_tumour, abs=tolerance)
        scores, chosen = stage_files.read_chosen(workdir, 1, row.Index, "two_scale")
        assert result.guidance.chosen.tolist() == chosen.tolist()
        assert len(chosen) == CHOSEN == score.budget(PATCHES, rho=0.4)
        assert scores[chosen].min() >= np.delete(scores, chosen).max()
        assert result.encoded == PATCHES + 16 * CHOSEN
        assert result.attention.sum() == pytest.approx(1, abs=1e-5)
    assert np.ptp(frame.prob_tumour) > 3 * tolerance


def test_predict_says_what_the_run_said_from_what_it_chose(run, tmp_path):
    # The run's HR patches went through JPEG, those of the file did not.
    says_the_same(run[1], tmp_path / "model", tolerance=0.03)


def test_what_the_run_says_of_its_choice(run):
    method, workdir = run
    measured = json.loads((workdir / "folds/1/evaluate/metrics.json").read_text())[method]
    assert measured["selection"]["lr_patches"] == PATCHES
    assert measured["selection"]["chosen"] == CHOSEN
    assert 0 <= measured["selection"]["lesion_recall"] <= 1
    assert measured["patches"] == 16 * CHOSEN
    row = pd.read_csv(workdir / "report/table.csv").iloc[0]
    assert row.patches == PATCHES + 16 * CHOSEN
    timing = json.loads((workdir / "report/timing.json").read_text())[method]
    assert {"read", "encode", "select", "read_hr", "encode_hr", "mil"} <= timing.keys()
    assert len(list((workdir / "report/regions").glob("*.png"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zoom_mil", "hdmil"])
def test_without_jpeg_it_is_the_very_same(cache, tmp_path, method):
    del cache
    workdir = tmp_path / "run"
    changes = {"encoder.weights": "shipped:procedural", "prepare.hr": "skip"}
    assert go(config(method, **changes), workdir) == 0
    says_the_same(workdir, tmp_path / "model", tolerance=1e-5)


@pytest.mark.slow
def test_a_smaller_budget_redoes_the_head_and_what_follows(run, tmp_path):
    method, before = run
    workdir = tmp_path / "run"
    shutil.copytree(before, workdir, symlinks=True)
    before = runs.files(workdir)
    assert go(config(method, select__rho=0.1), workdir) == 0
    changed = runs.changed(before, runs.files(workdir))
    assert {name.split("/")[2] for name in changed if name.startswith("folds/")} == {
        "two_scale", "evaluate",
    }  # fmt: skip
    assert not [name for name in changed if name.startswith("features")]
    assert len(stage_files.read_chosen(workdir, 1, "slide_0000", "two_scale")[1]) == 1


@pytest.mark.slow
def test_members_choose_each_for_itself(tmp_path):
    """Two folds' models together: what either chose is read once, the prediction is their mean."""
    workdir = tmp_path / "run"
    both = config("zoom_mil", folds=2, deliver="ensemble", encoder__weights="shipped:procedural")
    assert go(both, workdir) == 0
    model = load_model(workdir)
    assert len(model.members) == 2
    slide = workdir / "synthetic/slides/slide_0003.tif"
    result = model.predict(slide)
    alone = [
        dataclasses.replace(model, members=[member]).predict(slide) for member in model.members
    ]
    chosen = set().union(*(one.guidance.chosen.tolist() for one in alone))
    assert set(result.guidance.chosen.tolist()) == chosen
    for name, probability in result.probabilities.items():
        mean = np.mean([one.probabilities[name] for one in alone])
        assert probability == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"mil__head": "clam_sb"},
            "mil.head is clam_sb, but method zoom_mil has a head of its own",
        ),
        ({"mil__head": "zoom_mil", "mil__options": ("draw=3",)}, "did you mean 'draws'"),
        ({"mil__head": "zoom_mil", "mil__options": ("rho=0.5",)}, "mil.options gives rho, which"),
        ({"mil__options": ("gated=false",)}, "MIL head 'zoom_mil' has no option 'gated'"),
        ({"mil__head": "hdmil"}, "use --config.method=hdmil"),
        ({"teacher__head": "hdmil"}, "config.teacher.head=hdmil reads two magnifications"),
        ({"data__patient": "bag"}, "method zoom_mil chooses and predicts slide by slide"),
        ({"study__budgets": (0.5, 2.0)}, "give different shares, above 0 and up to 1"),
        ({"study__other_methods": ("hdmil",)}, "'hdmil', but with method zoom_mil it must be left"),
    ],
)
def test_mistakes_in_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        checks.validate(config("zoom_mil", **changes))


def test_a_loss_of_one_slide_alone_cannot_be_of_all():
    with pytest.raises(
        ConfigError, match=r"method hdmil has a loss of its own.*use method zoom_mil"
    ):
        checks.validate(config("hdmil", task="cox"))
    checks.validate(config("zoom_mil", task="cox"))
