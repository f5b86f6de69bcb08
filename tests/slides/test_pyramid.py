"""Levels that are right are passed; shifted, mirrored and foreign ones are named."""

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.slides import open_slide, pyramid, synthetic
from tests.slides.files import damage_tile, write_tiff


@pytest.fixture(scope="module")
def image():
    return synthetic.tissue_image(
        np.random.default_rng(3), size_px=2048, positive=True, background=0.3
    )[0]


def faults(path):
    with open_slide(path) as slide:
        thumbnail = slide.thumbnail(8.0)
        return pyramid.faults(slide, thumbnail.image, thumbnail.downsample)


def written(tmp_path, image, change, *, changed=4, levels=(1, 4, 16), **kwargs):
    """A slide one of whose levels is changed."""
    images = [change(synthetic.reduced(image, n)) if n == changed else synthetic.reduced(image, n)
              for n in levels]  # fmt: skip
    return write_tiff(tmp_path / "s.tif", [np.ascontiguousarray(one) for one in images], **kwargs)


def shifted(x, y):
    return lambda image: np.roll(image, (y, x), axis=(0, 1))


@pytest.mark.parametrize("levels", [(1,), (1, 2), (1, 4, 16), (1, 16)])
def test_right_levels(tmp_path, image, levels):
    assert faults(written(tmp_path, image, np.asarray, levels=levels)) == []


def test_levels_of_other_filters_compression_and_light_are_right(tmp_path, image):
    def otherwise(small):
        full = Image.fromarray(image)
        resized = full.resize(small.shape[1::-1], Image.Resampling.NEAREST)
        return np.clip(np.asarray(resized, float) * 0.9 + 12, 0, 255).astype(np.uint8)

    path = written(tmp_path, image, otherwise)
    assert faults(path) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shifted(6, 0), "level 1 is shifted by about (20, 0) level-0 px (against level 0)"),
        (shifted(-10, 12), "level 1 is shifted by about (-40, 50) level-0 px (against level 0)"),
        (shifted(0, 60), "level 1 is shifted by about (0, 240) level-0 px (against level 0)"),
        (lambda one: one[:, ::-1], "level 1 is mirrored left to right (against level 0)"),
        (lambda one: one[::-1], "level 1 is mirrored top to bottom (against level 0)"),
        (lambda one: one[::-1, ::-1], "level 1 is mirrored both ways"),
    ],
)
def test_a_level_that_is_not_where_it_should_be(tmp_path, image, change, sentence):
    said = faults(written(tmp_path, image, change))
    assert said[0].startswith(sentence)


@pytest.mark.parametrize(("changed", "level"), [(16, 2), (1, 1)])
def test_which_level_is_named(tmp_path, image, changed, level):
    said = faults(written(tmp_path, image, lambda one: one[:, ::-1], changed=changed))
    assert said == [f"level {level} is mirrored left to right (against level {level - 1})"]


def test_a_level_of_another_slide_and_a_damaged_one(tmp_path, image):
    other = synthetic.tissue_image(np.random.default_rng(9), size_px=512, positive=False)[0]
    path = written(tmp_path, image, lambda _: other)
    assert faults(path)[0] == "level 1 shows something else (against level 0)"
    path = written(tmp_path, image, np.asarray, levels=(1, 4))
    for index in range(64):
        damage_tile(path, level=0, index=index, how="zeros")
    assert "is damaged: " in faults(path)[0]


def test_a_slide_without_contrast_says_nothing(tmp_path):
    flat = np.full((1024, 1024, 3), 240, np.uint8)
    assert faults(written(tmp_path, flat, np.asarray)) == []
