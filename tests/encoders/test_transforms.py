"""The transform bound to an encoder."""

import jax
import numpy as np
import pytest
from PIL import Image

from lrmil_jax.encoders import Transform
from lrmil_jax.errors import ConfigError


def test_by_hand():
    transform = Transform(1, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    got = transform.normalise(np.array([[[[255, 0, 51]]]], np.uint8))
    np.testing.assert_allclose(got, [[[[1.0, 0.0, -0.4]]]], rtol=1e-6)


@pytest.mark.parametrize(("size", "px"), [(64, 32), (48, 64), (50, 33)])
def test_resize_is_pillows_up_to_its_rounding(size, px):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))
    plain = Transform(px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    got = 255 * np.asarray(jax.jit(plain.normalise)(image[None]))[0]
    expected = Image.fromarray(image).resize((px, px), Image.Resampling.BICUBIC)
    assert np.abs(got - np.asarray(expected, np.float32)).max() < 1.1


def test_same_size_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    plain = Transform(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(plain.normalise(image), image / 255.0, rtol=1e-6)


def test_broken_transforms_are_refused():
    with pytest.raises(ConfigError, match="at least 1 px"):
        Transform(0)
    with pytest.raises(ConfigError, match="positive SDs"):
        Transform(8, std=(1.0, 0.0, 1.0))
