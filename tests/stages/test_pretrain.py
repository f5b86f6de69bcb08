"""pretrain: both towers learn, on any number of devices, from every origin of captions."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lrmil_jax import checks
from lrmil_jax import config as configuration
from lrmil_jax.data import source, tiles
from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.encoders import TextTower, pretrained, registry
from lrmil_jax.errors import ConfigError, DataError, WeightsError
from lrmil_jax.models import loading, trained
from lrmil_jax.stages import pretrain
from lrmil_jax.train import make_mesh
from lrmil_jax.train.encode import BatchEncoder
from lrmil_jax.workspace import pretrain_tiles

ROOT = Path(__file__).parents[2]
COLOURS = {"blue": (60, 60, 200), "green": (60, 180, 60), "red": (200, 60, 60)}


@pytest.fixture(scope="module", autouse=True)
def smaller():
    """An encoder that compiles in no time, beside the registered ones."""
    sizes = {"px": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            registry.ENCODERS, "vit-small", registry.EncoderSpec(kwargs=sizes, layout="timm")
        )
        yield


def small(**changes):
    """The tiny configuration, with tiles of 16 px; '__' stands for the dot."""
    config = configuration.tiny(configuration.default())
    config.geometry.patch_px = 16
    config.encoder.name = "vit-small"
    config.pretrain.update(steps=2, batch=12, eval_every=2, log_every=2)
    config.pretrain.update(vocabulary=300, text_width=8, projection=8, val_share=0.2)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A folder of three classes that one colour each tells apart."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(15):
            noisy = np.array(colour) + rng.normal(0, 25, (16, 16, 3))
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")
    rows = [f"{name},{text} {name}" for name in COLOURS for text in ("a field of", "it is all")]
    (folder / "captions.csv").write_text("\n".join(["class,caption", *rows]))
    return folder


@pytest.fixture(scope="module")
def learned(coloured, tmp_path_factory):
    """A working directory whose towers have learned the colours, on one device."""
    workdir = tmp_path_factory.mktemp("learned")
    config = small(data__tiles=str(coloured), pretrain__steps=60, pretrain__eval_every=30)
    pair = pretrain.Pair.create(config, CaptionedTiles.from_folder(coloured))
    folder = workdir / "pretrain"
    mesh = make_mesh(jax.devices()[:1])
    pretrain.save(pair, pretrain.train(pair, config, folder / "training", mesh=mesh), folder)
    return workdir


def measured(folder):
    """What a training measured, row by row."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def towers(workdir):
    """Image tower and text tower of a run."""
    folder = workdir / "pretrain"
    encoder = loading.load_encoder("vit-small", folder / "encoder.safetensors", dtype="float32")
    return encoder, TextTower.load(folder / "text.safetensors", encoder_hash=encoder.weights_hash)


def test_towers_learn_and_sentences_find_their_images(learned):
    """Sentences that training never saw find the tiles of their colour."""
    encoder, tower = towers(learned)
    assert float(tower.facts["tile_accuracy"]) == 1
    _, about = pretrained.read_tensors(learned / "pretrain/encoder.safetensors")
    assert about["tile_accuracy"] == tower.facts["tile_accuracy"]
    plain = np.array([np.full((16, 16, 3), colour) for colour in COLOURS.values()], np.uint8)
    images = tower.project(BatchEncoder(encoder, batch=8)([plain])["embedding"])
    texts = tower.embed(["BLUE", "all is green", "a red field"])
    assert (images @ texts.T).argmax(1).tolist() == [0, 1, 2]


def test_validation_is_logged(learned):
    rows = measured(learned / "pretrain/training")
    first, last = (row for row in rows if "validation/loss" in row)
    assert last["validation/loss"] < first["validation/loss"]
    for name in ("accuracy", "balanced_accuracy", "auc"):
        assert last[f"validation/{name}"] == 1
    assert last["validation/majority_share"] == pytest.approx(1 / 3)


def test_figures_are_kept_with_both_towers(learned):
    _, tower = towers(learned)
    _, about = pretrained.read_tensors(learned / "pretrain/encoder.safetensors")
    wanted = {"accuracy": "1.0000", "balanced_accuracy": "1.0000", "auc": "1.0000"}
    wanted = {f"tile_{name}": value for name, value in wanted.items()}
    for facts in (tower.facts, about):
        assert wanted.items() <= facts.items()
        assert facts["tile_majority_share"] == "0.3333"


def test_a_tower_that_tells_nothing_is_seen_to_be_at_chance(tmp_path, monkeypatch, caplog):
    """Seven of ten tiles are of one class: an accuracy of .7 is what no look at them gives."""
    for name, count in {"rare": 15, "usual": 35}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(
                tmp_path / name / f"{number}.png"
            )
    config = small(data__tiles=str(tmp_path))
    pair = pretrain.Pair.create(config, CaptionedTiles.from_folder(tmp_path))
    # What every tile looks like to it: a little more like the second class than like the first.
    directions = jnp.eye(8)
    texts = lambda self, params, captions: directions[captions["group"]]  # noqa: E731
    images = lambda self, params, constants, images: jnp.tile(directions[1], (len(images), 1))  # noqa: E731
    monkeypatch.setattr(pretrain.Pair, "embed_captions", texts)
    monkeypatch.setattr(pretrain.Pair, "embed_images", images)
    held = tiles.TileSource(pair.tiles, pair.tiles.split(share=0.2, seed=0)[1], px=16)
    batches = source.held_out_batches(held, range(len(held)), batch=4)
    validate = pretrain._validation(pair, batches, make_mesh())
    measured = validate({"log_scale": jnp.float32(1.0)})
    # 3 and 7 tiles are held out.
    assert measured["accuracy"] == measured["majority_share"] == pytest.approx(0.7)
    assert measured["balanced_accuracy"] == measured["auc"] == 0.5
    with caplog.at_level("INFO"):
        facts = pretrain._summary(pair.tiles, measured)
    assert facts["tile_majority_share"] == "0.7000"
    line = caplog.messages[-1]
    assert "AUC 0.5000 (chance 0.5), balanced accuracy 0.5000 (chance 0.5), accuracy 0.7000" in line
    assert "0.7000 is the largest class's share" in line


@pytest.mark.slow
def test_eight_devices_train_as_one(coloured, tmp_path, monkeypatch):
    """Batches of 12 are filled up to 16, the held-out 9 tiles to 12 first."""
    config = small(data__tiles=str(coloured), pretrain__steps=3, pretrain__log_every=1)
    pair = pretrain.Pair.create(config, CaptionedTiles.from_folder(coloured))
    start = pair.initial(projection=8, seed=config.seed)
    monkeypatch.setattr(pretrain.Pair, "initial", lambda *_, **__: start)  # it takes seconds
    assert len(jax.devices()) == 8
    one, eight = (
        pretrain.train(pair, config, tmp_path / str(len(devices)), mesh=make_mesh(devices))
        for devices in (jax.devices()[:1], jax.devices())
    )
    for row, other in zip(*(measured(tmp_path / count) for count in "18"), strict=True):
        assert other == pytest.approx(row, rel=1e-3)
    # Not parameter by parameter: Adam makes steps of the rounding where a gradient is 0.
    images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    for embed, what in ((pair.embed_images, images), (pair.embed_captions, pair.captions)):
        before, first, second = (
            jax.jit(embed)(params, what) for params in (start, one.params, eight.params)
        )
        np.testing.assert_allclose(second, first, atol=1e-3)
        assert abs(first - before).max() > 0.01
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, one.params)
    assert min(jax.tree.leaves(moved)) > 1e-5  # every parameter of both towers takes part


@pytest.mark.slow
def test_captions_of_ones_own(coloured, tmp_path):
    """Paths and patients from a CSV; what is in no class is counted within the batch."""
    rows = ["path,caption,patient_id"]
    for name in COLOURS:
        rows += [f"{name}/{i}.png,number {i % 4} in {name},p{i % 5}" for i in range(15)]
        rows.append(f"{name}/0.png,said once more of {name},p0")
    path = coloured / "own.csv"
    path.write_text("\n".join(rows))
    pretrain.run(small(data__captions=str(path)), tmp_path)
    _, tower = towers(tmp_path)
    assert 0 <= float(tower.facts["in_batch_accuracy"]) <= 1
    assert 0 < float(tower.facts["in_batch_chance_accuracy"]) < 1
    assert "tile_accuracy" not in tower.facts
    assert tower.embed(["number 3 in red"]).shape == (1, 8)


def test_synthetic_tiles_of_two_magnifications(tmp_path):
    """Of another seed than the slides', and so other tiles for every seed of a run."""
    options = {"synthetic__tile_scales": (1, 4), "synthetic__tiles_per_class": 2}
    first, second = (
        pretrain_tiles.captioned_tiles(small(seed=seed, **options), tmp_path / str(seed))
        for seed in (0, 1)
    )
    assert first.classes == ("benign", "fat", "lymphoid", "stroma", "tumour")
    assert len(first.paths) == len(second.paths) == 2 * 2 * 5
    assert len(first.captions) == 40
    assert first.paths[0].read_bytes() != second.paths[0].read_bytes()


def test_scales_of_synthetic_tiles_are_no_patients(tmp_path):
    """They lie in sub-folders of their classes, as patients of given tiles may."""
    config = small(synthetic__tile_scales=(4,), synthetic__tiles_per_class=2)
    made = pretrain_tiles.captioned_tiles(config, tmp_path)
    assert made.paths[0].parent.name == "scale_4"
    assert made.patients == ()


def test_towers_of_different_runs_do_not_mix(learned, tmp_path):
    encoder, _ = towers(learned)
    path = learned / "pretrain/text.safetensors"
    with pytest.raises(WeightsError, match=r"not to 0000.*encoder\.safetensors that lies beside"):
        TextTower.load(path, encoder_hash="0" * 64)
    assert TextTower.load(path).encoder_hash == encoder.weights_hash


def test_nothing_is_trained_where_weights_are_given(tmp_path):
    pretrain.run(small(encoder__weights="some.safetensors"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"data__captions": "own.csv"}, ConfigError, "are both set; leave one"),
        ({"pretrain__text_tokens": 2}, DataError, r"more than the 2 .*pretrain\.text_tokens"),
        ({"pretrain__text_heads": 3}, ConfigError, "8 cannot be shared out among 3"),
    ],
)
def test_settings_that_cannot_be(coloured, tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        pretrain.run(small(data__tiles=str(coloured), **changes), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def started(learned, coloured, folder, **changes):
    """Towers of a training that began with the learned image tower, and the tower it began with."""
    start = str(learned / "pretrain/encoder.safetensors")
    config = small(data__tiles=str(coloured), pretrain__init=start, pretrain__steps=4, **changes)
    pair = pretrain.Pair.create(config, CaptionedTiles.from_folder(coloured))
    pretrain.save(pair, pretrain.train(pair, config, folder / "pretrain/training"),
                  folder / "pretrain")  # fmt: skip
    return towers(folder)[0].params, towers(learned)[0].params


def test_a_frozen_image_tower_stays_and_a_text_tower_learns_to_go_with_it(
    learned, coloured, tmp_path
):
    after, before = started(learned, coloured, tmp_path, pretrain__image="frozen")
    jax.tree.map(np.testing.assert_array_equal, after, before)
    encoder, tower = towers(tmp_path)  # the text tower names the image tower's new file
    assert tower.project(np.ones((2, encoder.module.width), np.float32)).shape == (2, 8)
    measured(tmp_path / "pretrain/training")[-1]["validation/loss"]


def test_adapters_change_the_blocks_alone(learned, coloured, tmp_path):
    after, before = started(learned, coloured, tmp_path, pretrain__image="adapters")
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, before)
    assert changed["block_0"]["attn"]["qkv"] == {"kernel": True, "bias": False}
    assert not any(jax.tree.leaves([changed["patch_embed"], changed["norm"]]))


def test_a_tower_tuned_whole_starts_from_its_weights(learned, coloured, tmp_path):
    """With a rate of nearly nothing it is still what it began with."""
    rate = {"pretrain__learning_rate": 1e-9, "pretrain__weight_decay": 0.0}
    after, before = started(learned, coloured, tmp_path, **rate)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, before)


def test_the_side_of_the_input_may_be_another_than_the_tile(learned, coloured, tmp_path):
    """A published file, of which nobody says for which side it is, is read for another one."""
    from safetensors.numpy import save_file

    path, rng = tmp_path / "published.safetensors", np.random.default_rng(0)
    save_file(as_published(towers(learned)[0].params, rng), path)
    config = small(pretrain__init=str(path), encoder__px=32, data__tiles=str(coloured))
    pair = pretrain.Pair.create(config, CaptionedTiles.from_folder(coloured))
    assert pair.module.px == pair.transform.px == 32
    assert pair.params["grid_position"].shape == (4, 4, 16)
    params = pair.initial(projection=8, seed=0)
    tiles_16 = np.zeros((2, 16, 16, 3), np.uint8)
    assert pair.embed_images(params, pair.constants, tiles_16).shape == (2, 8)


def as_published(params, rng):
    """The tower's parameters under timm's names, with another grid of positions."""
    block, norm = params["block_0"], params["norm"]
    names = {"cls_token": rng.normal(size=(1, 1, 16)), "pos_embed": rng.normal(size=(1, 10, 16))}
    kernel = params["patch_embed"]["kernel"].reshape(8, 8, 3, 16)
    names["patch_embed.proj.weight"] = kernel.transpose(3, 2, 0, 1)
    names["patch_embed.proj.bias"] = params["patch_embed"]["bias"]
    dense = {
        **{f"attn.{part}": block["attn"][part] for part in ("qkv", "proj")},
        **{f"mlp.{part}": block["mlp"][part] for part in ("fc1", "fc2")},
    }
    for name, values in dense.items():
        names[f"blocks.0.{name}.weight"] = values["kernel"].T
        names[f"blocks.0.{name}.bias"] = values["bias"]
    for name, values in {"blocks.0.norm1": block["norm1"], "blocks.0.norm2": block["norm2"],
                         "norm": norm}.items():  # fmt: skip
        names[f"{name}.weight"], names[f"{name}.bias"] = values["scale"], values["bias"]
    return {name: np.ascontiguousarray(one, np.float32) for name, one in names.items()}


def test_what_cannot_be_started_is_said(learned):
    start = str(learned / "pretrain/encoder.safetensors")
    with pytest.raises(ConfigError, match="names no weights to start from"):
        checks.validate(small(pretrain__image="frozen"))
    with pytest.raises(ConfigError, match="are both set"):
        checks.validate(small(pretrain__init=start, encoder__weights=start))
    with pytest.raises(WeightsError, match=r"pretrain\.init names /nowhere, which does not exist"):
        trained.preflight(small(pretrain__init="/nowhere"))
