"""The layer norm beside Flax's own, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax.encoders.norm import LayerNorm, normalise_halves


def values(*shape, seed=0):
    # A mean far from 0 is where a one-pass variance would lose digits.
    return jnp.asarray(np.random.default_rng(seed).normal(5.0, 2.0, shape), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
def test_is_flax_layer_norm_forward_and_backward(dtype, epsilon):
    x, cotangent = values(3, 5, 24).astype(dtype), values(3, 5, 24, seed=1).astype(dtype)
    ours = LayerNorm(epsilon, dtype)
    theirs = nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False)
    params = jax.tree.map(
        lambda p: p + values(*p.shape, seed=2), ours.init(jax.random.key(0), x)["params"]
    )
    assert jax.tree.structure(params) == jax.tree.structure(
        theirs.init(jax.random.key(0), x)["params"]
    )

    def both(module):
        out, pull = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return out, *pull(cotangent)

    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    for found, expected in zip(
        jax.tree.leaves(both(ours)), jax.tree.leaves(both(theirs)), strict=True
    ):
        assert found.dtype == expected.dtype
        found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_gradient_by_hand():
    # x = (0, 2): mean 1, SD 1, h = (-1, 1); a cotangent along h or along ones changes nothing.
    module = LayerNorm(0.0)
    params = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    out, pull = jax.vjp(lambda x: module.apply({"params": params}, x), jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(out, [-1, 1])
    np.testing.assert_allclose(pull(jnp.array([1.0, 1.0]))[0], [0, 0], atol=1e-7)
    np.testing.assert_allclose(pull(jnp.array([-1.0, 1.0]))[0], [0, 0], atol=1e-7)


def test_one_pass_over_halves_loses_nothing_where_the_mean_is_far():
    # The mean is 50 SDs away, and the first value, which is taken off, is no typical one.
    x = values(4, 64) * 0.2 + 20
    x = x.at[:, 0].set(35.0).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    one = jnp.ones((1, 64))
    np.testing.assert_allclose(normalise_halves(x, one, 0 * one, 0.0), exact, atol=1e-5)
