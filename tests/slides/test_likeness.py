"""Fingerprints of thumbnails: the same tissue is known again, different tissue is not."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lrmil_jax.slides import likeness, synthetic
from lrmil_jax.slides.tissue import TissueRule, tissue_mask


def section(seed, side=160):
    """A thumbnail of tissue of its own in an outline that all share, and where it is."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(3, side, side))
    texture = sum(
        width * ndimage.gaussian_filter(one, width)
        for one, width in zip(noise, (3, 6, 12), strict=True)
    )
    y, x = np.mgrid[:side, :side] / side - 0.5
    tissue = (x / 0.42) ** 2 + (y / 0.33) ** 2 < 1
    grey = np.where(tissue, 150 + 28 * texture / texture.std(), 242).clip(0, 255)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8), tissue


def alike(one, other):
    """Likeness of two (thumbnail, tissue)."""
    vectors = likeness.vectors([likeness.fingerprint(*one), likeness.fingerprint(*other)])
    return float(likeness.compare(vectors[0], vectors[1:])[0])


def resized(thumbnail, tissue, factor):
    size = tuple(round(n * factor) for n in thumbnail.shape[1::-1])
    picture = np.asarray(Image.fromarray(thumbnail).resize(size, Image.Resampling.BICUBIC))
    return picture, np.asarray(Image.fromarray(tissue).resize(size))


def compressed(thumbnail, quality):
    file = io.BytesIO()
    Image.fromarray(thumbnail).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_the_same_picture_is_wholly_alike():
    assert alike(section(0), section(0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda picture, tissue: (compressed(picture, 30), tissue), 0.98),
        (lambda picture, tissue: ((picture * 0.8 + 20).astype(np.uint8), tissue), 0.98),
        (lambda picture, tissue: resized(picture, tissue, 0.5), 0.98),
        (lambda picture, tissue: resized(picture, tissue, 1.07), 0.98),
        (lambda picture, tissue: (picture[::-1, ::-1], tissue[::-1, ::-1]), 0.98),
        (lambda picture, tissue: (np.pad(picture, ((9, 60), (44, 2), (0, 0)), constant_values=242),
                                  np.pad(tissue, ((9, 60), (44, 2)))), 0.98),
        (lambda picture, tissue: (picture[:, :-24], tissue[:, :-24]), likeness.ALIKE),
    ],
    ids=["compressed", "paler", "half", "larger", "turned", "margins", "cut"],
)  # fmt: skip
def test_the_same_tissue_is_known_again(change, least):
    for seed in range(5):
        picture, tissue = section(seed)
        assert alike((picture, tissue), change(picture, tissue)) >= least


def test_different_tissue_of_one_outline_is_not_alike():
    prints = [likeness.fingerprint(*section(seed)) for seed in range(40)]
    vectors = likeness.vectors(prints)
    for place in range(39):
        assert likeness.compare(vectors[place], vectors[place + 1 :]).max() < 0.65
    places, values = likeness.pairs(prints)
    assert len(places) == len(values) == 0


def test_pairs_among_slides_and_between_two_sets():
    prints = [likeness.fingerprint(*section(seed)) for seed in (0, 1, 2, 1, 0)]
    places, values = likeness.pairs(prints)
    assert places.tolist() == [[0, 4], [1, 3]]
    np.testing.assert_allclose(values, 1, atol=1e-5)
    assert likeness.pairs(prints[:3], prints[3:])[0].tolist() == [[0, 1], [1, 0]]
    assert likeness.pairs([], prints)[0].shape == (0, 2)
    assert likeness.pairs(prints, [])[0].shape == (0, 2)


def test_an_even_thumbnail_is_like_nothing():
    even = np.full((40, 40, 3), 180, np.uint8), np.ones((40, 40), bool)
    assert alike(even, even) == 0
    assert alike(even, section(0)) == 0


def test_a_fingerprint_is_short_text():
    assert len(likeness.fingerprint(*section(0))) < 400


@pytest.mark.slow
def test_procedural_slides_of_one_stain_are_no_twins():
    prints = []
    for number in range(60):
        image, _ = synthetic.tissue_image(
            np.random.default_rng([5, number]), size_px=1024, positive=number % 2 == 1
        )
        small = synthetic.reduced(image, 16)
        prints.append(likeness.fingerprint(small, tissue_mask(small, TissueRule())[0]))
    assert len(likeness.pairs(prints)[0]) == 0
