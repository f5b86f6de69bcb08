"""pretrain on tiles of one's own: alone, before there is a cohort, and beside one."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax import config as configuration
from lrmil_jax import pipeline, preflight
from lrmil_jax.errors import DataError
from lrmil_jax.stages import pretrain
from lrmil_jax.workspace import layout
from tests.integration import runs

# What a config file of slides needs to be quick; the tiles are of 64 px.
SMALL = {"encoder.name": "vit-tiny", "geometry.patch_px": 64, "pretrain.steps": 2,
         "pretrain.batch": 8, "pretrain.eval_every": 2, "seed": 3}  # fmt: skip


@pytest.fixture
def tiles(tmp_path):
    """Two classes of three patients, two tiles each."""
    rng = np.random.default_rng(0)
    for name in ("LUAD", "LUSC"):
        for patient in range(3):
            folder = tmp_path / "tiles" / name / f"{name}_{patient}"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "tiles"


@pytest.fixture
def labels(tmp_path):
    """A cohort of other patients, in one fold; its slides are never opened."""
    (tmp_path / "slides").mkdir()
    rows = []
    for number, split in enumerate(("train", "train", "val", "val", "test", "test")):
        (tmp_path / "slides" / f"s{number}.tif").write_bytes(b"")
        rows.append((f"s{number}", f"p{number}", ("LUAD", "LUSC")[number % 2], split))
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", "fold_1"])
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "labels.csv"


def settings(tiles, labels=None, **changes):
    """`configs/tcga_nsclc.py` with flags; '__' stands for the dot."""
    config = configuration.default()
    config.data.classes = ("LUAD", "LUSC")
    config.encoder.dtype = "bfloat16"
    config.update_from_flattened_dict({**SMALL, "data.tiles": str(tiles)})
    if labels is not None:
        config.folds = 1
        config.data.update(labels=str(labels), slides=str(labels.parent / "slides"))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def go(config, workdir):
    with layout.locked(workdir):
        return pipeline.run(config, workdir, ["pretrain"])


@pytest.fixture
def untrained(monkeypatch):
    """`pretrain` notes that it was asked for, and does no more."""
    calls = []
    monkeypatch.setattr(pretrain, "run", lambda config, workdir: calls.append(workdir))
    return calls


@pytest.mark.slow
def test_cli_tiles_alone_and_a_cohort_later(cache, tiles, labels, tmp_path, caplog):
    """No label CSV, no slides, nothing else set; what was trained serves the cohort later."""
    workdir = tmp_path / "work"
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    run = runs.Run(
        cache, "--config", "configs/tcga_nsclc.py", "--workdir", workdir, "--stages", "pretrain",
        f"--config.data.tiles={tiles}", *flags,
    )  # fmt: skip
    assert run.wait() == 0, run.log
    said = " ".join(run.log.split())
    assert "those are of 4 and 2 patients, named by the sub-folders of the class folders" in said
    assert "held-out tiles: AUC" in said
    assert {path.name for path in workdir.iterdir()} == {".lock", "config.json", "pretrain"}
    assert json.loads((workdir / "pretrain/stage.json").read_text())["complete"]
    before = runs.files(workdir / "pretrain")
    with caplog.at_level("INFO"):
        assert go(settings(tiles, labels, data__classes=()), workdir) == 0
    assert any("already done in" in message for message in caplog.messages)
    assert runs.files(workdir / "pretrain") == before


def test_cli_other_stages_still_need_a_label_csv(cache, tiles, tmp_path):
    run = runs.Run(
        cache, "--config", "configs/tcga_nsclc.py", "--workdir", tmp_path / "work",
        "--stages", "pretrain,prepare", f"--config.data.tiles={tiles}",
    )  # fmt: skip
    assert run.wait() == 1
    assert "data.labels is not set" in run.log
    assert not (tmp_path / "work").exists()


def test_tiles_of_a_tested_patient_are_refused(tiles, labels, tmp_path, untrained):
    workdir = tmp_path / "work"
    (tiles / "LUSC/LUSC_1").rename(tiles / "LUSC/p1")  # trains in the only fold
    assert go(settings(tiles, labels), workdir) == 0
    assert len(untrained) == 1
    before = runs.files(workdir)
    (tiles / "LUSC/LUSC_2").rename(tiles / "LUSC/p5")
    sentence = r"hold some of the patient p5, who is tested in fold 1 of .*labels\.csv; 1 such"
    with pytest.raises(DataError, match=sentence):
        go(settings(tiles, labels), workdir)
    assert runs.files(workdir) == before
    assert len(untrained) == 1


def test_towers_of_tiles_that_are_refused_later_are_not_kept(tiles, labels, tmp_path, untrained):
    """Trained without a cohort on tiles of a patient whom the cohort then tests."""
    workdir = tmp_path / "work"
    (tiles / "LUSC/LUSC_2").rename(tiles / "LUSC/p5")
    assert go(settings(tiles), workdir) == 0
    with pytest.raises(DataError, match="the patient p5, who is tested"):
        go(settings(tiles, labels), workdir)
    shutil.rmtree(tiles / "LUSC/p5")
    assert go(settings(tiles, labels), workdir) == 0
    assert len(untrained) == 2  # anew, without those tiles


@pytest.mark.slow
def test_check_tells_of_them_too(tiles, labels, tmp_path, caplog):
    (tiles / "LUSC/LUSC_2").rename(tiles / "LUSC/p5")
    preflight.run(settings(tiles, labels), tmp_path / "work")
    problems = [message for message in caplog.messages if message.startswith("problem: the tiles")]
    assert len(problems) == 1
    assert "the patient p5, who is tested in fold 1" in problems[0]


def test_a_folder_that_is_gone_is_told(tiles, tmp_path):
    with pytest.raises(DataError, match=r"data\.tiles is .*nowhere, which is no folder"):
        go(settings(tmp_path / "nowhere"), tmp_path / "work")
