"""Composed slides: pools that share no field, lesions where they are said to be."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax.errors import DataError
from lrmil_jax.slides import mosaic, open_slide

COLOURS = {"normal": (200, 120, 160), "oscc": (90, 40, 140)}
RECIPE = mosaic.MosaicRecipe(fields=4, field_px=64, positive_share=0.2)


@pytest.fixture
def fields(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / "fields" / name).mkdir(parents=True)
        for number in range(24):
            picture = np.full((32, 32, 3), colour, np.uint8)
            Image.fromarray(picture).save(tmp_path / "fields" / name / f"{number}.png")
    return tmp_path / "fields"


def test_pools_share_no_field_and_lose_none(fields):
    pools = mosaic.part_fields(fields, RECIPE)
    for name in COLOURS:
        parts = [set(pools[pool][name]) for pool in mosaic.POOLS]
        assert all(parts)
        assert sum(len(part) for part in parts) == len(set().union(*parts)) == 24


def test_lesion_mask_is_where_the_positive_fields_are(fields):
    pools = mosaic.part_fields(fields, RECIPE)
    image, lesion = mosaic.compose(
        np.random.default_rng(0), pools["train"], negative="normal", positive="oscc", recipe=RECIPE
    )
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
    # 10 fields of each class are for the encoder, 16 tiles each.
    assert len(list((tmp_path / "out" / "tiles" / "normal").iterdir())) == 160


def test_wrong_class_is_named(fields, tmp_path):
    with pytest.raises(DataError, match="normal, oscc"):
        mosaic.write_cohort(fields, tmp_path, positive="tumour", slides=(2, 2, 2), recipe=RECIPE)
