"""Other runs that teach: which are refused, and what of each is taken."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import checks, files
from lrmil_jax import config as configuration
from lrmil_jax.data.schema import SCHEMA_VERSION
from lrmil_jax.errors import ConfigError, UserError
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, statuses, teachers

SPLITS = ("train", "train", "train", "train", "val", "val", "test", "test")
CLASSES = ("benign", "tumour")
ENCODER = {"name": "vit", "weights": "a", "width": 8, "dtype": "float16", "layer_width": 8}


@pytest.fixture
def config(tmp_path):
    """Of a run on eight slides with one fold, whose slides are empty files."""
    names = [f"s{number}" for number in range(8)]
    for name in names:
        (tmp_path / f"{name}.tif").touch()
    rows = [f"{name},p_{name},{CLASSES[number % 2]},{SPLITS[number]}"
            for number, name in enumerate(names)]  # fmt: skip
    text = "\n".join(["slide_id,patient_id,label,fold_1", *rows, ""])
    (tmp_path / "labels.csv").write_text(text)
    made = configuration.default()
    made.update(folds=1)
    made.data.labels, made.data.slides = str(tmp_path / "labels.csv"), str(tmp_path)
    return made


@pytest.fixture
def own(config, tmp_path):
    workdir = tmp_path / "own"
    write_run(config, workdir, ENCODER)
    return workdir


@pytest.fixture
def other(config, tmp_path):
    return write_run(config, tmp_path / "other", ENCODER | {"weights": "b", "width": 12})


def write_run(config, folder, encoder, classes=CLASSES):
    """What another run reads of a run whose teacher is finished."""
    folder.mkdir()
    cohorts.forget()
    cohorts.read(config, folder)
    files.write_json(folder / "config.json", configuration.flatten(config))
    regions = json.loads(json.dumps(cohorts.regions_identity(config)))
    content = {"schema": SCHEMA_VERSION, "regions": regions, "encoder": encoder}
    files.write_json(folder / "cohort.json", content)
    teacher = folder / "folds/1/teacher"
    teacher.mkdir(parents=True)
    files.write_json(teacher / "stage.json", {"fingerprint": "f", "complete": True})
    ones = np.ones(2, np.float32)
    BagModel("mean", {}, Classification(classes), {"a": ones}, ones, ones).save(
        teacher / "model.safetensors"
    )
    (folder / "features/hr_targets_0").mkdir(parents=True)
    return folder


def given(config, *pairs):
    config.distill.teachers = tuple((str(folder), weight) for folder, weight in pairs)
    return config


def check(config, own, *pairs):
    teachers.check(given(config, *pairs), own, (1,))


def test_a_finished_run_of_the_same_slides_and_folds_may_teach(config, own, other):
    check(config, own, (other, 0.5))


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ((("a", 0.0),), "the weight 0, but a weight must be above 0"),
        ((("a", -1.0),), "the weight -1, but"),
        ((("a", float("inf")),), "the weight inf, but"),
        ((("a", 1.0), ("./a", 2.0)), "names a twice; name it once, with the sum"),
        (("a", 1.0), "tuple of pairs of a folder and a weight"),
        ("runs/a", "tuple of pairs"),
        ((("a", "1"),), "tuple of pairs"),
        ((("a", True),), "tuple of pairs"),
        ((("a",),), "tuple of pairs"),
    ],
)
def test_what_is_no_list_of_folders_and_weights_is_refused(pairs, sentence):
    config = configuration.default()
    config.distill.teachers = pairs if isinstance(pairs, tuple) else (pairs,)
    config.synthetic.slides = 4
    with pytest.raises(ConfigError, match=sentence):
        checks.validate(config)


def test_a_method_without_a_student_has_no_use_for_teachers(config, other):
    config.method = "mil"
    with pytest.raises(ConfigError, match="which method mil does not train"):
        checks.validate(given(config, (other, 1.0)))


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def folds(folder, change):
    table = pd.read_csv(folder / "folds.csv", dtype=str).set_index("slide_id")
    change(table).reset_index().to_csv(folder / "folds.csv", index=False)


def swapped(table):
    """A slide that is tested here was learned from there."""
    table.loc[["s0", "s6"], "fold_1"] = ["test", "train"]
    return table


def chosen_otherwise(table):
    table.loc[["s1", "s5"], "fold_1"] = ["val", "train"]
    return table


def other_label(table):
    table.loc["s3", "label"] = "0"
    return table


MARK = "folds/1/teacher/stage.json"
WRONG = {
    "no run": (lambda folder: shutil.rmtree(folder), "no finished run: it has no teacher of any"),
    "no teacher": (lambda folder: (folder / MARK).unlink(), "no teacher of fold 1; run it there"),
    "unfinished": (lambda folder: rewrite(folder / MARK, lambda mark: mark.update(complete=False)),
                   "no teacher of fold 1"),
    "patch side": (lambda folder: rewrite(folder / "cohort.json", lambda content:
                   content["regions"]["geometry"].update(patch_px=224)),
                   "has patches with patch_px=224, this run with 256"),
    "ratio": (lambda folder: rewrite(folder / "cohort.json", lambda content:
              content["regions"]["geometry"].update(lr_mpp=4.0)), "lr_mpp=4.0, this run with 2.0"),
    "tissue": (lambda folder: rewrite(folder / "cohort.json", lambda content:
               content["regions"].update(min_tissue=0.5)), "min_tissue=0.5, this run with 0.25"),
    "fewer slides": (lambda folder: folds(folder, lambda table: table.drop("s2")),
                     "other slides: s2 is one that it does not have"),
    "more slides": (lambda folder: folds(folder, lambda table: table.rename({"s2": "s22"})),
                    "other slides: s2"),
    "leak": (lambda folder: folds(folder, swapped),
             "would leak: slide s6 is in its train of fold_1, and tested here"),
    "other validation": (lambda folder: folds(folder, chosen_otherwise),
                         "another fold_1 of slide s1: 'val' there, 'train' here"),
    "fewer folds": (lambda folder: folds(folder, lambda table: table.drop(columns="fold_1")),
                    "has no fold_1"),
    "labels": (lambda folder: folds(folder, other_label), "another label of slide s3"),
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG)
def test_a_run_that_cannot_teach_here_is_refused_by_name(change, config, own, other):
    wrong, sentence = WRONG[change]
    wrong(other)
    with pytest.raises(UserError, match=sentence) as caught:
        check(config, own, (other, 1.0))
    assert str(other) in str(caught.value)


def test_the_run_itself_is_refused(config, own):
    with pytest.raises(ConfigError, match="which is this run itself"):
        check(config, own, (own, 1.0))


def test_other_classes_are_refused(config, own, tmp_path):
    other = write_run(config, tmp_path / "other", ENCODER, classes=("tumour", "benign"))
    with pytest.raises(ConfigError, match="same task and classes, in the same order"):
        check(config, own, (other, 1.0))


STATUS = {"status": "ok", "lr_patches": 4, "hr_patches": 40, "source": {"bytes": 9}}


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        (None, "slide s0 is missing in"),
        ({**STATUS, "status": "failed"}, "slide s0 is failed in"),
        ({**STATUS, "source": {"bytes": 8}}, "slide s0 is another file in"),
        ({**STATUS, "hr_patches": 39}, "another number of hr_patches in"),
    ],
)
def test_other_patches_of_a_prepared_slide_are_refused(there, sentence, config, own, other):
    for folder, status in ((own, STATUS), (other, there)):
        (folder / "regions").mkdir()
        if status is not None:
            files.write_json(folder / "regions/s0.json", status)
    statuses.forget()
    with pytest.raises(UserError, match=sentence):
        check(config, own, (other, 1.0))
    statuses.forget()


def test_runs_with_one_encoder_are_one_term_of_stage_1(config, own, other, tmp_path):
    """Those with this run's own add to its weight, however they store what it says."""
    same = write_run(config, tmp_path / "same", ENCODER | {"dtype": "bfloat16"})
    again = write_run(config, tmp_path / "again", ENCODER | {"weights": "b", "width": 12})
    given(config, (other, 0.5), (same, 0.25), (again, 2.0))
    weight, (found,) = teachers.encoders(config, own)
    assert weight == 1.25
    assert (found.workdir, found.weight, found.width) == (other, 2.5, 12)
    (other / "features/hr_targets_0").rmdir()
    with pytest.raises(UserError, match="keeps no HR embeddings LR patch by LR patch"):
        teachers.encoders(config, own)


def test_what_the_others_hold_is_in_the_fingerprint_and_where_they_lie_is_not(
    config, own, other, tmp_path
):
    before = teachers.inputs(given(config, (other, 1.0)), (1,))
    moved = shutil.copytree(other, tmp_path / "moved")
    assert teachers.inputs(given(config, (moved, 1.0)), (1,)) == before
    assert teachers.inputs(given(config, (moved, 2.0)), (1,)) != before
    rewrite(moved / MARK, lambda mark: mark.update(fingerprint="g"))
    assert teachers.inputs(given(config, (moved, 1.0)), (1,)) != before
    only_encoder = teachers.inputs(given(config, (moved, 1.0)), ())
    assert only_encoder == teachers.inputs(given(config, (other, 1.0)), ())
