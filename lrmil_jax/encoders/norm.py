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
    `use_fast_variance=False`: the variance is taken in a second pass, as PyTorch does; of 16-bit
    floats in one pass that loses nothing (`normalise_halves`).

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
        if x.dtype.itemsize == 2:
            return normalise_halves(x, scale, bias, self.epsilon).astype(self.dtype)
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


def _backward(epsilon, residuals, grad):
    """dx = (dh - mean dh - h mean(dh h)) / sd, for h the standardised x."""
    del epsilon
    standard, inverse, like = residuals
    return (_pullback(standard, inverse, grad).astype(like.dtype),)


standardise.defvjp(_forward, _backward)


def _pullback(standard, inverse, grad):
    along = (grad * standard).mean(-1, keepdims=True)
    return inverse * (grad - grad.mean(-1, keepdims=True) - standard * along)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_halves(
    x: Float[AnyArray, "*batch W"],
    scale: Float[AnyArray, "... W"],
    bias: Float[AnyArray, "... W"],
    epsilon: float,
) -> Float[Array, "*batch W"]:
    """Layer norm of 16-bit floats, in f32: one pass for the statistics, little kept for a gradient.

    The passes of the two-pass form are most of what a layer norm costs on a GPU. Sums of squares
    lose digits where the mean is far from 0; so the row's first value is taken off before. It is
    one of the row, at most sqrt(W) SDs from the mean, which bounds the loss to W roundings of f32.

    Args:
      x: of any leading axes.
      scale: of as many axes as `x`, all but the last of size 1; f32.
      bias: as `scale`.
      epsilon: added to the variance.
    """
    return _halves_forward(x, scale, bias, epsilon)[0]


def _halves_forward(x, scale, bias, epsilon):
    x32 = x.astype(jnp.float32)
    shifted = x32 - x32[..., :1]
    mean = shifted.mean(-1, keepdims=True)
    variance = jnp.square(shifted).mean(-1, keepdims=True) - jnp.square(mean)
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon)
    out = (shifted - mean) * inverse * scale + bias
    return out, (x, scale, x32[..., :1] + mean, inverse)


def _halves_backward(epsilon, residuals, grad):
    del epsilon
    x, scale, mean, inverse = residuals
    standard = (x.astype(jnp.float32) - mean) * inverse
    leading = tuple(range(x.ndim - 1))
    dx = _pullback(standard, inverse, grad * scale).astype(x.dtype)
    return dx, (grad * standard).sum(leading, keepdims=True), grad.sum(leading, keepdims=True)


normalise_halves.defvjp(_halves_forward, _halves_backward)
