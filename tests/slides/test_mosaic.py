"""Composed slides: pools that share no field, lesions where they are said to be."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from lrmil_jax.errors import DataError
from lrmil_jax.slides import mosaic, open_slide
from lrmil_jax.slides.fields import POOLS, part_fields

COLOURS = {"normal": (200, 120, 160), "oscc": (90, 40, 140)}
RECIPE = mosaic.MosaicRecipe(fields=4, field_px=64, positive_share=0.2)


@pytest.fixture
def fields(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / "fields" / name).mkdir(parents=True)
        for number in range(24):
            path = tmp_path / "fields" / name / f"{number}.png"
            Image.fromarray(field(colour)).save(path, pnginfo=told(number))
    return tmp_path / "fields"


def field(colour):
    return np.full((32, 32, 3), colour, np.uint8)


def told(number):
    """Text beside the pixels: files that look alike and are no copies."""
    info = PngImagePlugin.PngInfo()
    info.add_text("number", str(number))
    return info


def parted(fields, recipe):
    return part_fields(fields, shares=recipe.shares, run_length=recipe.run_length, seed=recipe.seed)


def test_pools_share_no_field_and_lose_none(fields):
    pools = parted(fields, RECIPE)
    for name in COLOURS:
        parts = [set(pools[pool][name]) for pool in POOLS]
        assert all(parts)
        assert sum(len(part) for part in parts) == len(set().union(*parts)) == 24


def test_lesion_mask_is_where_the_positive_fields_are(fields):
    pools = parted(fields, RECIPE)
    placed = mosaic.place_fields(
        np.random.default_rng(0), pools["train"], negative="normal", positive="oscc", recipe=RECIPE
    )
    image, lesion = mosaic.compose(placed, RECIPE)
    assert lesion.mean() == 3 / 16  # 0.2 of 16 fields, rounded
    np.testing.assert_array_equal(image[lesion], np.broadcast_to(COLOURS["oscc"], (3 * 64**2, 3)))
    np.testing.assert_array_equal(
        image[~lesion], np.broadcast_to(COLOURS["normal"], (13 * 4096, 3))
    )


def test_cohort_is_a_label_csv_with_slides_that_open(fields, tmp_path):
    labels = mosaic.write_cohort(
        fields, tmp_path / "out", positive="oscc", slides=(2, 2, 2), recipe=RECIPE
    )
    table = pd.read_csv(labels)
    assert table.groupby("fold_1").label.apply(sorted).tolist() == [["normal", "oscc"]] * 3
    for slide_id in table.slide_id:
        with open_slide(tmp_path / "out" / "slides" / f"{slide_id}.tif") as slide:
            assert slide.dimensions == (256, 256)
            assert slide.mpp == pytest.approx(0.5)
    placed = pd.read_csv(tmp_path / "out" / "fields.csv")
    assert placed.groupby("slide_id").size().tolist() == [16] * 6
    assert (placed.path.str.startswith("oscc/") == placed.lesion).all()
    assert all((fields / path).is_file() for path in placed.path)
    # 10 fields of each class are for the encoder, 16 tiles each.
    assert len(list((tmp_path / "out" / "tiles" / "normal").iterdir())) == 160


def test_tables_without_pictures_are_the_same(fields, tmp_path):
    for name, pictures in (("with", True), ("without", False)):
        mosaic.write_cohort(
            fields, tmp_path / name, positive="oscc", slides=(2, 1, 1), recipe=RECIPE,
            pictures=pictures,
        )  # fmt: skip
    written = sorted(path.name for path in (tmp_path / "without").iterdir())
    assert written == ["fields.csv", "labels.csv", "recipe.json"]
    for name in written:
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "with" / name).read_bytes()


def test_wrong_class_is_named(fields, tmp_path):
    with pytest.raises(DataError, match="normal, oscc"):
        mosaic.write_cohort(fields, tmp_path, positive="tumour", slides=(2, 2, 2), recipe=RECIPE)


def test_copies_and_contradictions_are_left_out(fields, caplog):
    """A picture that is there twice counts once; one that is in both classes has no class."""
    both = (fields / "normal" / "3.png").read_bytes()
    (fields / "oscc" / "copy_of_3.png").write_bytes(both)
    (fields / "normal" / "twin.png").write_bytes((fields / "normal" / "5.png").read_bytes())
    pools = parted(fields, RECIPE)
    names = [path.name for pool in POOLS for path in pools[pool]["normal"]]
    assert len(names) == 23
    assert "3.png" not in names
    assert ("5.png" in names) != ("twin.png" in names)
    assert "3 pictures left out" in caplog.text


def test_runs_of_numbers_stay_together(fields):
    """24 fields in runs of 4 are 6 runs, whole in one pool each."""
    recipe = dataclasses.replace(RECIPE, run_length=4, shares=(0.34, 0.33, 0.17, 0.16))
    pools = parted(fields, recipe)
    for name in COLOURS:
        for run in range(6):
            members = {fields / name / f"{number}.png" for number in range(4 * run, 4 * run + 4)}
            assert sum(members <= set(pools[pool][name]) for pool in POOLS) == 1
    with pytest.raises(DataError, match="pool is empty; use shorter runs"):
        parted(fields, dataclasses.replace(RECIPE, run_length=24))


def test_even_colour_leaves_nothing_to_colour(fields, tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for path in (fields / name).iterdir():
            noisy = np.clip(rng.normal(colour, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(path)
    recipe = dataclasses.replace(RECIPE, even_colour=True)
    pools = parted(fields, recipe)
    placed = mosaic.place_fields(
        rng, pools["train"], negative="normal", positive="oscc", recipe=recipe
    )
    image, lesion = mosaic.compose(placed, recipe)
    np.testing.assert_allclose(image[lesion].mean(0), image[~lesion].mean(0), atol=1.0)
    np.testing.assert_allclose(image[lesion].std(0), image[~lesion].std(0), atol=1.5)


def test_whole_fields_for_the_encoder(fields, tmp_path):
    recipe = dataclasses.replace(RECIPE, whole_fields=True)
    mosaic.write_cohort(fields, tmp_path / "o", positive="oscc", slides=(2, 2, 2), recipe=recipe)
    tiles = list((tmp_path / "o" / "tiles" / "normal").iterdir())
    assert len(tiles) == 10
    for path in tiles:
        with Image.open(path) as tile:
            assert tile.size == (64, 64)


@pytest.mark.parametrize(("turns", "mirrored"), [(0, False), (1, False), (0, True), (3, True)])
def test_a_field_is_turned_and_mirrored_as_it_is_told(tmp_path, turns, mirrored):
    corners = np.zeros((64, 64, 3), np.uint8)
    corners[:32, :32], corners[:32, 32:], corners[32:, :32] = 50, 100, 150
    Image.fromarray(corners).save(tmp_path / "field.png")
    found = mosaic.read_field(tmp_path / "field.png", RECIPE, turns=turns, mirrored=mirrored)
    # Upper left, upper right, lower left, lower right.
    wanted = {
        (0, False): [50, 100, 150, 0],
        (1, False): [100, 0, 50, 150],
        (0, True): [100, 50, 0, 150],
        (3, True): [50, 150, 100, 0],
    }[turns, mirrored]
    np.testing.assert_array_equal(found[16::32, 16::32, 0].ravel(), wanted)


def test_unturned_fields_lie_as_they_are(fields):
    recipe = dataclasses.replace(RECIPE, turned=False)
    pools = parted(fields, recipe)
    rng = np.random.default_rng(0)
    placed = mosaic.place_fields(rng, pools["val"], negative="normal", positive=None, recipe=recipe)
    assert {(field.turns, field.mirrored) for field in placed} == {(0, False)}
