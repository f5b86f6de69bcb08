"""The layer norm beside Flax's own, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax.encoders.norm import LayerNorm


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
