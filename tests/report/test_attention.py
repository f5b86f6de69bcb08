"""The picture of attention beside lesions: its size, its panels and its outlines."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.report import attention

MODELS = ("teacher", "no_distillation", "lrmil")
GREY = 180


def slide(*, width=80, height=80, mask_px=None, models=MODELS, name="slide_0000"):
    """A grey slide of 4 x 4 patches whose lesion is the lower right quarter."""
    columns, rows = mask_px or (width, height)
    mask = np.zeros((rows, columns), bool)
    mask[rows // 2 :, columns // 2 :] = True
    x, y = np.meshgrid(np.arange(4) * 2 * width, np.arange(4) * 2 * height)
    xy = np.stack([x, y], -1).reshape(-1, 2)
    return attention.LesionSlide(
        name=name,
        thumbnail=np.full((height, width, 3), GREY, np.uint8),
        downsample=8.0,
        mask=mask,
        xy=xy,
        side=2 * max(width, height),
        attention={model: np.arange(16) / 120 for model in models},
        auc={model: None if model == "teacher" else 0.8125 for model in models},
    )


def saved(path, slides):
    attention.save(path, slides)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share_of(pixels, colour):
    return (pixels == colour).all(-1).mean()


@pytest.mark.parametrize(("count", "models", "width"), [(1, 3, 1000), (3, 3, 1000), (2, 1, 500)])
def test_as_wide_as_its_columns_and_as_high_as_its_rows(tmp_path, count, models, width):
    pixels = saved(tmp_path / "a.png", [slide(models=MODELS[:models])] * count)
    assert pixels.shape[1] == width
    assert 240 * count < pixels.shape[0] < 280 * count + 130


def test_the_slide_is_there_with_its_lesion_outlined_and_a_heatmap_per_model(tmp_path):
    pixels = saved(tmp_path / "deep" / "a.png", [slide()])
    first, others = pixels[60:285, :250], pixels[60:285, 250:]
    assert share_of(first, GREY) > 0.6
    assert share_of(others, GREY) < 0.001  # all patches are coloured
    assert (others[..., 0] - others[..., 2] > 50).any()
    assert (others[..., 2] - others[..., 0] > 50).any()
    # The outline runs down and along the middle: black on every panel.
    for panel in range(4):
        black = (pixels[60:285, 250 * panel : 250 * (panel + 1)] < 40).all(-1)
        lines = np.argwhere(black)
        assert len(lines) > 200
        assert np.abs(np.median(lines[lines[:, 0] > 140][:, 1]) - 125) < 60
        assert black[:70].mean() < 0.005  # none in the upper half


@pytest.mark.parametrize("mask_px", [(20, 20), (800, 800)])
def test_a_mask_of_any_size_gives_the_same_outline(tmp_path, mask_px):
    same = saved(tmp_path / "a.png", [slide()])
    other = saved(tmp_path / "b.png", [slide(mask_px=mask_px)])
    assert (np.abs(same - other).max(-1) > 60).mean() < 0.005


def test_the_smallest_lesion_is_drawn_and_none_is_no_error(tmp_path):
    empty = dataclasses.replace(slide(), mask=np.zeros((800, 800), bool))
    tiny = dataclasses.replace(empty, mask=empty.mask.copy())
    tiny.mask[500, 300] = True
    blank, dotted = (saved(tmp_path / "a.png", [one]) for one in (empty, tiny))
    assert (np.abs(blank - dotted).max(-1) > 100).sum() > 8


@pytest.mark.parametrize(("width", "height"), [(400, 60), (60, 400)])
def test_long_slides_stay_on_the_page(tmp_path, width, height):
    pixels = saved(tmp_path / "a.png", [slide(width=width, height=height)] * 3)
    assert pixels.shape[1] == 1000
    assert 400 < pixels.shape[0] < 1300


def test_a_long_name_is_cut(tmp_path):
    short = saved(tmp_path / "a.png", [slide()])
    name = "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291"
    assert saved(tmp_path / "b.png", [slide(name=name)]).shape == short.shape
