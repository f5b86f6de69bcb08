"""What `predict` tells of its list of slides."""

import logging

import pandas as pd
import pytest

from lrmil_jax import files
from lrmil_jax.data import slide_files
from lrmil_jax.data.slide_jobs import file_identity
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.slides import Annotations
from lrmil_jax.stages import predict
from lrmil_jax.workspace import twins


@pytest.fixture
def model(tmp_path):
    """A model that was trained on one of two files."""
    for name in ("old", "new"):
        (tmp_path / f"{name}.tif").write_bytes(name.encode())
    seen = [file_identity(tmp_path / "old.tif")]
    files.write_json(tmp_path / "model/final" / twins.SEEN, {"slides": seen})
    return tmp_path / "model"


def test_slides_of_the_training_are_told(model, tmp_path, caplog):
    done = [{"slide_id": name, "source": {"mpp": None, **file_identity(tmp_path / f"{name}.tif")}}
            for name in ("old", "new")]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert predict._tell_trained_on(model, done) == ["old"]
    assert "1 of 2 slides are of those that the model was trained on (old)" in caplog.text
    twice = [done[0], done[0] | {"slide_id": "copy"}, {"slide_id": "gone", "source": {}}]
    assert predict._tell_trained_on(model, twice) == ["old", "copy"]
    caplog.clear()
    assert predict._tell_trained_on(model, done[1:]) == []
    assert caplog.text == ""


def test_slides_of_a_csv_are_looked_for_in_the_folder_that_is_named(tmp_path):
    slides, lists = tmp_path / "slides", tmp_path / "lists"
    for folder in (slides, lists):
        folder.mkdir()
    for name in "ab":
        (slides / f"{name}.tif").touch()
    pd.DataFrame({"slide_id": ["a", "b"]}).to_csv(lists / "train.csv", index=False)
    beside = slide_files.read_list(lists / "train.csv")
    with pytest.raises(DataError, match=r"none of the 2 slides .* is in .*lists.* by --folder"):
        predict._refuse_all_missing(beside, lists / "train.csv", None)
    table = slide_files.read_list(lists / "train.csv", slides)
    assert table.path.tolist() == [str(slides / "a.tif"), str(slides / "b.tif")]
    predict._refuse_all_missing(table, lists / "train.csv", slides)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"slide": "a.tif", "folder": "."}, ConfigError, "but --slide names one file; leave"),
        ({"slides": ".", "folder": "."}, ConfigError, r"but --slides .* is a folder; leave"),
        ({"slides": "train.csv", "folder": "no"}, DataError, r"^--folder \S+no is no folder"),
        ({"slides": "train.csv", "mpp": 0.5}, ConfigError, "--mpp is the um/px of --slide"),
    ],
)
def test_options_that_say_nothing_are_refused_before_the_model_is_read(
    options, error, sentence, tmp_path
):
    paths = {name: tmp_path / text for name, text in options.items() if isinstance(text, str)}
    with pytest.raises(error, match=sentence):
        predict.run(tmp_path, tmp_path, **({"slide": None, "slides": None} | options | paths))


def test_what_was_drawn_is_looked_for_before_any_slide_is_read(tmp_path):
    names, key = ["a", "b"], "--annotations"
    assert slide_files.drawn(None, (), names, key=key) == {}
    with pytest.raises(
        DataError, match=r"--annotations is .*, which has no <slide_id>\.geojson of"
    ):
        slide_files.drawn(tmp_path, (), names, key=key)
    file = tmp_path / "b.geojson"
    file.touch()
    found = slide_files.drawn(tmp_path, ["Tumor"], names, key=key)
    assert {name: one.path.name for name, one in found.items()} == {
        "a": "a.geojson", "b": "b.geojson"}  # fmt: skip
    assert found["b"] == Annotations(file, ("Tumor",), "b")
    assert slide_files.drawn(file, (), ["a"], key=key)["a"].path == file
    with pytest.raises(DataError, match=r"names the file .* for 2 slides; give the folder"):
        slide_files.drawn(file, (), names, key=key)
    with pytest.raises(DataError, match="does not exist"):
        slide_files.drawn(tmp_path / "no", (), names, key=key)


@pytest.mark.parametrize("folder", [None, "slides"])
def test_a_path_of_the_csv_that_leads_nowhere_is_named(folder, tmp_path):
    folder = folder and tmp_path / folder
    pd.DataFrame({"slide_id": ["a"], "path": ["old/a.tif"]}).to_csv(tmp_path / "t.csv", index=False)
    table = slide_files.read_list(tmp_path / "t.csv", folder)
    where = folder or tmp_path
    with pytest.raises(DataError, match="column path leads to") as caught:
        predict._refuse_all_missing(table, tmp_path / "t.csv", folder)
    assert f"{where / 'old/a.tif'}; " in str(caught.value)
    assert str(caught.value).endswith(f"count from {where}")


def test_what_an_earlier_call_said_of_its_slides_together_does_not_stay(tmp_path):
    gone = ("patient_predictions.csv", "metrics.json", "left_out.csv", ".a.csv.0123abcd.tmp")
    kept = ("predictions.csv", "a/prediction.json")
    for name in (*gone, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):
        predict._clear(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "predictions.csv"]
    assert (tmp_path / "a/prediction.json").is_file()


def test_a_class_that_is_in_no_file_is_told_once(tmp_path, caplog):
    def save(name, *classes):
        place = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
        found = [{"type": "Feature", "geometry": place,
                  "properties": {"classification": {"name": one}}} for one in classes]  # fmt: skip
        files.write_json(tmp_path / f"{name}.geojson", {"features": found})

    save("a", "Stroma")
    save("b", "Tumor", "Stroma")
    (tmp_path / "c.geojson").write_text("broken")

    def told(*classes):
        caplog.clear()
        drawn = slide_files.drawn(tmp_path, classes, ["c", "a", "b", "d"], key="--annotations")
        slide_files.warn_of_classes(drawn.values(), key="--annotation_classes")
        return [record.getMessage() for record in caplog.records]

    (said,) = told("Tumour", "Stroma")
    assert said.startswith("--annotation_classes names Tumour, as which no region is classified")
    assert said.endswith("; there are Stroma, Tumor")
    assert told("Tumor", "Stroma") == told() == []
    assert told("Tumour") == []  # every slide fails by itself, in a sentence of its own
