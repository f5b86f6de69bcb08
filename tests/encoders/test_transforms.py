"""The transform bound to an encoder."""

import jax
import numpy as np
import pytest
from PIL import Image

from lrmil_jax import encoders
from lrmil_jax.encoders import Transform
from lrmil_jax.errors import ConfigError


def test_by_hand():
    transform = Transform(1, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    got = transform.normalise(np.array([[[[255, 0, 51]]]], np.uint8))
    np.testing.assert_allclose(got, [[[[1.0, 0.0, -0.4]]]], rtol=1e-6)


def smooth(size, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "px"), [(64, 32), (48, 64), (50, 33), (64, 63), (256, 224)])
def test_resize_is_pillows(size, px, interpolation):
    plain = Transform(px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation=interpolation)
    images = np.stack([smooth(size), 255 * (smooth(size, 1) > 128).astype(np.uint8)])
    got = 255 * np.asarray(jax.jit(plain.normalise)(images))
    method = Image.Resampling[interpolation.upper()]
    expected = [np.asarray(Image.fromarray(one).resize((px, px), method)) for one in images]
    np.testing.assert_allclose(got, np.array(expected), atol=1e-3)


def test_centre_is_cut_out_after_the_resize():
    plain = Transform(21, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize=32)
    image = smooth(64)
    expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    # 5.5 px on either side: torchvision rounds it to the even 6.
    expected = np.asarray(expected)[6:27, 6:27]
    got = 255 * np.asarray(jax.jit(plain.normalise)(image[None]))[0]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_same_size_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    plain = Transform(16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(plain.normalise(image), image / 255.0, rtol=1e-6)


def test_broken_transforms_are_refused():
    with pytest.raises(ConfigError, match="at least 1 px"):
        Transform(0)
    with pytest.raises(ConfigError, match="positive SDs"):
        Transform(8, std=(1.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="cannot cut 8 px"):
        Transform(8, resize=7)
    with pytest.raises(ConfigError, match="use bilinear or bicubic"):
        Transform(8, interpolation="lanczos")


def test_a_name_with_arguments_is_the_encoder_with_them():
    module = encoders.create("vit:width=24,heads=3,px=32,depth=2")
    assert (module.width, module.heads, module.px, module.depth, module.patch) == (24, 3, 32, 2, 16)
    assert encoders.transform("vit:width=24,heads=3,px=32").px == 32
    published = encoders.transform("uni")
    smaller = encoders.transform("uni:px=112")
    assert (smaller.px, smaller.resize, smaller.mean) == (112, None, published.mean)
    with pytest.raises(ConfigError, match="arguments that cannot be read"):
        encoders.create("vit:width=")
    with pytest.raises(ConfigError, match="does not take these arguments"):
        encoders.create("vit:size=3")
