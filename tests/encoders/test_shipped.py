"""The towers that come with the package: whole, as their recipe says, and able to read tissue."""

import json

import numpy as np
import pytest

from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.data.tiles import TileSource
from lrmil_jax.encoders import TextTower, contrastive, pretrained
from lrmil_jax.errors import WeightsError
from lrmil_jax.models import loading
from lrmil_jax.slides import synthetic
from lrmil_jax.train.encode import BatchEncoder

NAMES = ("procedural", "procedural-both")


def folder(name):
    return pretrained.locate(f"shipped:{name}").parent


def test_paths_stay_paths_and_unknown_names_are_refused(tmp_path):
    assert pretrained.locate(str(tmp_path / "w.safetensors")) == tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"'prosedural'.*shipped:procedural or shipped:proc"):
        pretrained.locate("shipped:prosedural")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_names_the_files(name):
    recipe = json.loads((folder(name) / "recipe.json").read_text())
    assert recipe["sha256"] == {
        path.name: pretrained.weights_hash(path)
        for path in sorted(folder(name).glob("*.safetensors"))
    }
    assert {"command", "config", "software", "licence", "zero_shot_accuracy"} <= recipe.keys()


def test_they_are_small():
    files = [path for path in folder("procedural").parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Tiles that no tower was trained or measured on, {scale: tiles}."""
    made = {}
    for scale in (1, 4):
        place = tmp_path_factory.mktemp(f"scale_{scale}")
        synthetic.write_tiles(place, seed=77, per_class=12, scales=(scale,))
        made[scale] = CaptionedTiles.from_folder(place)
    return made


def accuracy(name, found):
    """Zero-shot accuracy of a shipped pair."""
    path = pretrained.locate(f"shipped:{name}")
    encoder = loading.load_encoder("vit-tiny", path, dtype="float32")
    tower = TextTower.load(path.with_name("text.safetensors"), encoder_hash=encoder.weights_hash)
    source = TileSource(found, np.arange(len(found.paths)), px=64)
    images = np.stack([source[index]["image"] for index in range(len(source))])
    scores = contrastive.zero_shot(
        tower.project(BatchEncoder(encoder, batch=64)([images])["embedding"]),
        tower.embed(found.captions),
        found.groups,
        num_classes=len(found.classes),
    )
    label = np.array([found.groups[chosen[0]] for chosen in found.choices])
    return float((np.asarray(scores).argmax(1) == label).mean())


def test_what_they_read(tiles):
    """Both know HR tiles; only the one that was shown LR tiles knows those."""
    found = {(name, scale): accuracy(name, tiles[scale]) for name in NAMES for scale in tiles}
    assert found["procedural", 1] >= 0.9
    assert found["procedural-both", 1] >= 0.9
    assert found["procedural-both", 4] > found["procedural", 4] + 0.1
