"""Users' mistakes: one sentence on stderr, no traceback, exit status 1, nothing half-written."""

import csv
import errno
import importlib.util
import json
import logging
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from lrmil_jax import files, pipeline, preflight
from lrmil_jax.errors import DataError, UserError, WeightsError, WorkdirError
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import encode_hr, predict, prepare
from lrmil_jax.workspace import cohorts, layout
from tests.integration import random_model, runs
from tests.slides.files import damage_tile

# One slide of each class in every split, and two in train.
SPLITS = ("test", "test", "val", "val", "train", "train", "train", "train")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Eight small slides that every test copies what it needs of."""
    labels = synthetic.write_cohort(
        tmp_path_factory.mktemp("cohort"), seed=0, slides=8, size_px=512
    )
    return labels.parent / "slides"


@pytest.fixture
def cohort(tmp_path, slides):
    """A folder of one's own with slides and a CSV; `rows` may be changed before `write`."""

    class Cohort:
        folder = tmp_path / "slides"
        labels = tmp_path / "labels.csv"
        workdir = tmp_path / "work"

        def __init__(self):
            shutil.copytree(slides, self.folder)
            self.rows = [
                {"slide_id": f"slide_{i:04d}", "patient_id": f"p{i}",
                 "label": ("benign", "tumour")[i % 2], "fold_1": split}
                for i, split in enumerate(SPLITS)
            ]  # fmt: skip

        def write(self):
            with open(self.labels, "w", newline="") as file:
                table = csv.DictWriter(file, self.rows[0])
                table.writeheader()
                table.writerows(self.rows)
            return self

        def slide(self, number):
            return self.folder / f"slide_{number:04d}.tif"

        def config(self, **changes):
            self.write()
            file = runs.ROOT / runs.TINY.partition(":")[0]
            spec = importlib.util.spec_from_file_location(file.stem, file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config("tiny")
            changes = {key.replace("__", "."): value for key, value in changes.items()}
            config.update_from_flattened_dict(
                {
                    "data.labels": str(self.labels),
                    "data.slides": str(self.folder),
                    "prepare.workers": 1,
                    "prepare.seconds_per_slide": 0.0,
                    **changes,
                }
            )
            return config

        def go(self, *stages, **changes):
            with layout.locked(self.workdir):
                return pipeline.run(self.config(**changes), self.workdir, list(stages))

        @property
        def flags(self):
            return (
                *("--config", runs.TINY, "--workdir", self.workdir, "--config.prepare.workers=2"),
                *(f"--config.data.labels={self.labels}", f"--config.data.slides={self.folder}"),
            )

    return Cohort()


def refused(cache, *arguments, fresh=False):
    """Runs the command line and returns the sentence with which it ends."""
    run = runs.Run(cache, *arguments, fresh=fresh)
    status = run.wait()
    assert status == 1, run.log
    assert "Traceback" not in run.log
    lines = [line for line in run.log.splitlines() if line.strip()]
    lines = [line for line in lines if "compiled programs are kept" not in line]
    assert len(lines) <= 2, run.log  # the sentence, and where to read on
    return lines[0]


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The command line itself, the first of them as a user starts it.


def test_cli_unknown_key(cache, tmp_path):
    said = refused(
        cache, "--config", runs.TINY, "--workdir", tmp_path / "w", "--config.student.lamda_bag=0.5",
        fresh=True,
    )  # fmt: skip
    assert "lamda_bag" in said
    assert "lambda_bag" in said.replace("lamda_bag", "")
    assert everything(tmp_path) == []


def test_cli_wrong_type_of_a_key(cache, tmp_path):
    said = refused(
        cache, "--config", runs.TINY, "--workdir", tmp_path / "w", "--config.student.topk=many"
    )
    assert "many" in said
    assert everything(tmp_path) == []


def test_cli_patient_in_two_splits(cache, cohort):
    cohort.rows[7]["patient_id"] = "p0"
    cohort.rows[7]["label"] = "benign"
    cohort.write()
    said = refused(cache, *cohort.flags)  # before any stage, pretraining included, begins
    assert "patient p0 is in two splits of fold_1" in said
    assert everything(cohort.workdir) == [".lock"]


def test_cli_two_runs_on_one_workdir(cache, cohort):
    cohort.write()
    with layout.locked(cohort.workdir):
        before = everything(cohort.workdir)
        said = refused(cache, *cohort.flags)
    assert f"another run is at work in {cohort.workdir}" in said
    assert everything(cohort.workdir) == before == [".lock"]


def test_cli_workdir_of_another_geometry(cache, cohort):
    config = cohort.config(geometry__patch_px=128)
    cohorts.record_regions(config, cohort.workdir)
    files.write_json(cohort.workdir / "config.json", {"old": True})
    before = runs.files(cohort.workdir)
    said = refused(cache, *cohort.flags)
    assert "was made by another config" in said
    assert "geometry.patch_px=128" in said
    assert "64" in said
    assert runs.files(cohort.workdir) == before


def test_cli_wrong_model_folder(cache, cohort):
    said = refused(
        cache, "--workdir", cohort.workdir, "--stages", "predict", "--model", cohort.folder,
        "--slide", cohort.slide(0),
    )  # fmt: skip
    assert f"--model {cohort.folder} holds no model.json" in said
    assert everything(cohort.workdir) == [".lock"]


def test_cli_workdir_that_is_a_file(cache, cohort):
    cohort.workdir.write_text("a file")
    cohort.write()
    said = refused(cache, *cohort.flags)
    assert str(cohort.workdir) in said
    assert cohort.workdir.read_text() == "a file"


def test_cli_a_corrupt_slide_among_good_ones(cache, cohort):
    data = cohort.slide(5).read_bytes()
    cohort.slide(5).write_bytes(data[: len(data) // 3])
    cohort.write()
    run = runs.Run(cache, *cohort.flags, "--stages", "prepare")
    assert run.wait() == 1
    assert "Traceback" not in run.log
    assert "slide_0005" in run.log.splitlines()[-1]  # listed at the end
    table = pd.read_csv(cohort.workdir / "slides.csv", index_col="slide_id")
    assert table.status["slide_0005"] == "failed"
    assert "slide_0005.tif" in table.reason["slide_0005"]
    others = table.drop("slide_0005")
    assert set(others.status) == {"ok"}
    assert (others.lr_patches == 4).all()
    shards = {path.stem for path in (cohort.workdir / "regions").glob("*.array_record")}
    assert shards == set(others.index)
    assert runs.leftovers(cohort.workdir) == []


# The same promises in this process: stages raise the sentence, `main` shows it.


def test_a_mended_slide_is_taken_up_and_a_removed_one_forgotten(cohort):
    good = cohort.slide(5).read_bytes()
    cohort.slide(5).write_bytes(b"")
    assert cohort.go("prepare") == 1
    kept = runs.files(cohort.workdir / "regions")
    cohort.slide(5).write_bytes(good)
    assert cohort.go("prepare") == 0
    assert set(pd.read_csv(cohort.workdir / "slides.csv").status) == {"ok"}
    after = runs.files(cohort.workdir / "regions")
    touched = {name for name in runs.changed(kept, after) if "tfds" not in name}
    assert all("slide_0005" in name for name in touched)
    cohort.slide(5).write_bytes(b"")
    assert cohort.go("prepare") == 1
    assert not (cohort.workdir / "regions/slide_0005.array_record").exists()
    del cohort.rows[5]
    assert cohort.go("prepare") == 0


def test_slides_with_wrong_um_per_px_are_listed_and_an_override_mends_them(cohort):
    for row in cohort.rows:
        row["mpp"] = ""
    cohort.rows[4]["mpp"] = "50"
    cohort.rows[5]["mpp"] = "0"
    assert cohort.go("prepare") == 2
    table = pd.read_csv(cohort.workdir / "slides.csv", index_col="slide_id")
    assert table.reason["slide_0004"].count("um/px")
    assert table.reason["slide_0005"].count("um/px")
    cohort.rows[4]["mpp"] = cohort.rows[5]["mpp"] = "0.25"
    assert cohort.go("prepare") == 0
    table = pd.read_csv(cohort.workdir / "slides.csv", index_col="slide_id")
    assert table.mpp["slide_0004"] == 0.25
    assert table.mpp_source.tolist().count("override") == 2


def test_no_slide_at_all_and_a_fold_emptied_by_failures(cohort):
    cohort.slide(0).write_bytes(b"")
    cohort.slide(1).write_bytes(b"")
    with pytest.raises(DataError, match=r"less the slides that failed.*no slide in its test split"):
        cohort.go("prepare")
    assert len(pd.read_csv(cohort.workdir / "slides.csv")) == 8  # and all of it is listed
    for number in range(2, 8):
        cohort.slide(number).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 8 slides could be prepared"):
        cohort.go("prepare")


@pytest.mark.parametrize("missing", ["labels", "slides"])
def test_missing_labels_and_slides(cohort, missing):
    changes = {f"data__{missing}": "/nowhere/at/all"}
    with pytest.raises(DataError, match="/nowhere/at/all"):
        cohort.go("prepare", **changes)
    assert not (cohort.workdir / "regions").exists()


def test_stages_out_of_turn_say_what_is_missing(cohort):
    with pytest.raises(WorkdirError, match=r"run --stages (pretrain|prepare)"):
        cohort.go("teacher")
    prepare.run(cohort.config(), cohort.workdir)
    with pytest.raises(WeightsError, match="pretrain"):
        encode_hr.run(cohort.config(), cohort.workdir)


def test_another_schema_is_refused(cohort):
    files.write_json(cohort.workdir / "cohort.json", {"schema": 99})
    with pytest.raises(WorkdirError, match=r"schema 99.*schema 2"):
        cohort.go("prepare")
    assert everything(cohort.workdir) == [".lock", "cohort.json"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the tiny encoder."""
    return random_model.write_weights(tmp_path_factory.mktemp("w") / "encoder.safetensors")


def test_a_truncated_shard_names_itself_and_deleting_it_mends_it(cohort, weights):
    changes = {"encoder__weights": str(weights)}
    cohort.go("prepare", **changes)
    config = cohort.config(**changes)
    shard = cohort.workdir / "regions/hr/slide_0003.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"hr/slide_0003\.array_record cannot be read.*delete it"):
        encode_hr.run(config, cohort.workdir)
    features = cohort.workdir / "features/hr"
    done = runs.files(features)
    assert "slide_0003.array_record" not in done
    assert {"slide_0002.array_record", "slide_0004.array_record"} <= set(done)  # the others go on
    assert runs.leftovers(cohort.workdir) == []
    shard.unlink()
    cohort.go("prepare", **changes)
    assert shard.read_bytes() == whole
    encode_hr.run(config, cohort.workdir)
    assert len(list(features.glob("*.array_record"))) == 8
    assert not runs.changed(done, {k: v for k, v in runs.files(features).items() if k in done})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_more(cohort, monkeypatch, code):
    real = os.replace

    def refuse(source, target, **options):
        if str(target).endswith("slide_0003.array_record"):
            raise OSError(code, os.strerror(code))
        return real(source, target, **options)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(WorkdirError, match=r"the disk is full|read-only"):
        cohort.go("prepare")
    assert (cohort.workdir / "regions/slide_0002.array_record").exists()
    assert not (cohort.workdir / "regions/slide_0003.json").exists()
    assert runs.leftovers(cohort.workdir) == []
    monkeypatch.undo()
    assert cohort.go("prepare") == 0


def test_check_tells_every_problem_at_once_and_each_once(cohort, caplog, weights):
    cohort.slide(2).write_bytes(b"")
    data = cohort.slide(5).read_bytes()
    cohort.slide(5).write_bytes(data[:1000])
    config = cohort.config(geometry__patch_px=24)  # 3 tokens, which 4 children cannot share
    with caplog.at_level(logging.INFO):
        found = preflight.run(config, cohort.workdir)
    records = [r for r in caplog.records if r.name.startswith("lrmil_jax")]
    problems = [r.getMessage() for r in records if r.levelno >= logging.ERROR]
    assert found == len(problems) == 3, problems
    for part in ("slide slide_0002: ", "slide slide_0005: ", "geometry.patch_px=24"):
        assert sum(part in problem for problem in problems) == 1
    assert not (cohort.workdir / "regions").exists()


def test_one_slide_under_two_names_in_two_splits(cohort, caplog):
    """Its file, or another compression of it: told by `check`, and by a run before any training."""
    shutil.copy(cohort.slide(4), cohort.slide(0))
    image = synthetic.tissue_image(np.random.default_rng([0, 5]), size_px=512, positive=True)[0]
    synthetic.write_slide(cohort.slide(1), image, mpp=0.5, quality=40)
    first = "slides slide_0000 and slide_0004 are the same file, in the test and the train split of"
    assert preflight.run(cohort.config(), cohort.workdir) == 1
    assert first in caplog.text
    with pytest.raises(DataError, match=f"{first} fold_1 .and 1 more such pairs.; keep one"):
        cohort.go("prepare")
    del cohort.rows[0]
    cohort.rows.append({**cohort.rows[1], "slide_id": "slide_0000", "patient_id": "p0",
                        "label": "benign", "fold_1": ""})  # fmt: skip
    cohort.rows[1]["fold_1"] = "test"  # benign, so that the test split is not empty
    second = r"slide_0001 and slide_0005 show the same tissue \(likeness [01]\.\d\d\), in the test"
    with pytest.raises(DataError, match=second):
        cohort.go("prepare")
    assert cohort.go("prepare", data__leaks="warn") == 0
    assert "slides slide_0001 and slide_0005 show the same tissue" in caplog.text


def guided(cohort, **changes):
    changes = {"text__descriptions": "shipped:procedural"} | changes
    return cohort.config(method="wise_fuse", encoder__weights="shipped:procedural", **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text__descriptions": "shipped:oral_mucosa"}, "does not describe the class benign"),
        ({"text__descriptions": None}, "text.descriptions is not set"),
        ({"select__classes": ("oscc",)}, "'oscc', which is no class"),
        ({"text__weights": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_mistakes_in_descriptions_are_told_before_slides_are_read(
    cohort, caplog, changes, sentence
):
    config = guided(cohort.write(), **changes)
    assert preflight.run(config, cohort.workdir) == 1
    assert sentence in caplog.text
    with pytest.raises(UserError, match=sentence):
        pipeline.run(config, cohort.workdir, [])
    assert not (cohort.workdir / "regions").exists()


def test_a_sentence_too_long_is_told_before_slides_are_read(cohort, tmp_path):
    words = " ".join(["nucleoli"] * 200)
    own = tmp_path / "own.toml"
    own.write_text(f'[benign]\nlow = ["Even nuclei."]\n[tumour]\nlow = ["{words}"]\n')
    with pytest.raises(DataError, match="tokens"):
        pipeline.run(guided(cohort.write(), text__descriptions=str(own)), cohort.workdir, [])
    assert not (cohort.workdir / "regions").exists()


def test_check_tells_what_the_choice_costs(cohort, caplog):
    with caplog.at_level(logging.INFO):
        assert preflight.run(guided(cohort.write()), cohort.workdir) == 0
    assert "encode_selected" in caplog.text


def test_check_of_a_sound_cohort_finds_nothing(cohort, caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        assert preflight.run(cohort.config(), cohort.workdir) == 0
    text = caplog.text
    for part in ("um/px", "LR and", "fold 1 train: 4 slides", "GiB free", "images/s"):
        assert part in text
    pictures = {path.stem for path in (cohort.workdir / "check").glob("*.jpg")}
    assert pictures == {row["slide_id"] for row in cohort.rows}
    told = pd.read_csv(cohort.workdir / "check/slides.csv")
    assert set(told.slide_id) == pictures
    assert (told.lr_patches > 0).all()
    monkeypatch.setattr(preflight, "_SHOWN", 1)
    with caplog.at_level(logging.INFO):
        caplog.clear()
        preflight.run(cohort.config(), cohort.workdir)
    assert f"{len(pictures)} slides: 0.5000 to 0.5000 um/px" in caplog.text
    assert (cohort.workdir / "left_out.csv").read_text() == "path,reason\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory, weights):
    """A model folder as `student` exports it, with random parameters."""
    return random_model.write_model(tmp_path_factory.mktemp("model") / "model", weights)


def test_predict_lists_bad_slides_and_goes_on(cohort, model, caplog):
    cohort.slide(1).write_bytes(b"")
    cohort.slide(2).write_text("no slide")
    for number in range(4, 8):
        cohort.slide(number).unlink()
    damage_tile(cohort.slide(3), level=0, index=0, how="zeros")  # HR pixels: nobody reads them
    failed = predict.run(model, cohort.workdir, slide=None, slides=cohort.folder)
    assert failed == 2
    table = pd.read_csv(cohort.workdir / "predictions/predictions.csv", index_col="slide_id")
    assert table.status.to_dict() == {
        "slide_0000": "ok", "slide_0001": "failed", "slide_0002": "failed", "slide_0003": "ok",
    }  # fmt: skip
    assert "empty" in table.reason["slide_0001"]
    good = table[table.status == "ok"]
    np.testing.assert_allclose(good.prob_benign + good.prob_tumour, 1, rtol=1e-6)
    assert (good.finest_level_read >= good.finest_level_allowed).all()
    assert (good.finest_level_allowed == 1).all()
    assert not (cohort.workdir / "predictions/slide_0001").exists()
    before = runs.files(cohort.workdir / "predictions/slide_0000")
    assert predict.run(model, cohort.workdir, slide=cohort.slide(0), slides=None) == 0
    assert runs.files(cohort.workdir / "predictions/slide_0000") == before
    assert predict.run(model, cohort.workdir, slide=cohort.folder / "no.tif", slides=None) == 1


@pytest.mark.parametrize("damage", ["json", "keys", "no fold", "encoder", "head"])
def test_broken_model_folders(tmp_path, model, cohort, damage):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    if damage == "json":
        (broken / "model.json").write_text("{")
    elif damage == "keys":
        facts = json.loads((broken / "model.json").read_text())
        files.write_json(broken / "model.json", {k: v for k, v in facts.items() if k != "geometry"})
    elif damage == "no fold":
        shutil.rmtree(broken / "fold_1")
    else:
        part = broken / "fold_1" / f"{damage}.safetensors"
        part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(WeightsError, match="broken") as caught:  # the folder's name
        predict.run(broken, cohort.workdir, slide=cohort.slide(0), slides=None)
    assert "\n" not in str(caught.value)
    assert not cohort.workdir.exists()


def test_labels_that_the_model_does_not_know_are_refused_first(cohort, model):
    table = cohort.folder / "list.csv"
    table.write_text("slide_id,label\nslide_0000,benign\nslide_0001,cancer\n")
    with pytest.raises(DataError, match=r"slide_0001 has label 'cancer'.*benign, tumour"):
        predict.run(model, cohort.workdir, slide=None, slides=table)
    assert not (cohort.workdir / "predictions").exists()


def test_a_listed_slide_that_is_missing_fails_alone(cohort, model):
    table = cohort.folder / "list.csv"
    table.write_text("slide_id,patient_id,label\nslide_0000,p,0\nslide_9999,p,tumour\n")
    assert predict.run(model, cohort.workdir, slide=None, slides=table) == 1
    found = pd.read_csv(cohort.workdir / "predictions/predictions.csv", index_col="slide_id")
    assert found.status.to_dict() == {"slide_0000": "ok", "slide_9999": "failed"}
    assert "slide_9999" in found.reason["slide_9999"]
    patients = pd.read_csv(cohort.workdir / "predictions/patient_predictions.csv")
    assert patients[["patient_id", "slides", "failed"]].values.tolist() == [["p", 1, 1]]


def test_a_models_weights_are_the_ones_it_was_saved_with(tmp_path, model, cohort):
    changed = tmp_path / "changed"
    shutil.copytree(model, changed)
    part = changed / "fold_1" / "head.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(WeightsError, match="not the file that the model was saved with"):
        predict.run(changed, cohort.workdir, slide=cohort.slide(0), slides=None)


def test_check_tells_mistakes_of_the_csv_and_of_slides_together(cohort, caplog):
    cohort.slide(5).write_bytes(b"")
    cohort.slide(6).unlink()
    cohort.rows.append(dict(cohort.rows[0]))
    assert preflight.run(cohort.config(), cohort.workdir) >= 3
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    for part in ("slide_0000 more than once", "slide_0006", "slide slide_0005: "):
        assert any(part in problem for problem in said), (part, said)


def test_one_slide_whose_hr_cannot_be_decoded_stops_no_other(cohort, weights):
    for index in range(4):
        damage_tile(cohort.slide(2), level=0, index=index, how="zeros")
    damage_tile(cohort.slide(3), level=0, index=0, how="zeros")
    changes = {"encoder__weights": str(weights), "prepare__hr": "skip"}
    assert cohort.go("prepare", **changes) == 0  # LR pixels are whole
    encode_hr.run(cohort.config(**changes), cohort.workdir)
    table = pd.read_csv(cohort.workdir / "slides.csv", index_col="slide_id")
    assert table.status["slide_0002"] == "failed"
    assert "none of its HR patches could be decoded" in table.reason["slide_0002"]
    assert table.status.tolist().count("ok") == 7
    assert table.unreadable["slide_0003"] > 0
    encoded = {path.stem for path in (cohort.workdir / "features/hr").glob("*.array_record")}
    assert encoded == set(table.index) - {"slide_0002"}
