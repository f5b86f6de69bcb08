"""Synthetic tissue and cohorts: the signal is in form alone, files are real slides."""

import csv
import importlib.util

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lrmil_jax.errors import DataError
from lrmil_jax.slides import open_slide, procedural, synthetic
from lrmil_jax.slides.morphology import CAPTIONS


def image_of(seed, **kwargs):
    settings = {"size_px": 512, "positive": True} | kwargs
    return synthetic.tissue_image(np.random.default_rng(seed), **settings)


def test_same_generator_same_slide():
    one, two, other = image_of(3), image_of(3), image_of(4)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert (one[0] != other[0]).any()


@pytest.mark.parametrize("background", [0.0, 0.5])
def test_lesion(background):
    for seed in range(6):
        image, lesion = image_of(seed, size_px=1024, background=background)
        assert image.shape == (1024, 1024, 3)
        share = lesion.mean() / (1 - background)
        assert 0.045 < share < 0.105
        _, clumps = ndimage.label(ndimage.binary_closing(lesion, iterations=12))
        assert clumps <= 6  # of up to three seeds; some break on the epithelium's shape
        assert not image_of(seed, positive=False, background=background)[1].any()


def test_background_is_glass():
    image, _ = image_of(0, size_px=1024, background=0.5)
    glass = image.std(-1) < 6
    assert 0.35 < ndimage.uniform_filter(glass.astype(np.float32), 15).mean() < 0.7
    assert np.median(image[:20, :20]) > 230


def test_labels_differ_only_in_form():
    """Same generator state: the epithelium is the same, so colour moves by little."""
    for seed in range(3):
        benign, tumour = (image_of(seed, size_px=1024, positive=p)[0] for p in (False, True))
        spread = [image_of(s, size_px=1024, positive=False)[0].mean() for s in range(3)]
        assert abs(benign.mean() - tumour.mean()) < 0.25 * np.std(spread)


def test_inclusions_have_equal_ink():
    rng = np.random.default_rng(0)
    offset = rng.uniform(0, 1, (400, 2))
    axis = np.arange(-20, 21, dtype=np.float32)
    y = axis[None, :, None] - offset[:, 0, None, None].astype(np.float32)
    x = axis[None, None, :] - offset[:, 1, None, None].astype(np.float32)
    radius = np.full(400, 8.0)
    five = procedural._inclusions(rng, 5, radius, y, x)
    one = procedural._inclusions(rng, 1, radius, y, x)
    np.testing.assert_allclose(five.sum((1, 2)), one.sum((1, 2)), rtol=1e-4)
    for dots, count in ((five, 5), (one, 1)):
        assert np.mean([ndimage.label(d > 0.4)[1] == count for d in dots]) > 0.9


def test_nuclei_have_equal_mean_area_and_unequal_spread():
    rng = np.random.default_rng(0)
    sizes = {}
    for kind in (procedural.BENIGN, procedural.TUMOUR):
        stamps = procedural._nucleus_stamps(rng, kind, rng.uniform(0, 1, (1500, 2)))
        sizes[kind] = (stamps > 0.2).sum((1, 2))
    benign, tumour = sizes[procedural.BENIGN], sizes[procedural.TUMOUR]
    assert benign.mean() == pytest.approx(tumour.mean(), rel=0.03)
    assert tumour.std() > 2.5 * benign.std()


@pytest.mark.parametrize("reader", ["tifffile", "openslide"])
@pytest.mark.parametrize("mpp", [0.5, 0.2325])
def test_write_slide_opens_with_its_um_per_px(tmp_path, reader, mpp):
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed")
    image, _ = image_of(0)
    path = tmp_path / "s.tif"
    synthetic.write_slide(path, image, mpp=mpp, levels=(1, 4))
    assert list(tmp_path.iterdir()) == [path]
    with open_slide(path, reader=reader) as slide:
        assert slide.mpp == pytest.approx(mpp, rel=1e-4)
        assert slide.level_downsamples == (1.0, 4.0)
        level0 = slide.read((0, 0), 512, 512).astype(float)
        level1 = slide.read((0, 0), 128, 512).astype(float)
    reduced = np.asarray(Image.fromarray(image).reduce(4))
    assert np.abs(level0 - image).mean() < 8
    assert np.abs(level1 - reduced).mean() < 6
    assert np.abs(level0.mean((0, 1)) - image.mean((0, 1))).max() < 1


def test_cohort(tmp_path):
    seen = []
    settings = {"seed": 1, "slides": 5, "size_px": 256, "slides_per_patient": 2}

    def in_turn(function, jobs):
        for job in jobs:
            function(job)
            seen.append(job["slide_id"])

    labels = synthetic.write_cohort(tmp_path / "c", **settings, run=in_turn)
    assert seen == [f"slide_{i:04d}" for i in range(5)]
    with labels.open() as file:
        rows = list(csv.DictReader(file))
    assert [r["label"] for r in rows] == ["benign", "benign", "tumour", "tumour", "benign"]
    assert len({r["patient_id"] for r in rows}) == 3
    for row in rows:
        with open_slide(labels.parent / "slides" / row["path"]) as slide:
            assert slide.dimensions == (256, 256)
        mask = np.asarray(Image.open(labels.parent / "masks" / f"{row['slide_id']}.png"))
        assert (mask.max() == 255) == (row["label"] == "tumour")

    victim = labels.parent / "slides" / rows[2]["path"]
    before = {p: p.stat().st_mtime_ns for p in labels.parent.rglob("*.tif")}
    content = victim.read_bytes()
    victim.unlink()
    synthetic.write_cohort(tmp_path / "c", **settings)
    assert victim.read_bytes() == content
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p != victim)
    with pytest.raises(DataError, match="another folder"):
        synthetic.write_cohort(tmp_path / "c", **settings | {"seed": 2})


def test_tiles(tmp_path):
    folder = synthetic.write_tiles(tmp_path / "t", seed=1, per_class=9)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == set(procedural.TISSUES)
    tiles = [np.asarray(Image.open(p)) for p in sorted(folder.glob("*/*.png"))]
    assert len(tiles) == 45
    assert all(t.shape == (64, 64, 3) for t in tiles)
    assert len({t.tobytes() for t in tiles}) == 45
    with pytest.raises(DataError, match="unknown"):
        synthetic.write_tiles(tmp_path / "u", seed=1, per_class=1, classes=["bone"])


def test_tiles_have_captions_that_tell_the_classes_apart(tmp_path):
    folder = synthetic.write_tiles(tmp_path, seed=1, per_class=2, classes=["fat", "tumour"])
    with (folder / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["fat"] * 8 + ["tumour"] * 8
    assert len({row["caption"] for row in rows}) == 16
    everything = [caption for name in procedural.TISSUES for caption in CAPTIONS[name]]
    assert len(set(everything)) == 40


def test_coarse_tiles_join_the_fine_ones(tmp_path):
    """Scale 1 stays as it is without the others; scale 4 has as many, in folders of its own."""
    fine = synthetic.write_tiles(tmp_path / "fine", seed=1, per_class=5)
    seen = []
    both = synthetic.write_tiles(
        tmp_path / "both",
        seed=1,
        per_class=5,
        scales=(1, 4),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(number, 50) for number in range(1, 51)]
    for path in fine.glob("*/*.png"):
        assert (both / path.relative_to(fine)).read_bytes() == path.read_bytes()
    coarse = sorted(both.glob("*/scale_4/*.png"))
    assert len(coarse) == 25
    assert {np.asarray(Image.open(path)).shape for path in coarse} == {(64, 64, 3)}
    with pytest.raises(DataError, match="another folder"):
        synthetic.write_tiles(both, seed=1, per_class=5)


@pytest.mark.parametrize("scales", [(), (1, 1), (0,), (1, 64)])
def test_scales_that_cannot_be_are_refused(tmp_path, scales):
    with pytest.raises(DataError, match=r"tile scales \(.*such as \(1, 4\)"):
        synthetic.write_tiles(tmp_path, seed=1, per_class=2, scales=scales)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_tile_is_mostly_of_its_class(tmp_path, monkeypatch, scale):
    """Painted white where the field is of the class, so the mean grey is its share."""

    def white(rng, tissue):
        return np.repeat((tissue == procedural.LYMPHOID)[..., None] * np.uint8(255), 3, 2)

    monkeypatch.setattr(synthetic, "paint", white)
    folder = synthetic.write_tiles(
        tmp_path, seed=3, per_class=24, classes=["lymphoid"], scales=(scale,)
    )
    shares = [np.asarray(Image.open(path)).mean() / 255 for path in folder.rglob("*.png")]
    assert len(shares) == 24
    assert 0.69 < min(shares) < 0.999 < max(shares)


def test_a_coarse_tile_is_what_the_slide_shows_there(tmp_path, monkeypatch):
    """The same field painted once: a tile at scale 4 is the slide's level of 4, but for JPEG."""
    image, _ = image_of(5)
    synthetic.write_slide(tmp_path / "s.tif", image, mpp=0.5, levels=(1, 4))
    monkeypatch.setattr(synthetic, "paint", lambda rng, tissue: image)
    monkeypatch.setattr(synthetic, "random_map", lambda rng, **_: np.zeros((512, 512), np.int8))
    folder = synthetic.write_tiles(
        tmp_path / "t", seed=1, per_class=4, classes=["stroma"], scales=(4,)
    )
    tiles = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    with open_slide(tmp_path / "s.tif") as slide:
        for number, tile in enumerate(tiles):
            row, column = divmod(number, 2)
            shown = slide.read((256 * column, 256 * row), 64, 256).astype(float)
            assert np.abs(shown - tile).mean() < 6
            assert np.abs(shown - tiles[3 - number]).mean() > 12
