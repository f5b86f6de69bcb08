"""The lattice against hand-made values and a plain loop."""

import dataclasses
import re

import numpy as np
import pytest

from lrmil_jax.errors import ConfigError, SlideError
from lrmil_jax.slides import lattice
from lrmil_jax.slides.tissue import Tissue


@dataclasses.dataclass
class FakeSlide:
    mpp: float
    dimensions: tuple[int, int]
    path: str = "fake.svs"


def build(mpp, dimensions, **kwargs):
    settings = {"hr_mpp": 0.5, "lr_mpp": 2.0, "patch_px": 256} | kwargs
    return lattice.build(FakeSlide(mpp, dimensions), **settings)


def make_tissue(mask, downsample):
    thumbnail = np.zeros((*mask.shape, 3), np.uint8)
    return Tissue(mask=mask, downsample=downsample, thumbnail=thumbnail, unreadable=[])


@pytest.mark.parametrize(
    ("mpp", "child", "cell"),
    [
        (0.5, 256, 1024),
        (0.499, 257, 1028),
        (0.2325, 551, 2204),
        (0.25, 512, 2048),
        (0.5015, 255, 1020),
    ],
)
def test_child_first_and_cell_exactly_r_children(mpp, child, cell):
    cells = build(mpp, (5000, 5000))
    assert (cells.child_side, cells.lr_side) == (child, cell)


def test_golden_small_slide():
    # 2 x 1 cells of 8 px; children of 4 px; the slide is 13 x 7 px.
    cells = build(1.0, (13, 7), hr_mpp=1.0, lr_mpp=2.0, patch_px=4)
    assert cells.lr_xy.tolist() == [[0, 0], [8, 0]]
    assert cells.child_xy[1].tolist() == [[[8, 0], [12, 0]], [[8, 4], [12, 4]]]
    # Centres: x = 10 and 14 against a width of 13, y = 2 and 6 against a height of 7.
    assert cells.child_mask[0].tolist() == [[True, True], [True, True]]
    assert cells.child_mask[1].tolist() == [[True, False], [True, False]]
    assert np.issubdtype(cells.lr_xy.dtype, np.integer)


def test_centre_on_the_edge_is_outside():
    cells = build(1.0, (14, 8), hr_mpp=1.0, lr_mpp=2.0, patch_px=4)
    assert cells.child_mask[1].tolist() == [[True, False], [True, False]]
    # A cell none of whose children has its centre inside is dropped: 9 px are 8 and one more.
    assert build(1.0, (9, 8), hr_mpp=1.0, lr_mpp=2.0, patch_px=4).lr_xy.tolist() == [[0, 0]]


@pytest.mark.parametrize("r", [2, 4, 8])
def test_against_a_plain_loop(r):
    rng = np.random.default_rng(r)
    mask = rng.random((40, 60)) < 0.4
    tissue = make_tissue(mask, 4.0)
    cells = build(
        1.0, (237, 158), hr_mpp=1.0, lr_mpp=float(r), patch_px=8, tissue=tissue, min_tissue=0.5
    )
    full = np.zeros((512, 512), bool)
    full[:160, :240] = np.kron(mask, np.ones((4, 4), bool))
    expected = []
    for y in range(0, 158, 8 * r):
        for x in range(0, 237, 8 * r):
            children = [
                [
                    x + 8 * u + 4 < 237
                    and y + 8 * v + 4 < 158
                    and full[y + 8 * v : y + 8 * v + 8, x + 8 * u : x + 8 * u + 8].mean() >= 0.5
                    for u in range(r)
                ]
                for v in range(r)
            ]
            if np.any(children):
                expected.append(((x, y), children))
    assert [tuple(xy) for xy in cells.lr_xy.tolist()] == [xy for xy, _ in expected]
    np.testing.assert_array_equal(cells.child_mask, [children for _, children in expected])


def test_children_tile_their_cell():
    cells = build(0.499, (9000, 7000))
    offset = cells.child_xy - cells.lr_xy[:, None, None]
    v, u = np.indices((4, 4))
    assert (offset == np.stack([u, v], -1) * cells.child_side).all()


def test_ratio_must_be_2_4_or_8():
    for lr_mpp in (0.5, 1.5, 8.0, 0.25):
        with pytest.raises(ConfigError, match="2, 4 or 8"):
            build(0.5, (5000, 5000), lr_mpp=lr_mpp)
    with pytest.raises(ConfigError):
        build(0.5, (5000, 5000), hr_mpp=0.0)


def test_slide_smaller_than_a_cell():
    with pytest.raises(SlideError, match=r"fake.svs: 1000 x 900 px is smaller"):
        build(0.5, (1000, 900))
    assert len(build(0.5, (1000, 1024))) == 1


def test_no_patch_with_enough_tissue():
    mask = np.zeros((64, 64), bool)
    mask[3, 3] = True
    with pytest.raises(SlideError, match="no tissue fills 25%"):
        build(0.5, (2048, 2048), tissue=make_tissue(mask, 32.0))


def test_check_resolution():
    lattice.check_resolution(FakeSlide(0.55, (9, 9)), 0.5, "HR")
    with pytest.raises(
        SlideError, match=r"0\.56 um/px is too coarse for HR.*upsample=True.*of 0\.51"
    ):
        lattice.check_resolution(FakeSlide(0.56, (9, 9)), 0.5, "HR")
    lattice.check_resolution(FakeSlide(1.0, (9, 9)), 0.5, "HR", upsample=True)
    with pytest.raises(SlideError, match=r"1\.01 um/px is too coarse for HR") as caught:
        lattice.check_resolution(FakeSlide(1.01, (9, 9)), 0.5, "HR", upsample=True)
    assert "upsample" not in str(caught.value)


@pytest.mark.parametrize("mpp", [0.5, 0.4992, 0.97, 0.56, 0.2525, 1.21, 3.9])
def test_the_geometry_that_is_advised_is_taken(mpp):
    """As coarse as it must be, and no coarser by a hundredth."""
    with pytest.raises(SlideError) as caught:
        lattice.check_resolution(FakeSlide(mpp, (9, 9)), mpp / 1.5, "HR")
    advised = float(re.search(r"geometry\.hr_mpp of ([\d.]+) and more", str(caught.value))[1])
    assert mpp / 1.1 <= advised < mpp / 1.1 + 0.011
    lattice.check_resolution(FakeSlide(mpp, (9, 9)), advised, "HR")


@pytest.mark.parametrize(("mpp", "ending"), [(0.9, ", without prepare.upsample."), (1.1, ".")])
def test_a_models_settings_cannot_be_chosen(mpp, ending):
    with pytest.raises(SlideError) as caught:
        lattice.check_resolution(FakeSlide(mpp, (9, 9)), 0.5, "HR", of_model=True)
    said = str(caught.value).partition("; ")[2]
    assert said == f"leave the slide out: the model was trained for these patches{ending}"
