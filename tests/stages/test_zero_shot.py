"""zero_shot: tiles against descriptions, from a folder to the figures, and every mistake."""

import json

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import softmax

from lrmil_jax import checks, pipeline
from lrmil_jax import config as configuration
from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.data.tile_folder import TileFolder
from lrmil_jax.data.tiles import TileSource
from lrmil_jax.encoders import TextTower, Transform, contrastive, language, pretrained
from lrmil_jax.errors import ConfigError, DataError, WeightsError
from lrmil_jax.models import loading, text_towers
from lrmil_jax.report import zero_shot as report
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import zero_shot
from lrmil_jax.train.encode import BatchEncoder

pytestmark = pytest.mark.usefixtures("one_device")
CLASSES = ("stroma", "lymphoid", "fat", "benign", "tumour")
PER_CLASS = 6


def config_of(tiles, **changes):
    """The shipped towers on a folder; '__' stands for the dot."""
    config = configuration.default()
    config.method = "zero_shot"
    config.text.descriptions = "shipped:procedural"
    config.encoder.update(name="vit-tiny", weights="shipped:procedural", batch=16, threads=2)
    config.report.tiles = 2
    config.data.tiles = str(tiles)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(changes)
    checks.validate(config)
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Procedural tiles that no tower was trained on."""
    folder = tmp_path_factory.mktemp("tiles")
    return synthetic.write_tiles(folder, seed=31, per_class=PER_CLASS)


@pytest.fixture
def tiles(made, tmp_path):
    """A copy of them to be changed."""
    for path in made.glob("*/*.png"):
        target = tmp_path / "tiles" / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "tiles"


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory):
    """A whole run through the pipeline: its working directory."""
    workdir = tmp_path_factory.mktemp("scored")
    assert pipeline.run(config_of(made), workdir, []) == 0
    return workdir


def read(workdir):
    table = pd.read_csv(workdir / "zero_shot/predictions.csv", keep_default_na=False)
    return table, json.loads((workdir / "zero_shot/metrics.json").read_text())


def probabilities(table):
    return table[[f"prob_{name}" for name in CLASSES]].to_numpy()


def test_the_shipped_pair_knows_its_tissue(scored):
    table, result = read(scored)
    assert result["metrics"]["accuracy"] >= 0.95
    assert result["metrics"]["auc"] >= 0.99
    assert result["intervals"]["accuracy"][0] <= result["metrics"]["accuracy"]
    assert result["labelled"] == len(table) == PER_CLASS * len(CLASSES)
    assert (table.label == table.tile.str.split("/").str[0]).all()
    assert np.mean(table.label == table.predicted) == result["metrics"]["accuracy"]
    # The tiles' own folders, not their order, are the classes; this file's order is the file's.
    assert tuple(result["classes"]) == CLASSES
    assert sum(map(sum, result["confusion"])) == len(table)


def test_probabilities_are_those_of_the_library(made, scored):
    """The same by other ways: the captioned folder, and captions in place of the description."""
    path = pretrained.locate("shipped:procedural")
    encoder = loading.load_encoder("vit-tiny", path, dtype="float32")
    tower = TextTower.load(path.with_name("text.safetensors"))
    found = CaptionedTiles.from_folder(made)  # classes in the alphabet's order
    source = TileSource(found, np.arange(len(found.paths)), px=64)
    images = np.stack([source[index]["image"] for index in range(len(source))])
    cosine = contrastive.zero_shot(
        tower.project(BatchEncoder(encoder, batch=8)([images])["embedding"]),
        tower.embed(found.captions),
        found.groups,
        num_classes=len(CLASSES),
    )
    expected = softmax(tower.logit_scale * np.asarray(cosine, np.float64), axis=1)
    table, _ = read(scored)
    order = [table.tile.tolist().index(p.relative_to(made).as_posix()) for p in found.paths]
    columns = [CLASSES.index(name) for name in found.classes]
    got = probabilities(table)[order][:, columns]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_a_run_leaves(scored):
    names = {path.name for path in (scored / "zero_shot").iterdir()}
    assert names == {"predictions.csv", "metrics.json", "table.txt", "table.md", "zero_shot.png",
                     "stage.json"}  # fmt: skip
    with Image.open(scored / "zero_shot/zero_shot.png") as picture:
        assert min(picture.size) > 300
    lines = (scored / "zero_shot/table.txt").read_text().splitlines()
    assert lines[0].split()[:1] == ["metric"]
    assert [line.split()[0] for line in lines if line.startswith(CLASSES)] == list(CLASSES)
    assert "balanced accuracy" in (scored / "zero_shot/table.md").read_text()


def test_what_is_done_is_left_alone_until_something_is_edited(tiles, tmp_path, caplog):
    description, workdir = tmp_path / "own.toml", tmp_path / "w"
    shipped = zero_shot.TextBank.load("shipped:procedural").path
    description.write_text(shipped.read_text())
    for _ in range(2):
        config = config_of(tiles, text__descriptions=str(description))
        with caplog.at_level("INFO"):
            pipeline.run(config, workdir, [])
    assert caplog.text.count("already done") == 1
    first, _ = read(workdir)
    text = description.read_text().replace("A dense infiltrate of small round lymphocytes.", "Dots")
    description.write_text(text)
    pipeline.run(config, workdir, [])
    second, _ = read(workdir)
    assert not np.array_equal(probabilities(first), probabilities(second))
    assert len(list((workdir / "text").glob("*.safetensors"))) == 2
    Image.new("RGB", (64, 64)).save(tiles / "fat/more.png")
    pipeline.run(config, workdir, [])
    assert len(read(workdir)[0]) == len(first) + 1


def test_an_unreadable_tile_is_named_and_left_out(tiles, scored, tmp_path, caplog):
    broken = tiles / "fat/00002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (tiles / "stroma/._00001.png").write_bytes(b"what a system leaves there")
    assert pipeline.run(config_of(tiles), tmp_path / "w", []) == 1
    table, result = read(tmp_path / "w")
    assert list(result["unreadable"]) == ["fat/00002.png"]
    assert "fat/00002.png cannot be read" in result["unreadable"]["fat/00002.png"]
    assert str(broken) in caplog.text
    # The others are what they were, whatever stood beside them in a batch.
    before, _ = read(scored)
    kept = before[before.tile != "fat/00002.png"]
    assert table.tile.tolist() == kept.tile.tolist()
    np.testing.assert_allclose(probabilities(table), probabilities(kept), atol=1e-5)


def test_plain_files_are_scored_without_metrics(made, scored, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in CLASSES:
        (folder / f"{name}.png").write_bytes((made / name / "00000.png").read_bytes())
    zero_shot.run(config_of(folder), tmp_path / "w")
    table, result = read(tmp_path / "w")
    assert "metrics" not in result
    assert (table.label == "").all()
    before, _ = read(scored)
    for row in table.itertuples():
        same = before[before.tile == f"{row.tile.removesuffix('.png')}/00000.png"]
        np.testing.assert_allclose(row.prob_fat, same.prob_fat.item(), atol=1e-5)
    text = (tmp_path / "w/zero_shot/table.txt").read_text()
    assert "5 tiles, 0 of known class" in text


def test_chosen_classes_in_their_order(tiles, tmp_path):
    for name in ("stroma", "lymphoid", "fat"):
        for path in (tiles / name).iterdir():
            path.unlink()
    zero_shot.run(config_of(tiles, data__classes=("tumour", "benign")), tmp_path / "w")
    table, result = read(tmp_path / "w")
    assert result["classes"] == ["tumour", "benign"]
    assert [name for name in table if name.startswith("prob_")] == ["prob_tumour", "prob_benign"]
    np.testing.assert_allclose(table.prob_tumour + table.prob_benign, 1, atol=1e-9)


def test_intervals_over_patients_where_they_are_named(tiles, tmp_path):
    names = sorted(path.relative_to(tiles).as_posix() for path in tiles.glob("*/*.png"))
    patients = pd.DataFrame({"tile": names, "patient_id": [n[-5] for n in names]})
    patients.to_csv(tiles / "patients.csv", index=False)
    zero_shot.run(config_of(tiles), tmp_path / "w")
    table, result = read(tmp_path / "w")
    assert result["interval_over"] == "patients"
    assert result["patients"] == PER_CLASS
    assert table.patient_id.astype(str).tolist() == patients.patient_id.tolist()
    patients[1:].to_csv(tiles / "patients.csv", index=False)
    with pytest.raises(DataError, match=r"names no patient of the tile benign/00000\.png"):
        zero_shot.run(config_of(tiles), tmp_path / "w")


def test_figures_by_hand(tmp_path):
    """Two right of a, one of b; one b is said to be a; a tile of unknown class counts nowhere."""
    tiles = TileFolder(
        folder=tmp_path,
        paths=tuple(tmp_path / f"{number}.png" for number in range(5)),
        labels=np.array([0, 0, 1, 1, -1]),
    )
    said = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.0, 1.0]])
    got = zero_shot.measure(tiles, ("a", "b"), said)
    assert got["confusion"] == [[2, 0], [1, 1]]
    assert got["predicted"] == [3, 2]
    assert (got["tiles"], got["labelled"], got["largest_class"]) == (5, 4, 0.5)
    assert got["metrics"]["accuracy"] == 0.75
    assert got["metrics"]["auc"] == 0.75  # of four pairs one is the wrong way round
    assert got["interval_over"] == "tiles"


# Tiles of another side than the encoder's input.


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("side", "px", "resize"), [(224, 64, None), (100, 48, 64), (40, 64, None)])
def test_squared_is_the_encoders_own_transform(side, px, resize, interpolation):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    transform = Transform(px, resize=resize, interpolation=interpolation)
    got = zero_shot.squared(Image.fromarray(pixels), transform)
    assert got.shape == (resize or px,) * 2 + (3,)
    whole = jax.jit(transform.normalise)
    np.testing.assert_array_equal(whole(got[None]), whole(pixels[None]))


def test_of_a_tile_that_is_not_square_the_middle_is_shown():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 100, 3), np.uint8)
    for turned in (False, True):
        image = Image.fromarray(pixels.swapaxes(0, 1) if turned else pixels)
        got = zero_shot.squared(image, Transform(64))
        middle = pixels[:, 18:82]
        np.testing.assert_array_equal(got, middle.swapaxes(0, 1) if turned else middle)
    assert zero_shot.squared(Image.fromarray(pixels), Transform(32)).shape == (32, 32, 3)


# Mistakes.


def test_missing_keys_are_named(made, tmp_path):
    with pytest.raises(ConfigError, match=r"text\.descriptions is not set"):
        zero_shot.run(config_of(made, text__descriptions=None), tmp_path)
    with pytest.raises(ConfigError, match=r"encoder\.weights is not set"):
        zero_shot.run(config_of(made, encoder__weights=None), tmp_path)
    with pytest.raises(ConfigError, match=r"data\.tiles is not set"):
        config_of(made, data__tiles=None)
    with pytest.raises(ConfigError, match=r"study\.seeds.*zero_shot"):
        config_of(made, study__seeds=(1, 2))


def test_folders_that_cannot_be_scored(made, tiles, tmp_path):
    with pytest.raises(DataError, match="which is no folder"):
        zero_shot.run(config_of(tmp_path / "absent"), tmp_path)
    (tmp_path / "empty/stroma").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty has no tiles \(.*\.png"):
        zero_shot.run(config_of(tmp_path / "empty"), tmp_path)
    with pytest.raises(DataError, match=r"tiles of benign, fat.*oral_mucosa.*normal, oscc"):
        zero_shot.run(config_of(made, text__descriptions="shipped:oral_mucosa"), tmp_path)
    with pytest.raises(DataError, match=r"does not describe the class muscle"):
        zero_shot.run(config_of(made, data__classes=("fat", "muscle")), tmp_path)
    for path in tiles.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 30 tiles"):
        zero_shot.run(config_of(tiles), tmp_path)


def test_an_image_tower_without_its_text_tower(made, tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(pretrained.locate("shipped:procedural").read_bytes())
    with pytest.raises(
        WeightsError, match=r"text\.safetensors does not exist.*encoder\.safetensors.*plip"
    ):
        zero_shot.run(config_of(made, encoder__weights=str(path)), tmp_path / "w")
    other = pretrained.locate("shipped:procedural-both").with_name("text.safetensors")
    path.with_name("text.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(WeightsError, match="belongs to the image tower"):
        zero_shot.run(config_of(made, encoder__weights=str(path)), tmp_path / "w")


def test_a_published_text_tower_needs_its_tokenizer(tmp_path, monkeypatch):
    asked = []
    shipped = text_towers.load(config_of(tmp_path))

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return shipped

    monkeypatch.setattr(language, "load", load)
    weights, tokenizer = tmp_path / "model.safetensors", tmp_path / "tokenizer.json"
    weights.write_bytes(b"both towers")
    tokenizer.write_text("{}")
    config = config_of(tmp_path, encoder__name="plip", encoder__weights=str(weights))
    text_towers.load(config)
    config.text.update(weights=str(tmp_path / "text.bin"), tokenizer=str(tokenizer))
    text_towers.load(config)
    assert asked == [
        (("plip", weights), {"tokenizer": tmp_path}),
        (("plip", tmp_path / "text.bin"), {"tokenizer": tokenizer}),
    ]
    # Embeddings follow from the words' numbers too.
    config.text.update(weights=None, tokenizer=None)
    first = text_towers.digest(config)
    tokenizer.write_text('{"a": 1}')
    assert text_towers.digest(config) != first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tile,patient\na.png,1\n", "no column patient_id"),
        ("tile,patient_id\na.png,1\na.png,2\n", "a.png is of two patients"),
        ("tile,patient_id\na.png,1\nb.png,\n", r"no patient of the tile b.png \(1 of 2"),
    ],
)
def test_patients_that_cannot_be(tmp_path, text, said):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        TileFolder.read(tmp_path, classes=CLASSES, described_in=tmp_path / "x.toml")


# The tables.


def test_tables_by_hand():
    result = {
        "classes": ["a", "b"], "tiles": 10, "labelled": 10, "predicted": [8, 2],
        "confusion": [[6, 1], [2, 1]], "largest_class": 0.7, "interval_over": "tiles",
        "metrics": {"accuracy": 0.7, "balanced_accuracy": 0.595, "f1_macro": 0.6, "auc": None},
        "intervals": dict.fromkeys(("accuracy", "balanced_accuracy", "f1_macro"), (0.1, 0.9))
        | {"auc": None},
    }  # fmt: skip
    assert report.class_cells(result)[1:] == [
        ["a", "7", "8", "0.857", "0.750"],
        ["b", "3", "2", "0.333", "0.500"],
    ]
    shown = {row[0]: row[1:] for row in report.cells(result)[1:]}
    assert shown["accuracy"] == ["0.700 [0.100, 0.900]", "0.700"]
    assert shown["AUC"] == ["undefined", "0.500"]
    # Always "a": its F1 is 2 * .7 / 1.7, that of "b" is 0.
    assert shown["macro F1"][1] == f"{0.5 * 1.4 / 1.7:.3f}"
