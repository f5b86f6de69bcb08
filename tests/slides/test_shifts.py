"""Stains parted and put together, and slides as another laboratory gives them."""

import numpy as np
import pytest
from skimage.color import rgb2hed

from lrmil_jax.errors import ConfigError
from lrmil_jax.slides import shifts, stain


@pytest.fixture(scope="module")
def tissue():
    rng = np.random.default_rng(0)
    return rng.integers(40, 250, (64, 96, 3)).astype(np.uint8)


def test_amounts_are_those_of_scikit_image_but_for_the_scale_of_light(tissue):
    """rgb2hed takes light from 1e-6 to 1, in units of its logarithm, and cuts off below 0."""
    ours, theirs = stain.amounts(tissue), rgb2hed(tissue)
    inside = theirs > 0.05
    share = ours[inside] / theirs[inside] / -np.log(1e-6)
    np.testing.assert_allclose(np.median(share), 1, atol=0.01)
    assert np.corrcoef(ours[inside], theirs[inside])[0, 1] > 0.9999


def test_nothing_but_rounding_changes_with_factors_of_one(tissue):
    same = stain.restained(tissue, (1, 1, 1)).astype(int)
    assert np.abs(same - tissue).max() <= 1


def test_twice_the_haematoxylin_is_measured_again():
    pure = stain.coloured(np.full((4, 4, 3), (0.4, 0.3, 0.0), np.float32))
    more = stain.restained(pure, (2, 1, 1))
    np.testing.assert_allclose(stain.amounts(more)[0, 0], [0.8, 0.3, 0], atol=0.03)


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_stronger_shifts_are_farther_and_the_same_seed_gives_the_same(tissue, name):
    away = []
    for strength in shifts.STRENGTHS:
        shifted = shifts.shifted(tissue, name, strength=strength, seed=3)
        assert shifted.dtype == np.uint8
        assert shifted.shape == tissue.shape
        again = shifts.shifted(tissue, name, strength=strength, seed=3)
        np.testing.assert_array_equal(shifted, again)
        away.append(np.abs(shifted.astype(int) - tissue).mean())
    assert 0 < away[0] < away[1] < away[2]


def test_a_shift_that_is_not_there_is_said(tissue):
    with pytest.raises(ConfigError, match="no shift 'fog' of strength 1"):
        shifts.shifted(tissue, "fog", strength=1, seed=0)
    with pytest.raises(ConfigError, match="no shift 'blur' of strength 4"):
        shifts.shifted(tissue, "blur", strength=4, seed=0)
