"""Features of other tools through the pipeline, without slides and with them."""

import json
import logging
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from lrmil_jax import checks, pipeline, preflight
from lrmil_jax import config as configuration
from lrmil_jax.data import clam_splits, source
from lrmil_jax.errors import ConfigError, DataError, WorkdirError
from lrmil_jax.interchange import clam_tables
from lrmil_jax.patches import shards as region_shards
from lrmil_jax.slides import synthetic
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.workspace import (
    cohorts,
    feature_sets,
    layout,
    shards,
    stage_files,
    statuses,
    teaching,
)
from tests.integration import runs
from tests.interchange import cohort as simulated
from tests.interchange import tools

pytestmark = pytest.mark.usefixtures("one_device", "figures_not_drawn")


def config_of(folder, method="lrmil", *, levels=("hr", "lr"), **changes):
    """A short training on the simulated cohort in `folder`."""
    config = configuration.default().unlock()
    config.update(method=method, folds=1)
    config.prepare.update(workers=1, seconds_per_slide=0.0)
    config.data.labels = str(folder / "labels.csv")
    keys = {"hr": "features", "lr": "features_lr"}
    for level in levels:
        config.data[keys[level]] = str(folder / level)
    for block in (config.teacher, config.student):
        block.update(epochs=15, bags=4, budget=512, hidden=8, learning_rate=2e-2, eval_every=5)
    config.student.update(topk=3, no_distillation=False)
    config.report.heatmaps = 1
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.lock()


def go(config, workdir, *stages):
    checks.validate(config, stages)
    with layout.locked(workdir):
        return pipeline.run(config, workdir, list(stages))


def copy_of(folder, target):
    """Labels and features of a cohort, to be spoiled."""
    return shutil.copytree(folder, target)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    simulated.make(folder)
    return folder


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """LRMIL's slide level on HR and LR features, by the stages that are asked for."""
    workdir = tmp_path_factory.mktemp("work")
    assert go(config_of(given), workdir, "teacher", "student", "evaluate") == 0
    return workdir


def test_teacher_and_student_learn_from_them(given, trained):
    measured = json.loads((trained / "folds/1/evaluate/metrics.json").read_text())
    assert set(measured) == {"teacher", "lrmil"}
    for model, facts in measured.items():
        assert facts["metrics"]["auc"] > 0.9, model
    assert not (trained / "folds/1/student/model").exists()  # nothing could read a slide
    del given


def test_rows_are_those_of_the_files_in_the_lattice_s_order(given, trained):
    config = config_of(given)
    cohorts.forget()
    high = feature_sets.hr_store(config, trained, ["s01"])
    low = feature_sets.undistilled_store(config, trained, ["s01"])
    rows, lr = high.rows(0), low.rows(0)
    for level, stored in (("hr", rows), ("lr", lr)):
        with h5py.File(given / level / "s01.h5") as file:
            values, xy = file["features"][:], file["coords"][:]
        known = {tuple(place): value for place, value in zip(xy.tolist(), values, strict=True)}
        assert len(known) == len(stored.xy)
        for place, value in zip(stored.xy.tolist(), stored.embedding, strict=True):
            np.testing.assert_array_equal(value.astype(np.float32), known[tuple(place)])
    inside = rows.parent >= 0
    v, u = np.divmod(rows.child[inside], 4)
    side = simulated.SIDE
    corner = lr.xy[rows.parent[inside]] + np.stack([u, v], 1) * side
    np.testing.assert_array_equal(corner, rows.xy[inside])
    # The last row of HR patches hangs below the last LR patches.
    assert (rows.xy[~inside, 1] == 12 * side).all()
    assert (~inside).sum() == 14


def test_the_teacher_s_guide_is_its_attention_within_each_lr_patch(given, trained):
    config = config_of(given)
    cohorts.forget()
    slide = cohorts.prepared(config, trained).slides(1, "train").slide_id[0]
    logits = stage_files.read_teacher(trained, 1, slide)["attention_logits"].astype(np.float64)
    with h5py.File(given / "lr" / f"{slide}.h5") as file:
        lr_xy = file["coords"][:]
    lr_xy = lr_xy[np.lexsort((lr_xy[:, 0], lr_xy[:, 1]))]
    xy = feature_sets.hr_store(config, trained, [slide]).places(0)["xy"]
    weights, expected = np.exp(logits - logits.max()), np.zeros(len(lr_xy))
    for place, weight in zip(xy, weights, strict=True):
        for number, corner in enumerate(lr_xy):
            if (corner <= place).all() and (place < corner + 4 * simulated.SIDE).all():
                expected[number] += weight
    store = feature_sets.student_store(config, trained, 1, [slide])
    said = teaching.outputs(config, trained, 1, store, ("mass",))
    guide = said["per_instance"]["guide"][:, 0]
    np.testing.assert_allclose(guide, expected / expected.sum(), rtol=1e-4, atol=1e-7)


def test_the_same_command_again_changes_nothing(given, trained):
    before = runs.files(trained)
    assert go(config_of(given), trained, "teacher", "student", "evaluate") == 0
    assert runs.changed(before, runs.files(trained)) == set()


def test_a_report_without_slides_and_files_for_another_tool(given, trained, tmp_path):
    config = config_of(given, export__format="atlaspatch", export__features="lr")
    assert go(config, trained, "report", "export") == 0
    assert "LRMIL" in (trained / "report/table.txt").read_text()
    assert not (trained / "model").exists()
    out = trained / "export/atlaspatch_lr"
    mine = config_of(given, "mil_lr", levels=(), data__features=str(out))
    assert go(mine, tmp_path, "prepare", "import_features") == 0
    cohorts.forget()
    theirs = feature_sets.undistilled_store(config, trained, ["s05"]).rows(0)
    read = feature_sets.undistilled_store(mine, tmp_path, ["s05"]).rows(0)
    assert read.embedding.tobytes() == theirs.embedding.tobytes()
    np.testing.assert_array_equal(read.xy, theirs.xy)
    made = runs.files(out)
    (out / "patches" / "s05.h5").unlink()
    assert go(config, trained, "export") == 0
    changed = runs.changed(made, runs.files(out))
    assert changed == {"patches/s05.h5"}


def test_clam_gets_its_splits_and_results_too(given, trained):
    pytest.importorskip("torch")
    config = config_of(given, export__format="clam")
    assert go(config, trained, "export") == 0
    out = trained / "export/clam_hr"
    assert len(list((out / "pt_files").glob("*.pt"))) == 24
    folds = pd.read_csv(trained / "folds.csv").set_index("slide_id").fold_1
    read = clam_splits.read(out / "splits").set_index("slide_id").fold_1
    pd.testing.assert_series_equal(read.sort_index(), folds.sort_index())
    measured = json.loads((trained / "folds/1/evaluate/metrics.json").read_text())
    summary = pd.read_csv(out / "results/lrmil/summary.csv")
    assert summary.test_auc[0] == measured["lrmil"]["metrics"]["auc"]
    theirs = clam_tables.read_results(
        out / "results/lrmil", pd.read_csv(out / "dataset.csv"), ("benign", "tumour")
    )
    figures = predictions.measure(Classification(("benign", "tumour")), theirs)
    assert figures["metrics"]["auc"] == measured["lrmil"]["metrics"]["auc"]


def test_a_file_made_anew_is_taken_over_anew_and_nothing_else(given, tmp_path):
    folder, workdir = copy_of(given, tmp_path / "given"), tmp_path / "work"
    config = config_of(folder, "mil", levels=("hr",))
    go(config, workdir, "import_features")
    before = runs.files(workdir / "features/hr")
    with h5py.File(folder / "hr/s03.h5", "r+") as file:
        file["features"][:] = file["features"][:] + 1
    go(config, workdir, "import_features")
    changed = runs.changed(before, runs.files(workdir / "features/hr"))
    assert {name for name in changed if "tfds" not in name} == {
        "s03.array_record", "s03.index.safetensors"
    }  # fmt: skip


def test_shards_prepare_and_take_over_when_all_is_known(given, tmp_path):
    config, workdir = config_of(given), tmp_path / "work"

    def part(name, stage):
        with shards.joined(name, config, workdir):
            return pipeline.run(config, workdir, [stage])

    with pytest.raises(WorkdirError, match="import_features with --shard needs what prepare finds"):
        part("1/2", "import_features")
    for name in ("1/2", "2/2"):
        assert part(name, "prepare") == 0
    with pytest.raises(WorkdirError, match="once without --shard first"):
        part("1/2", "import_features")
    assert not (workdir / "features").exists()
    assert go(config, workdir, "prepare") == 0
    stored = {path: path.read_bytes() for path in workdir.glob("features/*/*.array_record")}
    for path in stored:
        path.unlink()
    for name in ("1/2", "2/2"):
        assert part(name, "import_features") == 0
    assert stored
    assert {path: path.read_bytes() for path in stored} == stored


def spoil(folder):
    """Every file that one slide may have for itself; the reason that is told of each."""
    high = folder / "hr"
    with h5py.File(high / "s00.h5", "r+") as file:
        file["features"][3, 2] = np.nan
    rng = tools.features_of(5, 7)
    tools.trident(high, "s01", rng, tools.square(5, 1, step=512))
    with h5py.File(high / "s02.h5", "r+") as file:
        del file["coords"]
    content = (high / "s03.h5").read_bytes()
    (high / "s03.h5").write_bytes(content[: len(content) // 2])
    (high / "s04.h5").unlink()
    tools.trident(high, "s05", np.zeros((0, 12), np.float32), np.zeros((0, 2)))
    tools.trident(high, "s06", tools.features_of(9, 12), tools.square(3, 2, step=512))
    return {
        "s00": "s00.h5 has features that are not finite in 1 of its 182 patches",
        "s01": "s01.h5 has features of width 7, those of most slides have 12",
        "s02": "s02.h5 has no dataset coords",
        "s03": "s03.h5 cannot be read, it was cut short",
        "s04": "slide s04 has no feature file in",
        "s05": "s05.h5 holds no patch",
        "s06": "s06.h5 has coordinates of shape (6, 2) for 9 patches",
    }


def test_bad_files_are_told_of_and_the_others_go_on(given, tmp_path, caplog):
    folder, workdir = copy_of(given, tmp_path / "given"), tmp_path / "work"
    # TRIDENT's chunk of one row makes the whole file unreadable only where its end is missing.
    reasons = spoil(folder)
    tools.trident(folder / "hr", "stranger", tools.features_of(6, 12), tools.square(3, 2, step=512))
    config = config_of(folder, "mil", levels=("hr",))
    with caplog.at_level(logging.INFO):
        assert go(config, workdir, "import_features") == len(reasons)
    for slide_id, reason in reasons.items():
        status = statuses.read(workdir, slide_id)
        assert status["status"] == "failed"
        assert reason in status["reason"], status["reason"]
        assert reason in caplog.text
    assert "1 feature files" in caplog.text
    assert "stranger.h5" in caplog.text
    table = pd.read_csv(workdir / "slides.csv")
    assert (table.status == "ok").sum() == 24 - len(reasons)
    there = {path.name for path in (workdir / "features/hr").glob("*.array_record")}
    assert there == {f"{name}.array_record" for name in table.slide_id[table.status == "ok"]}


def test_features_without_exact_parents_serve_mil_and_are_refused_by_lrmil(tmp_path, caplog):
    rows = []
    for number in range(20):
        name = f"s{number}"
        low, high = tools.square(2, 2, step=2048), tools.square(8, 8, step=512)
        high[32:] += 100  # another contour
        tools.clam(tmp_path / "hr", name, tools.features_of(64, 6, number), high)
        tools.clam(tmp_path / "lr", name, tools.features_of(4, 6, number), low)
        rows.append({"slide_id": name, "case_id": name, "label": "ab"[number % 2]})
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    with caplog.at_level(logging.ERROR), pytest.raises(DataError, match="none of the 20 slides"):
        go(config_of(tmp_path), tmp_path / "lrmil", "prepare")
    assert (
        "exact LR parents of its patches do not exist: its patches lie on 2 lattices of 512 "
        in (caplog.text)
    )
    assert "CLAM's grid begins anew at each contour" in caplog.text
    mil = config_of(tmp_path, "mil", levels=("hr",), data__splits=None)
    assert go(mil, tmp_path / "mil", "import_features") == 0
    assert feature_sets.hr_store(mil, tmp_path / "mil", ["s3"]).sizes.tolist() == [64]


@pytest.mark.parametrize(
    ("method", "levels", "changes", "sentence"),
    [
        ("lrmil", ("hr",), {}, "nothing at LR"),
        ("lrmil", ("lr",), {}, "give data.features beside data.features_lr"),
        ("lrmil", ("hr",), {"data__slides": "somewhere"}, "encoder.weights of the encoder that"),
        ("lrmil", ("hr",), {"data__slides": "here", "encoder__weights": "w"},
         "set distill.lambda_layer=0"),
        ("wise_fuse", ("hr",), {}, "cannot work on the features of another tool"),
        ("zero_shot", ("hr",), {}, "cannot work on the features of another tool"),
        ("mil", ("lr",), {}, "mil reads HR features alone"),
        ("mil", ("hr", "lr"), {}, "mil reads HR features alone"),
        ("mil_lr", ("hr", "lr"), {}, "mil_lr reads LR features alone"),
        ("mil", ("hr",), {"data__labels": None}, "needs labels"),
        ("mil", ("hr",), {"data__features_format": "clamm"}, "did you mean clam"),
        ("mil", ("hr",), {"export__format": "zarr"}, "no layout of features is called 'zarr'"),
        ("mil", ("hr",), {"data__masks": "masks"}, "data.masks is of slides"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_at_once(tmp_path, method, levels, changes, sentence):
    config = config_of(tmp_path, method, levels=levels, **changes)
    with pytest.raises(ConfigError, match=sentence):
        checks.validate(config)


def test_other_names_in_the_csv(given, tmp_path):
    folder = copy_of(given, tmp_path / "given")
    table = pd.read_csv(folder / "labels.csv")
    table.assign(slide_id="x" + table.slide_id).to_csv(folder / "labels.csv", index=False)
    with pytest.raises(DataError, match=r"CSV has 'xs00', the folder has 's00'"):
        go(config_of(folder, "mil", levels=("hr",)), tmp_path / "work", "prepare")
    table.assign(slide_id=table.slide_id + ".svs").to_csv(folder / "labels.csv", index=False)
    assert go(config_of(folder, "mil", levels=("hr",)), tmp_path / "work", "prepare") == 0


def test_check_tells_every_problem_and_writes_nothing(given, tmp_path, caplog):
    folder, workdir = copy_of(given, tmp_path / "given"), tmp_path / "work"
    (folder / "lr/s04.h5").unlink()
    config = config_of(folder)
    with caplog.at_level(logging.INFO), layout.locked(workdir):
        assert preflight.run(config, workdir) == 1
    assert "slide s04 has no feature file" in caplog.text
    assert " slides: um/px unknown, 12 to 12 LR patches (median 12)" in caplog.text
    assert not (workdir / "regions").exists()


# Slides of 512 px: 8 x 8 HR patches of 64 px, 2 x 2 LR patches.
def with_slides(folder, *, slides=8):
    labels = synthetic.write_cohort(folder, seed=0, slides=slides, size_px=512)
    table = pd.read_csv(labels)
    splits = ("test", "test", "val", "val", *["train"] * (slides - 4))
    table.assign(fold_1=splits).to_csv(labels, index=False)
    return labels


def slides_config(folder, **changes):
    config = configuration.tiny(configuration.default()).unlock()
    config.data.labels, config.data.slides = str(folder / "labels.csv"), str(folder / "slides")
    config.update_from_flattened_dict(
        {"encoder.name": "vit-tiny", "encoder.weights": "shipped:procedural",
         "prepare.workers": 1, "prepare.seconds_per_slide": 0.0,
         "distill.lambda_layer": 0.0, "student.no_distillation": False}
    )  # fmt: skip
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.lock()


def test_lr_tiles_are_cut_where_the_features_lie(tmp_path):
    labels = with_slides(tmp_path)
    for number, name in enumerate(pd.read_csv(labels).slide_id):
        xy = tools.square(8, 8, step=64)[number:]  # the first children are not there
        tools.trident(
            tmp_path / "hr", name, tools.features_of(len(xy), 64), xy, px=64, source=20,
            size=(512, 512 if number else 400),
        )  # fmt: skip
    config = slides_config(tmp_path, data__features=str(tmp_path / "hr"))
    workdir = tmp_path / "work"
    assert go(config, workdir, "prepare", "import_features") == 1
    reason = statuses.read(workdir, "slide_0000")["reason"]
    assert "features of a slide of 512 x 400 px" in reason
    assert "512 x 512: they are of different slides" in reason
    pairs = feature_sets.pairs(
        config, workdir, ["slide_0003"], stage_files.targets_folder(workdir, ())
    )
    assert len(pairs) == 4
    missing = ~pairs[0]["child_mask"]
    assert np.argwhere(missing).tolist() == [[0, 0], [0, 1], [0, 2]]
    with h5py.File(tmp_path / "hr/slide_0003.h5") as file:
        stored = file["features"][0]
    np.testing.assert_array_equal(pairs[0]["child_embedding"][3].astype(np.float32), stored)
    plain = slides_config(tmp_path)
    assert go(plain, tmp_path / "plain", "prepare") == 0
    geometry = cohorts.geometry(config)
    shards = [layout.shard(layout.regions_folder(one), "slide_0003")
              for one in (workdir, tmp_path / "plain")]  # fmt: skip
    places = [region_shards.stored_places(path, geometry).xy.tolist() for path in shards]
    assert places[0] == places[1] == [[0, 0], [256, 0], [0, 256], [256, 256]]
    read = [source.RecordSource([path], region_shards.tile_parser(geometry)) for path in shards]
    for place in range(4):
        np.testing.assert_array_equal(*(source.decode_lr(one[place]) for one in read))


@pytest.mark.slow
def test_stage_1_on_features_that_came_back_learns_the_same(tmp_path):
    """Exported as another tool's and given beside the slides, HR features give the same encoder."""
    with_slides(tmp_path, slides=12)
    plain = slides_config(tmp_path)
    made = ("pretrain", "prepare", "encode_hr", "teacher", "distill")
    assert go(plain, tmp_path / "plain", *made) == 0
    assert go(plain, tmp_path / "plain", "export") == 0
    folder = tmp_path / "plain/export/trident_hr"
    config = slides_config(tmp_path, data__features=str(folder))
    stages = ("prepare", "import_features", "teacher", "distill")
    assert go(config, tmp_path / "back", *stages) == 0
    for name in ("teacher/model.safetensors", "distill/encoder.safetensors"):
        read = [(tmp_path / run / "folds/1" / name).read_bytes() for run in ("plain", "back")]
        assert read[0] == read[1], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages", "flags", "models"),
    [
        ("mil", "teacher,evaluate", ("features=hr",), {"teacher"}),
        ("mil_lr", "baseline,evaluate", ("features_lr=lr",), {"no_distillation"}),
        ("mil_lr", "", ("features=lr",), {"no_distillation"}),
        ("lrmil", "teacher,student,evaluate", ("features=hr", "features_lr=lr"),
         {"teacher", "no_distillation", "lrmil"}),
    ],
)  # fmt: skip
def test_the_command_line_without_slides(given, cache, tmp_path, method, stages, flags, models):
    folders = (flag.split("=") for flag in flags)
    run = runs.Run(
        cache, "--config", runs.TINY, "--workdir", tmp_path / "work",
        f"--config.method={method}", f"--config.data.labels={given / 'labels.csv'}",
        "--config.data.classes=()", "--config.teacher.epochs=20", "--config.student.epochs=20",
        "--config.teacher.learning_rate=0.02", "--config.student.learning_rate=0.02",
        *(f"--config.data.{key}={given / folder}" for key, folder in folders),
        *(("--stages", stages) if stages else ()),
    )  # fmt: skip
    assert run.wait() == 0, run.log
    measured = json.loads((tmp_path / "work/folds/1/evaluate/metrics.json").read_text())
    assert {
        model: facts["metrics"]["auc"] > 0.9 for model, facts in measured.items()
    } == dict.fromkeys(models, True)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_taking_over_loses_nothing(given, cache, tmp_path):
    flags = (
        "--config", runs.TINY, "--config.method=mil", "--config.data.classes=()",
        f"--config.data.labels={given / 'labels.csv'}", f"--config.data.features={given / 'hr'}",
        "--config.prepare.workers=1", "--stages", "import_features",
    )  # fmt: skip
    workdir = tmp_path / "work"
    run = runs.Run(cache, *flags, "--workdir", workdir)
    while run.running and len(list(workdir.glob("features/hr/*.array_record"))) < 3:
        pass
    run.kill()
    there = runs.files(workdir / "features/hr")
    again = runs.Run(cache, *flags, "--workdir", workdir)
    assert again.wait() == 0, again.log
    now = runs.files(workdir / "features/hr")
    whole = {name for name in there if name.endswith(".array_record") and not name.startswith(".")}
    assert not whole & runs.changed(there, now)
    assert sum(name.endswith(".array_record") and "/" not in name for name in now) == 24
    assert runs.leftovers(workdir) == []
