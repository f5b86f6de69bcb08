"""Folders of labelled tiles: found, split, read, augmented."""

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.data import tiles
from lrmil_jax.data.source import training_batches
from lrmil_jax.errors import DataError


def write_tiles(folder, counts, *, px=16):
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((px, px, 3), 40 * number + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


def test_tiles_are_listed_by_class_and_name(tmp_path):
    write_tiles(tmp_path, {"stroma": 3, "fat": 2})
    (tmp_path / "fat" / "notes.txt").write_text("no tile")
    (tmp_path / "synthetic.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    found = tiles.TileFolder.open(tmp_path)
    assert found.classes == ("fat", "stroma")
    assert [path.name for path in found.paths] == ["000.png", "001.png", "000.png", "001.png",
                                                   "002.png"]  # fmt: skip
    assert found.labels.tolist() == [0, 0, 1, 1, 1]


def test_folders_that_cannot_teach_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.tiles is .*no folder"):
        tiles.TileFolder.open(tmp_path / "nowhere")
    write_tiles(tmp_path / "one", {"fat": 5})
    with pytest.raises(DataError, match="1 class folders; at least 2"):
        tiles.TileFolder.open(tmp_path / "one")
    write_tiles(tmp_path / "few", {"fat": 5, "stroma": 1})
    with pytest.raises(DataError, match="stroma has 1 tiles"):
        tiles.TileFolder.open(tmp_path / "few")


def test_splits_hold_the_same_share_of_each_class(tmp_path):
    found = tiles.TileFolder.open(write_tiles(tmp_path, {"a": 20, "b": 40, "c": 3}))
    train, val = found.split(share=0.1, seed=0)
    assert sorted([*train, *val]) == list(range(63))
    assert np.bincount(found.labels[val]).tolist() == [2, 4, 1]
    again = found.split(share=0.1, seed=0)
    np.testing.assert_array_equal(again[1], val)
    assert (found.split(share=0.1, seed=1)[1] != val).any()


def test_tiles_are_read_as_rgb_and_resized(tmp_path):
    folder = write_tiles(tmp_path, {"a": 2, "b": 2})
    Image.fromarray(np.full((32, 32), 200, np.uint8)).save(folder / "b" / "001.png")
    source = tiles.TileSource(tiles.TileFolder.open(folder), np.array([0, 3]), px=16)
    assert len(source) == 2
    assert source[0]["label"] == 0
    assert (source[0]["image"] == 0).all()
    assert source[1]["image"].shape == (16, 16, 3)
    assert (source[1]["image"] == 200).all()


@pytest.mark.parametrize("damage", ["empty", "text", "half", "middle"])
def test_a_broken_tile_is_named(tmp_path, damage):
    folder = write_tiles(tmp_path, {"a": 2, "b": 2})
    path = folder / "a" / "001.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = bytearray(path.read_bytes())
    data[200:900] = bytes(700) if damage == "middle" else data[200:900]
    content = {"empty": b"", "text": b"no image", "half": data[: len(data) // 2], "middle": data}
    path.write_bytes(bytes(content[damage]))
    source = tiles.TileSource(tiles.TileFolder.open(folder), np.arange(4), px=64)
    with pytest.raises(DataError, match=r"001\.png cannot be read"):
        source[1]


def test_augmentation_turns_mirrors_and_shifts_colours():
    corner = np.full((8, 8, 3), 100, np.uint8)
    corner[:2, :4] = 200
    original = corner.copy()
    outlines = set()
    for seed in range(64):
        image = tiles.Augment().random_map(
            {"image": corner, "label": 1}, np.random.default_rng(seed)
        )["image"]
        assert image.dtype == np.uint8
        bright = image[..., 0] > 150
        assert bright.sum() == 8
        assert len(np.unique(image.reshape(-1, 3), axis=0)) == 2
        outlines.add(bright.tobytes())
    assert len(outlines) == 8
    np.testing.assert_array_equal(corner, original)


def test_colours_are_clipped_not_wrapped():
    white, black = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    for seed in range(32):
        for image in (white, black):
            changed = tiles.Augment().random_map({"image": image}, np.random.default_rng(seed))
            distance = np.abs(changed["image"].astype(int) - image).max()
            assert distance <= 255 - 0.9 * 255 + 12 + 1


def test_batches_are_seeded_and_cover_an_epoch(tmp_path):
    found = tiles.TileFolder.open(write_tiles(tmp_path, {"a": 4, "b": 4}))
    source = tiles.TileSource(found, np.arange(8), px=16)

    def run(seed):
        batches = iter(
            training_batches(
                source, batch=4, seed=seed, steps=4, threads=2, augment=tiles.Augment()
            )
        )
        return [next(batches) for _ in range(4)]

    first, again, other = run(0), run(0), run(1)
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])
    assert np.concatenate([b["label"] for b in first[:2]]).sum() == 4
    assert any((a["image"] != b["image"]).any() for a, b in zip(first, other, strict=True))
