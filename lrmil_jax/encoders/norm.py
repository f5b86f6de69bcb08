"""Layer norm with the statistics of PyTorch and a gradient that is written down."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrmil_jax.types import AnyArray


class LayerNorm(nn.Module):
    """Layer norm over the last axis (Ba et al., "Layer Normalization", 2016).

    Parameters, their names and the result are those of `flax.linen.LayerNorm` with
    `use_fast_variance=False`: the variance is taken in a second pass, as PyTorch does.

    Attributes:
      epsilon: added to the variance.
      dtype: type of the result; statistics and parameters are f32.
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*batch W"]) -> Float[Array, "*batch W"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        scale, bias = (value.reshape((1,) * (x.ndim - 1) + (-1,)) for value in (scale, bias))
        return (standardise(x, self.epsilon) * scale + bias).astype(self.dtype)


# XLA's own gradient of the two-pass variance takes up to half of a transformer's training step on
# CPU; this one keeps what the forward pass has anyway.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardise(x: Float[AnyArray, "*batch W"], epsilon: float) -> Float[Array, "*batch W"]:
    """(x - mean) / sqrt(variance + epsilon) over the last axis, in f32."""
    return _forward(x, epsilon)[0]


def _forward(x, epsilon):
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    standard = centred * inverse
    # The type of x is told by an empty array: residuals of a custom gradient are arrays.
    return standard, (standard, inverse, jnp.zeros(0, x.dtype))


def _backward(epsilon, saved, grad):
    """dx = (dh - mean dh - h mean(dh h)) / sd, for h the standardised x."""
    del epsilon
    standard, inverse, like = saved
    along = (grad * standard).mean(-1, keepdims=True)
    dx = inverse * (grad - grad.mean(-1, keepdims=True) - standard * along)
    return (dx.astype(like.dtype),)


standardise.defvjp(_forward, _backward)
