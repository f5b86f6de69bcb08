"""Tissue: exact fractions, and masks of drawn slides with ink, holes, dust and black."""

import os
from pathlib import Path

import numpy as np
import pytest

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import lattice, open_slide, synthetic, tissue
from tests.slides.files import damage_tile, write_tiff

GLASS, PINK = (243, 242, 244), (205, 130, 180)
INKS = {
    "blue": (40, 80, 190),
    "green": (30, 140, 70),
    "red": (215, 25, 35),
    "black": (25, 25, 30),
}


def drawn(shape=(300, 400), seed=0):
    """Glass with a pink rectangle, at 8 um/px."""
    rng = np.random.default_rng(seed)
    image = np.full((*shape, 3), GLASS, float)
    image[60:200, 80:300] = PINK
    image += rng.normal(0, 3, image.shape)
    return image


def mask_of(image, **rule):
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return tissue.tissue_mask(image, tissue.TissueRule(**rule))[0]


def agreement(mask, truth):
    """Intersection over union."""
    return (mask & truth).sum() / (mask | truth).sum()


TRUTH = np.zeros((300, 400), bool)
TRUTH[60:200, 80:300] = True


def test_plain_slide():
    assert agreement(mask_of(drawn()), TRUTH) > 0.98


def test_all_tissue_and_no_tissue():
    assert mask_of(drawn()[70:190, 90:290]).all()
    glass = np.full((300, 400, 3), GLASS) + np.random.default_rng(0).normal(0, 3, (300, 400, 3))
    assert not mask_of(glass).any()


@pytest.mark.parametrize("name", INKS)
def test_ink_on_glass_and_on_tissue_is_no_tissue(name):
    image = drawn()
    image[20:40, 20:380] = INKS[name]
    image[100:115, 60:350] = INKS[name]
    mask = mask_of(image)
    assert not mask[20:40].any()
    assert not mask[100:115].any()
    truth = TRUTH.copy()
    truth[94:121] = False
    assert agreement(mask, truth) > 0.95


def test_black_border_of_a_scanner():
    image = drawn()
    image[:, 330:] = 5
    mask = mask_of(image)
    assert not mask[:, 330:].any()
    assert agreement(mask, TRUTH) > 0.98


def test_dust_goes_and_small_holes_are_filled():
    image = drawn()
    image[250:257, 50:57] = PINK  # 56 um
    image[100:112, 150:162] = GLASS  # 96 um
    image[120:160, 200:260] = GLASS  # 320 x 480 um
    mask = mask_of(image)
    assert not mask[240:270].any()
    assert mask[95:115, 145:165].all()
    assert not mask[125:155, 205:255].any()


WARM = (243, 236, 205)
DAB, DENSE_DAB = (110, 62, 34), (46, 30, 22)
PALE_BLUE, PALE_BROWN = (218, 219, 232), (232, 224, 212)


def on_glass(glass, colours, seed=0):
    """Tissue of several colours in stripes, as TRUTH has it, on glass of some colour."""
    rng = np.random.default_rng(seed)
    image = np.full((300, 400, 3), glass, float)
    for stripe, colour in zip(
        np.array_split(np.arange(80, 300), len(colours)), colours, strict=True
    ):
        image[60:200, stripe[0] : stripe[-1] + 1] = colour
    return image + rng.normal(0, 2, image.shape)


def seen_through(glass, colours):
    """The colours of a stain on neutral glass, as tinted glass shows them."""
    return [np.array(colour) * glass / 245 for colour in colours]


def faded(colours, share):
    """Stain of which a share of the optical density is left."""
    return [245 * (np.array(colour) / 245) ** share for colour in colours]


def vignette(shape, corner):
    """What is left of the light in RGB, 1 in the middle and `corner` in the corners."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    square = (x**2 + y**2) / 2
    return 1 - (1 - np.array(corner)) * (0.7 * square + 0.3 * square**2)[..., None]


EOSIN, STROMA, NUCLEI = (214, 140, 185), (232, 190, 214), (120, 85, 160)


@pytest.mark.parametrize(
    ("glass", "colours"),
    [
        (GLASS, (DAB, PALE_BLUE)),
        (GLASS, (DENSE_DAB, PALE_BROWN)),
        (GLASS, (DENSE_DAB, DAB, PALE_BLUE)),
        (WARM, seen_through(WARM, (DENSE_DAB, DAB, PALE_BLUE))),
        (WARM, seen_through(WARM, (NUCLEI, EOSIN, STROMA))),
        ((222, 232, 244), seen_through((222, 232, 244), (NUCLEI, EOSIN, STROMA))),
        (GLASS, faded((NUCLEI, EOSIN), 0.2)),
        (WARM, seen_through(WARM, faded((NUCLEI, EOSIN), 0.2))),
        ((255, 255, 255), (NUCLEI, EOSIN, STROMA)),
        (GLASS, ((90, 130, 190), (190, 80, 95))),  # Masson
        (GLASS, ((150, 200, 175), (196, 214, 200))),  # methyl green
    ],
)
def test_a_stain_is_tissue_on_any_glass(glass, colours):
    assert agreement(mask_of(on_glass(glass, colours)), TRUTH) > 0.95


@pytest.mark.parametrize("glass", [GLASS, WARM, (255, 255, 255), (215, 225, 240)])
@pytest.mark.parametrize(
    "corner", [(1, 1, 1), (0.9, 0.85, 0.75), (0.75, 0.7, 0.6), (0.7, 0.7, 0.7)]
)
def test_glass_is_no_tissue_however_it_is_lit(glass, corner):
    shape = (250, 420)
    rng = np.random.default_rng(0)
    blank = np.full((*shape, 3), glass) * vignette(shape, corner) + rng.normal(0, 2, (*shape, 3))
    assert not mask_of(blank).any()


def test_tissue_in_a_vignette():
    image = on_glass(WARM, seen_through(WARM, (NUCLEI, EOSIN, STROMA)))
    image *= vignette(TRUTH.shape, (0.85, 0.8, 0.7))
    assert agreement(mask_of(image), TRUTH) > 0.95


def test_white_that_a_scanner_filled_in_is_not_the_glass():
    image = on_glass(WARM, seen_through(WARM, (NUCLEI, EOSIN, STROMA)))
    image[:, 330:] = 255
    image[:50] = 255
    assert agreement(mask_of(image), TRUTH) > 0.95


def test_ink_may_be_kept_and_threshold_and_closing_chosen():
    image = drawn()
    image[100:115, 60:350] = INKS["blue"]
    assert mask_of(image, ink=False)[101:114, 64:346].all()
    assert not mask_of(drawn(), threshold=150.0).any()
    gaps = drawn()
    gaps[60:200, 100:280:9] = GLASS
    gaps[60:200, 101:280:9] = GLASS
    gaps[60:200, 102:280:9] = GLASS
    gaps[60:200, 103:280:9] = GLASS
    closed, open_ = (mask_of(gaps, close_um=um)[65:195, 105:275].mean() for um in (40.0, 0.0))
    assert closed == 1
    assert open_ < 0.8


def test_fraction_is_the_exact_area():
    rng = np.random.default_rng(1)
    mask = rng.random((20, 30)) < 0.5
    found = tissue.Tissue(
        mask=mask, downsample=8.0, thumbnail=np.zeros((20, 30, 3), np.uint8), unreadable=[]
    )
    full = np.zeros((400, 400), bool)
    full[100:260, 100:340] = np.kron(mask, np.ones((8, 8), bool))
    xy = rng.integers(-40, 260, (200, 2))
    for side in (1, 3, 8, 13, 64):
        expected = [
            full[y + 100 : y + 100 + side, x + 100 : x + 100 + side].mean()
            for x, y in np.clip(xy, -40, 200)
        ]
        np.testing.assert_allclose(found.fraction(np.clip(xy, -40, 200), side), expected, atol=1e-9)


def test_detect_and_overlay(tmp_path):
    image, _ = synthetic.tissue_image(
        np.random.default_rng(0), size_px=1024, positive=False, background=0.4
    )
    path = tmp_path / "s.tif"
    synthetic.write_slide(path, image, mpp=0.5)
    with open_slide(path) as slide:
        found = tissue.detect(slide)
        cells = lattice.build(slide, hr_mpp=0.5, lr_mpp=2.0, patch_px=64, tissue=found)
    assert found.downsample == 16.0
    assert 0.5 < found.mask.mean() < 0.75
    assert found.unreadable == []
    assert 0 < len(cells) <= 16
    picture = tissue.overlay(found, cells)
    assert picture.shape == found.thumbnail.shape
    assert (picture != found.thumbnail).any(-1).mean() > 0.05


def test_no_tissue_is_an_error(tmp_path):
    path = write_tiff(tmp_path / "white.tif", [np.full((1024, 1024, 3), 240, np.uint8)])
    with open_slide(path) as slide, pytest.raises(SlideError, match="no tissue") as error:
        tissue.detect(slide)
    assert str(path) in str(error.value)
    assert "prepare.tissue_threshold below 16" in str(error.value)
    blue = np.full((1024, 1024, 3), 240, np.uint8)
    blue[200:800, 200:800] = INKS["blue"]
    path = write_tiff(tmp_path / "ink.tif", [blue])
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"prepare\.ink=False"):
        tissue.detect(slide)


def test_damaged_tile_is_listed_and_is_no_tissue(tmp_path):
    image, _ = synthetic.tissue_image(np.random.default_rng(0), size_px=1024, positive=False)
    path = tmp_path / "s.tif"
    synthetic.write_slide(path, image, mpp=0.5, levels=(1,))
    damage_tile(path, level=0, index=5, how="half")
    with open_slide(path) as slide:
        found = tissue.detect(slide)
        assert found.unreadable
        assert found.fraction(np.array([[256, 256], [768, 768]]), 256).tolist() == [0.0, 1.0]


@pytest.mark.skipif(not os.environ.get("LRMIL_TEST_SLIDES"), reason="LRMIL_TEST_SLIDES is not set")
def test_real_slide():
    with open_slide(Path(os.environ["LRMIL_TEST_SLIDES"]) / "CMU-1-Small-Region.svs") as slide:
        found = tissue.detect(slide)
        cells = lattice.build(slide, hr_mpp=0.5, lr_mpp=2.0, patch_px=256, tissue=found)
    assert 0.3 < found.mask.mean() < 0.45
    assert found.fraction(np.array([[1100, 1200], [0, 1400], [1900, 200]]), 256).tolist() == [
        1,
        0,
        0,
    ]
    assert len(cells) == 6
