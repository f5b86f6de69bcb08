"""A prediction computed again: found, or one sentence for what differs; and what all files name."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax import verify
from lrmil_jax.errors import WeightsError
from lrmil_jax.models import model_folder
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import predict
from tests.integration import random_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, a slide, and its prediction."""
    home = tmp_path_factory.mktemp("home")
    random_model.write_model(
        home / "model", random_model.write_weights(home / "weights.safetensors")
    )
    image, _ = synthetic.tissue_image(np.random.default_rng(0), size_px=768, positive=True)
    synthetic.write_slide(home / "s.tif", image, mpp=0.5)
    assert predict.run(home / "model", home / "work", slide=home / "s.tif", slides=None) == 0
    return home


@pytest.fixture(autouse=True)
def log_of_pytest(monkeypatch):
    monkeypatch.setattr(verify, "setup_logging", lambda: None)


@pytest.fixture(autouse=True)
def read_here(monkeypatch):
    monkeypatch.setattr(verify, "SECONDS_PER_SLIDE", 0.0)


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the prediction, to be changed."""
    return shutil.copytree(made / "work/predictions/s", tmp_path / "s")


def test_every_file_names_the_model(made):
    identity = model_folder.identity(made / "model")
    folder = made / "work/predictions"
    assert json.loads((folder / "s/prediction.json").read_text())["source"]["model"] == identity
    assert json.loads((folder / "s/attention.geojson").read_text())["model_sha256"] == identity
    for table in ("predictions.csv", "s/attention.csv"):
        assert set(pd.read_csv(folder / table).model_sha256) == {identity}
    assert Image.open(folder / "s/heatmap.png").text["model_sha256"] == identity


def test_a_prediction_is_found_again(made, folder, caplog):
    with caplog.at_level("INFO"):
        assert verify.main([str(made / "model"), str(folder)]) == 0
    assert "predicts the same again" in caplog.text


def test_a_prediction_inside_of_what_was_drawn(made, tmp_path):
    ring = [[0, 0], [500, 0], [500, 768], [0, 768], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    drawn, folder = tmp_path / "s.geojson", tmp_path / "work/predictions/s"
    drawn.write_text(json.dumps(feature))
    given = {"slide": made / "s.tif", "slides": None, "annotations": drawn}
    assert predict.run(made / "model", tmp_path / "work", **given) == 0
    assert verify.verify(made / "model", folder) == []
    ring[1][0] = ring[2][0] = 700
    drawn.write_text(json.dumps(feature))
    changed, *others = verify.verify(made / "model", folder)
    assert "s.geojson is not what was drawn when" in changed
    assert others  # patches are other ones


def test_the_documented_command(made, folder, monkeypatch):
    text = (Path(__file__).parents[1] / "docs/checking.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"python -m lrmil_jax\.verify (.*)", text)
    monkeypatch.chdir(folder.parent)
    Path("runs/nsclc/predictions").mkdir(parents=True)
    Path("runs/nsclc/model").symlink_to(made / "model")
    folder.rename("runs/nsclc/predictions/slide_0001")
    assert verify.main(command.split()) == 0


def changed_json(folder, change):
    record = json.loads((folder / "prediction.json").read_text())
    change(record)
    (folder / "prediction.json").write_text(json.dumps(record))


def test_each_difference_is_a_sentence(made, folder, caplog):
    def change(record):
        record["prediction"]["prob_tumour"] += 0.01
        record["source"] |= {"model": "0" * 64, "sample": "other"}

    changed_json(folder, change)
    table = pd.read_csv(folder / "attention.csv")
    table.loc[1, "attention"] += 0.05
    table.to_csv(folder / "attention.csv", index=False)
    assert verify.main([str(made / "model"), str(folder)]) == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    for part in ("was made by the model 0000", "s.tif is not the file that was predicted (sample",
                 "prob_tumour is", "attention of the patch in line 3 is"):  # fmt: skip
        assert sum(part in sentence for sentence in said) == 1, part
    assert len(said) == 4
    table[1:].to_csv(folder / "attention.csv", index=False)
    assert any("other ones" in one for one in verify.verify(made / "model", folder))


def test_what_is_not_there_is_one_sentence(made, folder, tmp_path, caplog):
    assert verify.main([str(made / "model"), str(tmp_path)]) == 1
    assert "has no prediction.json" in caplog.text
    changed_json(folder, lambda record: record.update(path="gone.tif"))
    assert verify.main([str(made / "model"), str(folder)]) == 1
    assert "give it by --slide" in caplog.text
    assert verify.verify(made / "model", folder, made / "s.tif") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder.batch", 10**9), ("geometry.patch_px", 10**6), ("geometry.patch_px", "64"),
     ("geometry.lr_mpp", 0), ("prepare.tissue_mpp", 1e-9), ("encoder.batch", True)],
)  # fmt: skip
def test_sizes_that_no_model_has_are_refused(made, tmp_path, key, value):
    model = shutil.copytree(made / "model", tmp_path / "model")
    facts = json.loads((model / "model.json").read_text())
    section, name = key.split(".")
    facts[section][name] = value
    (model / "model.json").write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=rf"model\.json says {key} = .* must be from"):
        model_folder.load(model)
