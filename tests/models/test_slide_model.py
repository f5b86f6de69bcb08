"""One class predicts: one slide or many, in a notebook as on the command line."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import lrmil_jax
from lrmil_jax import files
from lrmil_jax.errors import SlideError
from lrmil_jax.models import slide_list
from lrmil_jax.processes import Workers
from lrmil_jax.slides import Annotations, synthetic
from lrmil_jax.stages import predict
from tests.integration import random_model
from tests.patches.dying import HangingFiles

DOCS = Path(__file__).parents[2] / "docs" / "python.md"
SIDES = (768, 1280, 1024, 1536)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model with random weights below `runs/quickstart`, and slides of four sizes."""
    home = tmp_path_factory.mktemp("home")
    weights = random_model.write_weights(home / "weights.safetensors")
    random_model.write_model(home / "runs" / "quickstart" / "model", weights)
    (home / "slides").mkdir()
    for number, side in enumerate(SIDES):
        image, _ = synthetic.tissue_image(
            np.random.default_rng(number), size_px=side, positive=bool(number % 2)
        )
        synthetic.write_slide(home / "slides" / f"s{number}.tif", image, mpp=0.5)
    return home


@pytest.fixture(scope="module")
def model(home):
    return lrmil_jax.load_model(home / "runs" / "quickstart")


@pytest.fixture(scope="module")
def slides(home):
    return sorted((home / "slides").glob("*.tif"))


def test_many_slides_give_what_each_gives_alone(model, slides):
    many = list(model.predict_many(slides))
    assert len({len(result.attention) for result in many}) == len(SIDES)
    for path, result in zip(slides, many, strict=True):
        alone = model.predict(path)
        for name, probability in alone.probabilities.items():
            assert result.probabilities[name] == pytest.approx(probability, abs=1e-6)
        np.testing.assert_allclose(result.attention, alone.attention, atol=1e-6)
        np.testing.assert_array_equal(result.xy, alone.xy)
        assert (result.side, result.encoded) == (alone.side, len(alone.xy))
        assert result.read_log == alone.read_log
        assert result.attention.sum() == pytest.approx(1, abs=1e-5)
        assert set(result.seconds) == {"open_tissue", "read", "encode", "mil"}
        assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-6)


def test_progress_is_told_region_by_region(model, slides):
    told = []
    chosen = slides[:2]
    results = model.predict_many(chosen, on_progress=lambda *one: told.append(one))
    counts = [len(result.xy) for result in results]
    assert told == [(path, done + 1, count) for path, count in zip(chosen, counts, strict=True)
                    for done in range(count)]  # fmt: skip


def test_a_slide_that_cannot_be_read_keeps_its_place(model, slides, tmp_path):
    broken = tmp_path / "broken.tif"
    broken.write_bytes(slides[0].read_bytes()[:5000])
    gone = tmp_path / "gone.tif"
    found = list(model.predict_many([slides[0], broken, gone, slides[1]]))
    assert [isinstance(result, SlideError) for result in found] == [False, True, True, False]
    assert "broken.tif" in str(found[1])
    assert "gone.tif" in str(found[2])
    with pytest.raises(SlideError, match=r"gone\.tif"):
        model.predict(gone)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deadly", "the process that read it was ended from outside"),
        pytest.param("endless", "reading it took longer than 6 s", marks=pytest.mark.slow),
    ],
)
def test_a_decoder_that_crashes_or_hangs_loses_its_slide_alone(home, tmp_path, name, reason):
    """As the command line predicts: in a process, with a time limit."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for slide in (name, "z"):
        shutil.copy(home / "slides/s0.tif", folder / f"{slide}.tif")
    model = home / "runs/quickstart/model"
    with Workers(1, label="reading", held=HangingFiles(), seconds=6.0, apart=True) as readers:
        assert predict.run(model, tmp_path, slide=None, slides=folder, readers=readers) == 1
    table = pd.read_csv(tmp_path / "predictions/predictions.csv", index_col="slide_id")
    assert table.status.to_dict() == {"z": "ok", name: "failed"}
    assert f"{name}.tif: {reason}" in table.reason[name]


def test_the_temperature_of_a_model_folder(home, model, slides, tmp_path):
    """It is told beside the probabilities, which stay as they are."""
    assert model.temperature is None
    result = model.predict(slides[0])
    assert slide_list.calibrated(model, result.probabilities) == {}
    folder = Path(shutil.copytree(home / "runs/quickstart/model", tmp_path / "model"))
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"temperature": 2.0}))
    tempered = slide_list.calibrated(lrmil_jax.load_model(folder), result.probabilities)
    roots = {name: np.sqrt(value) for name, value in result.probabilities.items()}
    for name, root in roots.items():
        assert tempered[name] == pytest.approx(root / sum(roots.values()))


def test_a_row_a_patient(model):
    first, second = model.classes
    told = {"s1": 0.2, "s2": 0.9, "s3": 0.4}
    done = [{"slide_id": name, "prediction": {f"prob_{first}": 1 - p, f"prob_{second}": p}}
            for name, p in told.items()]  # fmt: skip
    table = pd.DataFrame({"slide_id": ["s3", "s1", "lost", "s2", "gone"],
                          "patient_id": ["q", "p", "p", "p", "r"]})  # fmt: skip
    strict = dataclasses.replace(model, thresholds={"youden": 0.56}, temperature=2.0)
    p, q = slide_list.by_patient(strict, table, done).to_dict("records")  # r has no prediction
    assert (p["patient_id"], p["slides"], p["slide_ids"], p["failed"]) == ("p", 2, "s1; s2", 1)
    assert (p["predicted"], p["predicted_youden"]) == (second, first)  # .55 lies between
    root = np.sqrt([0.45, 0.55])
    assert p[f"calibrated_{second}"] == pytest.approx(root[1] / root.sum())
    assert (q["patient_id"], q["slides"], q["slide_ids"], q["failed"]) == ("q", 1, "s3", 0)
    assert q[f"prob_{second}"] == 0.4
    plain = slide_list.by_patient(model, table, done)
    assert not [name for name in plain if name.startswith(("predicted_", "calibrated_"))]


def test_a_format_that_is_not_there_yet_is_written(tmp_path):
    source = {"model": "0123"}
    files.write_json(tmp_path / "prediction.json", {"source": source})
    (tmp_path / "attention.geojson").touch()
    assert slide_list._known(tmp_path, source, ["geojson"]) == {"source": source}
    assert slide_list._known(tmp_path, source, ["geojson", "ome_tiff"]) is None
    assert slide_list._known(tmp_path, {"model": "4567"}, []) is None


def test_slides_of_other_sizes_compile_nothing(model, slides):
    model.predict(slides[0])
    compiled = []
    event = "/jax/core/compile/backend_compile_duration"
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name == event else None
    )
    list(model.predict_many(slides))
    assert not compiled


def test_um_per_px_can_be_given(model, slides):
    (given,) = model.predict_many([slides[0]], [0.5])
    assert given.mpp == 0.5
    np.testing.assert_array_equal(given.xy, model.predict(slides[0]).xy)


def test_patches_inside_of_what_was_drawn(model, slides, tmp_path):
    whole = model.predict(slides[3])
    ring = [[0, 0], [800, 0], [800, 1536], [0, 1536], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    files.write_json(tmp_path / "s3.geojson", [feature])
    drawn = model.predict(slides[3], annotations=Annotations(tmp_path / "s3.geojson"))
    assert 0 < len(drawn.xy) < len(whole.xy)
    assert drawn.xy[:, 0].max() < 800
    inside = whole.xy[:, 0] + whole.side <= 800
    assert {tuple(xy) for xy in whole.xy[inside]} <= {tuple(xy) for xy in drawn.xy}
    table = pd.DataFrame({"slide_id": ["s3"], "patient_id": ["s3"], "path": [str(slides[3])],
                          "mpp": [np.nan]})  # fmt: skip
    (found,), _ = slide_list.predict(
        model, table, tmp_path / "out", drawn={"s3": Annotations(tmp_path / "s3.geojson")}
    )
    assert found["lr_patches"] == len(drawn.xy)
    assert set(found["source"]) == {"model", "mpp", "size", "sample", "annotations"}
    assert slide_list._known(tmp_path / "out/s3", found["source"], []) is not None


def test_the_example_of_the_docs_runs(home, monkeypatch, capsys):
    codes = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(codes).replace("apart=True", "apart=False")  # a process takes seconds to start
    (home / "slides" / "torn.tif").write_bytes(b"no slide")
    monkeypatch.chdir(home)
    names = {}
    exec(compile(code, str(DOCS), "exec"), names)
    assert len(names["results"]) == len(SIDES) + 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SIDES) + 1
    assert all(re.match(r"s\d\.tif: benign 0\.\d{3}, tumour 0\.\d{3}; looks", line)
               for line in lines[:-1])  # fmt: skip
    assert lines[-1].startswith("torn.tif: ")
