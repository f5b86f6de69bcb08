"""Products of 8-bit integers: by hand, and as near to those of floats as is promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import encoders
from lrmil_jax.encoders import pretrained, products
from lrmil_jax.models import loading
from lrmil_jax.slides import procedural
from lrmil_jax.train.encode import BatchEncoder


def multiplied(tokens, kernel, *, on):
    with products.eight_bits(on):
        return np.asarray(
            products.dot_general(jnp.asarray(tokens), jnp.asarray(kernel), (((1,), (0,)), ((), ())))
        )


def test_by_hand():
    """The middles of the rows are .5, .75 and 0, and what is left of them +-1.5 and +-.25."""
    tokens = np.array([[2.0, -1.0, 0.5], [0.5, 1.0, 0.85], [0.0, 0.0, 0.0]], np.float32)
    kernel = np.array([[4.0, 0.0], [1.0, -1.0], [2.0, 0.25]], np.float32)
    rows = np.array([[127, -127, 0], [-127, 127, 51], [0, 0, 0]])  # .1 / .25 * 127 is 50.8
    columns = np.array([[127, 0], [32, -127], [64, 32]])  # 31.75 and 63.5: to the even neighbour
    middles, scales = np.array([[0.5], [0.75], [0.0]]), np.array([[1.5], [0.25], [1.0]]) / 127
    wanted = (rows @ columns * scales + middles * columns.sum(0)) * np.array([4.0, 1.0]) / 127
    np.testing.assert_allclose(multiplied(tokens, kernel, on=True), wanted, rtol=1e-6)
    np.testing.assert_array_equal(multiplied(tokens, kernel, on=False), tokens @ kernel)


@pytest.mark.parametrize("width", [64, 768])
def test_sums_are_exact_and_each_token_is_by_itself(width):
    rng = np.random.default_rng(width)
    tokens = rng.normal(size=(5, width)).astype(np.float32)
    tokens[3] *= 1e4  # one token that is far larger takes nothing from the others
    kernel = rng.normal(size=(width, 7)).astype(np.float32)
    together, wanted = multiplied(tokens, kernel, on=True), tokens @ kernel
    np.testing.assert_array_equal(multiplied(tokens[:3], kernel, on=True), together[:3])
    cosines = (together * wanted).sum(1) / np.linalg.norm(together, axis=1)
    assert (cosines / np.linalg.norm(wanted, axis=1) > 0.999).all()


def tiles(count):
    rng = np.random.default_rng(3)
    maps = [procedural.random_map(rng, size_px=64, main=index % 3) for index in range(count)]
    return np.stack([procedural.paint(rng, kinds) for kinds in maps])


def test_embeddings_of_a_trained_encoder():
    """The encoder that comes along: cosines of .999 and more, and not the very same."""
    path = pretrained.locate("shipped:procedural")
    float32, int8 = (
        loading.load_encoder("vit-tiny", path, dtype=dtype) for dtype in ("float32", "int8")
    )
    assert (float32.eight_bits, int8.eight_bits) == (False, True)
    assert int8.identity() == float32.identity()
    images = tiles(8)
    one, other = (BatchEncoder(each, batch=8)([images])["embedding"] for each in (float32, int8))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert ((one * other).sum(1) / lengths > 0.999).all()
    assert not np.array_equal(one, other)


def test_only_products_with_weights_of_blocks_are_of_integers():
    """Two projections and two layers of the MLP in each block; attention stays as it is."""
    module = encoders.create("vit-tiny", px=32)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)

    def text(eight_bits):
        def encode(params, images):
            with products.eight_bits(eight_bits):
                return module.apply(params, images).embedding

        return str(jax.make_jaxpr(encode)(params, images))

    assert "preferred_element_type=int32" not in text(False)
    assert text(True).count("preferred_element_type=int32") == 4 * module.depth
