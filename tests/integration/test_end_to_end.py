"""The promises of a whole run: what it writes, skips, redoes and refuses; what predict gives."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from lrmil_jax import load_model, pipeline
from lrmil_jax.errors import DataError, WorkdirError
from lrmil_jax.models import model_folder
from lrmil_jax.slides import libraries, tiff
from lrmil_jax.stages import external, predict
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import feature_sets, layout, statuses
from tests.integration import runs
from tests.report.test_html import Strict

pytestmark = pytest.mark.usefixtures("one_device", "figures_not_drawn")
SLIDES = 20
CALL = ("config.json", "slides.csv")  # say what was asked for last, and where the slides lie


def tiny(**changes):
    """The tiny configuration with some keys changed; '__' stands for the dot."""
    file = runs.ROOT / runs.TINY.partition(":")[0]
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(
        {"prepare.workers": 1, "prepare.seconds_per_slide": 0.0, **changes}  # in this process
    )
    return config


def go(config, workdir, *stages):
    """Runs stages in this process."""
    with layout.locked(workdir):
        return pipeline.run(config, workdir, list(stages))


def evaluated(workdir):
    """predictions.csv of the only fold."""
    return pd.read_csv(workdir / "folds/1/evaluate/predictions.csv")


def test_files(finished):
    root, fold = finished.workdir, finished.workdir / "folds/1"
    ids = [f"slide_{number:04d}" for number in range(SLIDES)]
    for slide_id in ids:
        assert statuses.read(root, slide_id)["status"] == "ok"
        for picture in ("mask", "overlay"):
            assert (root / f"regions/tissue/{slide_id}-{picture}.png").is_file()
        for folder in ("regions", "features/hr", "features/hr_targets_0_1",
                       "features/lr_undistilled", "folds/1/encode_lr/features"):  # fmt: skip
            assert (root / folder / f"{slide_id}.array_record").is_file()
    for stage in ("teacher", "distill", "encode_lr", "student", "evaluate"):
        assert json.loads((fold / stage / "stage.json").read_text())["complete"]
    names = ("report/index.html", "report/table.csv", "report/table.md", "report/training.png",
             "pretrain/encoder.safetensors", "model/model.json", "model/fold_1/head.safetensors",
             "model/fold_1/encoder.safetensors", "report/timing.json")  # fmt: skip
    assert [name for name in names if not (root / name).is_file()] == []
    assert len(list((root / "report/heatmaps").glob("*.png"))) == 1
    assert runs.leftovers(root) == []


def test_records_say_who_made_them(finished):
    cohort = json.loads((finished.workdir / "cohort.json").read_text())
    assert cohort["schema"] == 2
    assert cohort["regions"]["geometry"] == {"hr_mpp": 0.5, "lr_mpp": 2.0, "patch_px": 64}
    assert cohort["encoder"]["name"] == "vit-tiny"
    assert len(cohort["encoder"]["weights"]) == 64
    assert {"transform", "dtype"} <= cohort["encoder"].keys()
    assert {"jax", "lrmil_jax"} <= cohort["software"].keys()
    slides = pd.read_csv(finished.workdir / "slides.csv")
    assert len(slides) == SLIDES
    assert set(slides.status) == {"ok"}
    assert slides.mpp.to_numpy() == pytest.approx(0.5, rel=1e-3)
    assert (slides.lr_patches > 0).all()


def test_teacher_says_nothing_of_test_slides(finished):
    folds = pd.read_csv(finished.workdir / "folds.csv")
    told = {path.stem for path in (finished.workdir / "folds/1/teacher/outputs").iterdir()}
    assert told == set(folds.slide_id[folds.fold_1 != "test"])
    assert set(evaluated(finished.workdir).slide_id) == set(folds.slide_id[folds.fold_1 == "test"])


def test_table_and_predictions(finished):
    lines = (finished.workdir / "report/table.txt").read_text().splitlines()
    for name in ("HR teacher ", "LR without distillation ", "LRMIL "):
        assert sum(line.startswith(name) for line in lines) == 1
    frame = evaluated(finished.workdir)
    assert set(frame.model) == {"teacher", "no_distillation", "lrmil"}
    assert (frame.prob_benign + frame.prob_tumour).to_numpy() == pytest.approx(1, abs=1e-5)
    measured = json.loads((finished.workdir / "folds/1/evaluate/metrics.json").read_text())
    assert measured.keys() == {"teacher", "no_distillation", "lrmil"}


def test_everything_opens_as_tfds(finished):
    slides = pd.read_csv(finished.workdir / "slides.csv")
    view = finished.workdir / "regions/tfds"
    regions = tfds.builder_from_directory(view).as_data_source("slides")
    assert len(regions) == slides.lr_patches.sum()
    assert regions[0]["lr"].shape == (64, 64, 3)
    view = finished.workdir / "regions/hr/tfds"
    mosaics = tfds.builder_from_directory(view).as_data_source("slides")
    assert len(mosaics) == len(regions)
    assert mosaics[0]["hr"].shape == (256, 256, 3)
    view = finished.workdir / "features/hr/tfds"
    blocks = tfds.builder_from_directory(view).as_data_source("slides")
    assert sum(len(block["parent"]) for block in blocks) == slides.hr_patches.sum()


def test_same_command_again_does_nothing(finished, tmp_path):
    """Not even a file is written anew; what a killed run left is taken away."""
    workdir = finished.copy(tmp_path / "run")  # others compare theirs with the finished one
    moved = runs.train(finished.cache, workdir)  # says in slides.csv where the slides lie now
    assert moved.wait() == 0, moved.log
    before = runs.files(workdir)
    (workdir / "folds/1/student/model/fold_1/.head.safetensors.1a2b3c4d.tmp").touch()
    (workdir / "features/hr/.tfds.tmp").mkdir()
    run = runs.train(finished.cache, workdir)
    assert run.wait() == 0, run.log
    assert run.log.count("already done") == len(runs.STAGES) - 2  # two keep their own account
    assert runs.changed(before, runs.files(workdir)) == set()
    assert runs.leftovers(workdir) == []


def test_a_run_is_told_of_after_each_stage(finished, tmp_path, monkeypatch):
    workdir, events = finished.copy(tmp_path / "run"), []
    monkeypatch.setattr(pipeline, "_run_stage", lambda *given: events.append(given[2].name))
    with layout.locked(workdir):
        pipeline.run(tiny(), workdir, [], after_stage=lambda: events.append("saved"))
    assert events == [event for stage in runs.STAGES for event in (stage, "saved")]


def test_a_stage_2_weight_redoes_only_the_student(finished, tmp_path):
    workdir = finished.copy(tmp_path / "run")
    before, predictions = runs.files(workdir), evaluated(workdir)
    run = runs.train(finished.cache, workdir, "--config.student.lambda_bag=0.3")
    assert run.wait() == 0, run.log
    parts = ("folds/1/student/", "folds/1/evaluate/", "report/", "model/", *CALL)
    changed = runs.changed(before, runs.files(workdir))
    assert [name for name in changed if not name.startswith(parts)] == []
    assert {"folds/1/student/model.safetensors", "folds/1/evaluate/metrics.json"} <= changed
    again = evaluated(workdir)
    same = (again.prob_tumour == predictions.prob_tumour).groupby(again.model).all()
    assert same.to_dict() == {"teacher": True, "no_distillation": True, "lrmil": False}


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({"distill__student": "vit:patch=16,width=32,depth=2,heads=2"}, 32),
        pytest.param({"distill__rank": 2}, 64, marks=pytest.mark.slow),
    ],
)
def test_a_smaller_student_and_adapters(finished, tmp_path, keys, width):
    """Stage 1 with an encoder of another width, depth and patch, and with adapters of its own: what
    is delivered predicts what was evaluated."""
    workdir = finished.copy(tmp_path / "run")
    assert go(tiny(evaluate__timed_slides=0, report__slides=0, **keys), workdir) == 0
    row = evaluated(workdir).query("model == 'lrmil'").iloc[0]
    model = load_model(workdir)
    assert model.members[0][1].mean.size == width
    result = model.predict(workdir / f"synthetic/slides/{row.slide_id}.tif")
    assert result.probabilities["tumour"] == pytest.approx(row.prob_tumour, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "stages", "sentence"),
    [
        ({"geometry__patch_px": 128}, (), "geometry.patch_px=64, this run has 128"),
        ({"prepare__min_tissue": 0.5}, (), "min_tissue=0.25, this run has 0.5"),
        ({"seed": 3}, (), "seed was 0, now it is 3"),
        ({"pretrain__steps": 9}, (), "pretrain.steps was 6, now it is 9"),
        ({"encoder__dtype": "bfloat16"}, ("encode_hr",), "compute_dtype='float32'"),
        ({"student__lambda_bag": 0.3}, ("evaluate",), "evaluate needs student of fold 1"),
        ({"teacher__hidden": 8}, ("distill",), "distill needs teacher of fold 1"),
    ],
)
def test_another_config_is_refused_before_anything_is_touched(finished, changes, stages, sentence):
    before = runs.files(finished.workdir)
    with pytest.raises(WorkdirError, match=sentence):
        go(tiny(**changes), finished.workdir, *stages)
    touched = runs.changed(before, runs.files(finished.workdir))
    assert touched <= set(CALL)


def test_two_runs_at_once_are_refused(finished):
    with layout.locked(finished.workdir):
        run = runs.train(finished.cache, finished.workdir)
        assert run.wait() == 1
    assert "another run is at work" in run.log
    assert "Traceback" not in run.log


@pytest.mark.slow
def test_plain_mil_and_back(finished, tmp_path):
    """The two methods share the teacher, and neither takes the other's evaluation for its own."""
    workdir = finished.copy(tmp_path / "run")
    before = runs.files(workdir)
    assert go(tiny(method="mil", evaluate__timed_slides=0), workdir) == 0
    assert set(evaluated(workdir).model) == {"teacher"}
    changed = runs.changed(before, runs.files(workdir))
    parts = ("folds/1/evaluate/", "folds/1/teacher/model/", "model/", "report/", *CALL)
    assert [name for name in changed if not name.startswith(parts)] == []
    row = evaluated(workdir).iloc[0]
    result = load_model(workdir).predict(workdir / f"synthetic/slides/{row.slide_id}.tif")
    assert result.encoded == statuses.read(workdir, row.slide_id)["hr_patches"]
    # Training read the HR patches from JPEG.
    assert result.probabilities["tumour"] == pytest.approx(row.prob_tumour, abs=0.01)
    assert go(tiny(evaluate__timed_slides=0), workdir) == 0
    assert set(evaluated(workdir).model) == {"teacher", "no_distillation", "lrmil"}


@pytest.mark.slow
def test_baseline_asked_for_later(finished, tmp_path):
    """What a stage left out by config is not taken for done when it is wanted after all."""
    workdir = finished.copy(tmp_path / "run")
    shutil.rmtree(workdir / "features/lr_undistilled")
    without = {"student__no_distillation": False, "evaluate__timed_slides": 0}
    assert go(tiny(**without), workdir) == 0
    assert set(evaluated(workdir).model) == {"teacher", "lrmil"}
    assert go(tiny(evaluate__timed_slides=0), workdir) == 0
    assert set(evaluated(workdir).model) == {"teacher", "no_distillation", "lrmil"}


def encoder_and_slides(finished, folder):
    """A working directory that has synthetic slides and their encoder only."""
    for name in ("synthetic", "pretrain"):
        shutil.copytree(finished.workdir / name, folder / name)
    return folder


def test_hr_read_from_the_slides(finished, tmp_path):
    """Without stored mosaics the features are those of the same patches, unharmed by JPEG."""
    workdir = encoder_and_slides(finished, tmp_path / "run")
    config = tiny(prepare__hr="skip")
    assert go(config, workdir, "pretrain", "prepare", "encode_hr") == 0
    ids = [f"slide_{number:04d}" for number in range(0, SLIDES, 5)]
    stored, read = (
        feature_sets.hr_store(config, root, ids) for root in (finished.workdir, workdir)
    )
    assert (stored.sizes == read.sizes).all()
    for slide in range(len(ids)):
        for name, places in stored.places(slide).items():
            assert (read.places(slide)[name] == places).all()
        pair = [store.embedding(slide).astype(np.float32) for store in (stored, read)]
        spread = np.abs(pair[0] - pair[0].mean(0)).mean()
        assert np.abs(pair[0] - pair[1]).mean() < 0.2 * spread
    assert [(root / "regions/hr").is_dir() for root in (finished.workdir, workdir)] == [True, False]


@pytest.mark.slow
def test_mosaics_dropped_once_encoded(finished, tmp_path):
    workdir = finished.copy(tmp_path / "run")
    config, shard = tiny(prepare__keep_hr=False), workdir / "regions/hr/slide_0003.array_record"
    before = runs.files(workdir)
    assert shard.is_file()
    assert go(config, workdir) == 0
    assert not list(shard.parent.iterdir())
    dropped = runs.files(workdir)
    parts = ("regions/", *CALL)
    assert [n for n in runs.changed(before, dropped) if not n.startswith(parts)] == []
    tiles = tfds.builder_from_directory(workdir / "regions/tfds").as_data_source("slides")
    assert tiles[0]["lr"].shape == (64, 64, 3)
    assert go(config, workdir) == 0
    assert runs.changed(dropped, runs.files(workdir)) == set()
    # As if killed between the note and the file:
    shard.write_bytes(b"left over")
    assert go(config, workdir, "encode_hr") == 0
    assert not shard.exists()
    assert statuses.read(workdir, "slide_0003")["hr"] is False
    # Other blocks come from the slides then, and the teacher's features stay what they were.
    assert go(tiny(prepare__keep_hr=False, distill__layers=(0, 2)), workdir, "encode_hr") == 0
    assert (workdir / "features/hr_targets_0_2/slide_0003.array_record").is_file()
    kept = {name: mark for name, mark in dropped.items() if name.startswith("features/")}
    now = runs.files(workdir)
    assert {name: now[name] for name in kept} == kept


@pytest.fixture(scope="module")
def model(finished, tmp_path_factory):
    """The model folder and the slides, copied to where no working directory is."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(finished.workdir / "model", folder / "model")
    shutil.copytree(finished.workdir / "synthetic/slides", folder / "slides")
    return folder / "model"


def test_predict_agrees_with_evaluate(finished, model, tmp_path):
    """From the slide file and a copied model alone, at 5x alone, the same probability."""
    expected = evaluated(finished.workdir).query("model == 'lrmil'").iloc[0]
    slide = model.parent / f"slides/{expected.slide_id}.tif"
    # Other tests need the work directory now, so it stays; but nothing names it.
    for path in model.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or bytes(finished.workdir) not in path.read_bytes()
    run = runs.Run(
        finished.cache, "--stages", "predict", "--model", model, "--slide", slide,
        "--workdir", tmp_path,
    )  # fmt: skip
    assert run.wait() == 0, run.log
    folder = tmp_path / "predictions" / expected.slide_id
    record = json.loads((folder / "prediction.json").read_text())
    assert record["probabilities"]["tumour"] == pytest.approx(expected.prob_tumour, abs=1e-5)
    assert record["finest_level_allowed"] == 1
    assert set(record["levels_read"]) == {"1"}
    attention = pd.read_csv(folder / "attention.csv")
    assert attention.attention.sum() == pytest.approx(1, abs=1e-4)
    shapes = json.loads((folder / "attention.geojson").read_text())
    assert len(shapes["features"]) == len(attention) == record["lr_patches"]
    assert (folder / "heatmap.png").stat().st_size > 1000


def log_levels(monkeypatch):
    """Gathers the pyramid level of every read, below all that keeps account of it."""
    levels = []
    for reader in (tiff.TiffReader, libraries.OpenSlideReader):

        def logged(self, level, *arguments, read=reader.read_region):
            levels.append(level)
            return read(self, level, *arguments)

        monkeypatch.setattr(reader, "read_region", logged)
    return levels


def test_cohort_prediction_resumes_and_measures(finished, model, tmp_path, monkeypatch):
    levels = log_levels(monkeypatch)
    table = evaluated(finished.workdir).query("model == 'lrmil'")
    rows = table[["slide_id", "patient_id", "label"]]
    rows = rows.assign(path=[f"{name}.tif" for name in rows.slide_id])
    rows.to_csv(model.parent / "slides/list.csv", index=False)
    arguments = {"slide": None, "slides": model.parent / "slides/list.csv"}
    assert predict.run(model, tmp_path, **arguments) == 0
    assert set(levels) == {1}  # whatever the read log says
    measured = json.loads((tmp_path / "predictions/metrics.json").read_text())
    evaluation = json.loads((finished.workdir / "folds/1/evaluate/metrics.json").read_text())
    assert measured["metrics"]["auc"] == evaluation["lrmil"]["metrics"]["auc"]
    first, *others = rows.slide_id
    (tmp_path / "predictions" / first / "prediction.json").unlink()
    before = runs.files(tmp_path)
    assert predict.run(model, tmp_path, **arguments) == 0
    after = runs.files(tmp_path)
    assert all(before[n] == after[n] for n in before if n.split("/")[1] in others)
    assert f"predictions/{first}/prediction.json" in after


def test_slides_that_trained_the_delivered_model_are_no_external_cohort(finished, tmp_path):
    made = finished.workdir / "synthetic"
    config = tiny(data__slides=str(made / "slides"))
    with pytest.raises(DataError, match=r"is a file that the model was trained on .and 15 more"):
        external.run(finished.workdir / "model", tmp_path / "out", made / "labels.csv", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not os.environ.get("LRMIL_TEST_SLIDES"), reason="LRMIL_TEST_SLIDES names no folder of slides"
)
def test_predict_a_real_slide(cache, model, tmp_path):
    del cache
    slide = Path(os.environ["LRMIL_TEST_SLIDES"]) / "CMU-1-Small-Region.svs"
    assert predict.run(model, tmp_path, slide=slide, slides=None) == 0
    folder = tmp_path / "predictions" / slide.stem
    record = json.loads((folder / "prediction.json").read_text())
    assert record["mpp"] == pytest.approx(0.499)
    assert record["lr_patches"] > 50
    assert record["unreadable"] == []
    assert (folder / "heatmap.png").is_file()


def measured(workdir):
    """metrics.json of the only fold."""
    return json.loads((workdir / "folds/1/evaluate/metrics.json").read_text())


def localised(workdir):
    """localisation.csv of the only fold."""
    return pd.read_csv(workdir / "folds/1/evaluate/localisation.csv")


def counted_shares(workdir, slide_id):
    """Lesion share of each LR patch of 256 level-0 px, counted in the synthetic slide's mask."""
    with Image.open(workdir / f"synthetic/masks/{slide_id}.png") as picture:
        mask = np.asarray(picture) > 0
    slides = pd.read_csv(workdir / "slides.csv").set_index("slide_id")
    assert slides.lr_patches[slide_id] == 4  # the whole slide is tissue
    return mask.reshape(2, 256, 2, 256).mean((1, 3)).reshape(-1)


def test_attention_against_the_lesions_of_test_slides(finished):
    root = finished.workdir
    rows = localised(root)
    folds = pd.read_csv(root / "folds.csv").set_index("slide_id")
    positive = folds.index[(folds.fold_1 == "test") & (folds.label == 1)]
    assert set(rows.slide_id) == set(positive)
    assert set(rows.model) == {"teacher", "no_distillation", "lrmil"}
    low = BagModel.load(root / "folds/1/student/model.safetensors")
    high = BagModel.load(root / "folds/1/teacher/model.safetensors")
    for slide_id in positive:
        share, mine = counted_shares(root, slide_id), rows[rows.slide_id == slide_id]
        kept = (share == 0) | (share >= 0.1)
        folder = root / "folds/1/encode_lr/features"
        stores = (
            feature_sets.open_store(tiny(), root, folder, [slide_id]),
            feature_sets.hr_store(tiny(), root, [slide_id]),
        )
        for model, head, store in (("lrmil", low, stores[0]), ("teacher", high, stores[1])):
            weight = softmax(head.predict(store.embedding(0))[1].astype(float))
            attention = np.zeros(4)
            np.add.at(attention, store.places(0)["parent"], weight)
            row = mine[mine.model == model].iloc[0]
            assert row.lesion_patches == (share >= 0.1).sum()
            if len(set(share[kept] > 0)) == 2:
                assert row.auc == pytest.approx(roc_auc_score(share[kept] > 0, attention[kept]))
            else:
                assert np.isnan(row.auc)
            threshold = measured(root)[model]["localisation"]["threshold"]
            chosen = 4 * attention >= threshold * (1 - 1e-6)
            dice = 2 * share[chosen].sum() / (chosen.sum() + share.sum())
            assert row.dice == pytest.approx(dice, abs=1e-5)


def test_attention_is_reported(finished):
    root = finished.workdir
    table = pd.read_csv(root / "report/attention.csv").set_index("model")
    whole = pd.read_csv(root / "report/table.csv").set_index("model")
    for model, rows in localised(root).groupby("model"):
        told = measured(root)[model]["localisation"]
        assert told["slides"] == table.lesion_slides[model] == len(rows)
        assert table.attention_dice[model] == pytest.approx(rows.dice.mean())
        assert told["dice"] == pytest.approx(whole.attention_dice[model])
        assert told["dice"] == pytest.approx(rows.dice.mean())
        assert told["dice_interval"][0] <= told["dice"] <= told["dice_interval"][1]
    page = (root / "report/index.html").read_text()
    assert 'href="attention.png"' in page
    assert "attention AUC" in page
    with Image.open(root / "report/attention.png") as picture:
        assert picture.width == 1000
    assert (root / "report/attention.md").is_file()
    assert (root / "report/attention.txt").is_file()


def test_validation_patients_are_measured_beside_the_test(finished):
    folds = pd.read_csv(finished.workdir / "folds.csv")
    for values in measured(finished.workdir).values():
        own = values["validation"]
        assert own["patients"] == (folds.fold_1 == "val").sum()
        assert values["patients"] == (folds.fold_1 == "test").sum()
        assert own["metrics"].keys() == values["metrics"].keys()
        assert own["metrics"] != values["metrics"]
        assert own["localisation"]["threshold"] == values["localisation"]["threshold"]


def test_colour_and_the_teacher_alone(finished, tmp_path):
    """Without LR features the regions say where patches lie; colour needs no encoder at all."""
    workdir = finished.copy(tmp_path / "run")
    config = tiny(method="mil", evaluate__timed_slides=0, evaluate__colour_baseline=True)
    assert go(config, workdir) == 0
    assert set(evaluated(workdir).model) == {"teacher", "colour"}
    before, after = (
        rows[rows.model == "teacher"].reset_index(drop=True)
        for rows in (localised(finished.workdir), localised(workdir))
    )
    pd.testing.assert_frame_equal(before, after)
    assert set(localised(workdir).model) == {"teacher"}  # colour has no attention
    assert measured(workdir)["colour"]["patches"] == 4.0
    assert len(list((workdir / "regions/colour").iterdir())) == SLIDES
    lines = (workdir / "report/table.txt").read_text().splitlines()
    (text,) = [line for line in lines if line.startswith("colour only ")]
    assert text.split()[-5:] == ["-"] * 5
    with Image.open(workdir / "report/attention.png") as picture:
        assert picture.width == 500


@pytest.mark.slow
def test_masks_are_named_or_not_there(finished, tmp_path):
    """A cohort with labels has masks only where the config says so, and all positive slides do."""
    workdir = finished.copy(tmp_path / "run")
    keys = {"data__labels": str(workdir / "synthetic/labels.csv"), "evaluate__timed_slides": 0,
            "data__slides": str(workdir / "synthetic/slides")}  # fmt: skip
    assert go(tiny(**keys), workdir) == 0
    assert not (workdir / "folds/1/evaluate/localisation.csv").exists()
    assert "localisation" not in measured(workdir)["lrmil"]
    assert not (workdir / "report/attention.png").exists()
    masks = Path(shutil.copytree(workdir / "synthetic/masks", tmp_path / "masks"))
    keys["data__masks"] = str(masks)
    assert go(tiny(**keys), workdir) == 0
    pd.testing.assert_frame_equal(localised(workdir), localised(finished.workdir))
    missing = localised(workdir).slide_id[0]
    (masks / f"{missing}.png").unlink()
    with pytest.raises(DataError, match=f"slide {missing} is of class tumour, but has no lesion"):
        go(tiny(**keys, evaluate__lesion_share=0.2), workdir)


def test_the_documented_way_to_figures_from_predictions_alone(finished, capsys):
    """The example of docs/tasks.md, on a run that is there."""
    text = (runs.ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert "runs/nsclc" in code
    exec(code.replace("runs/nsclc", str(finished.workdir)), {})
    measured = json.loads((finished.workdir / "folds/1/evaluate/metrics.json").read_text())
    assert str(measured["lrmil"]["metrics"]["auc"]) in capsys.readouterr().out


def test_the_report_needs_no_other_file(finished):
    """The example of docs/report.md, on a run that is there."""
    text = (runs.ROOT / "docs/report.md").read_text(encoding="utf-8")
    assert f"--config {runs.TINY} " in text
    folder = finished.workdir / "report"
    index = (folder / "index.html").read_text(encoding="utf-8")
    for page in (folder / "index.html", *folder.glob("slides/*.html")):
        whole = Strict(page.read_text(encoding="utf-8"))
        assert "://" not in page.read_text(encoding="utf-8")
        assert all(image.startswith("data:") for image in whole.images)
    # Where the lesions of procedural slides are is known: those that have one show its outline.
    for page in folder.glob("slides/*.html"):
        with Image.open(finished.workdir / "synthetic/masks" / f"{page.stem}.png") as mask:
            has_lesion = np.asarray(mask).any()
        assert ('id="lesions"' in page.read_text(encoding="utf-8")) == has_lesion
    first, second = re.findall(r'class="card" href="slides/([^"]+)"', index)
    for here, other, word in ((first, second, "Next"), (second, first, "Previous")):
        text = (folder / "slides" / here).read_text(encoding="utf-8")
        assert f'<a href="{other}">{word}: {other.removesuffix(".html")}</a></nav>' in text
    assert "Only 2 test patients of class" in index
    assert "No slides of the cohort." in index
    assert index.count('class="card"') == len(list(folder.glob("slides/*.html"))) == 2
    card = (finished.workdir / "model/README.md").read_text(encoding="utf-8")
    assert model_folder.identity(finished.workdir / "model") in card
    assert str(finished.workdir) not in card
