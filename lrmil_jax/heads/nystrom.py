"""Nystrom attention over sequences of different length in one array."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrmil_jax.heads import layers

_KERNEL = 33  # tokens of the residual convolution
_AT_ONCE = 11  # of which so many are compiled as one: all take long to compile, one to compute


class Nystrom(nn.Module):
    """Self-attention approximated through landmarks: `softmax(Q K~) pinv(softmax(Q~ K~))
    softmax(Q~ K) V`, plus a convolution of V along the sequence.

    Landmarks are means of neighbouring tokens. As in the published code, a sequence that m
    landmarks cannot share evenly has zero tokens before it, which take part as keys of 0.

    Source: Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating
    Self-Attention", AAAI 2021, equations 5 to 14. Each sequence is treated as if it were alone:
    zero tokens, landmarks and the scale of the pseudo-inverse's start are its own, where the
    published code takes those of the whole batch.

    Attributes:
      heads: of the attention.
      landmarks: m.
      iterations: of the pseudo-inverse.
      dtype: compute type of the wide matmuls.
    """

    heads: int
    landmarks: int
    iterations: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B T W"], length: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B H T"]]:
        """Attention of the first `length` tokens of each row to each other.

        Returns:
          What each token reads, in float32 and 0 beyond `length`, and the weights with which the
          first token reads.
        """
        batch, count, width = tokens.shape
        real = jnp.arange(count)[None] < length[:, None]
        tokens = jnp.where(real[..., None], tokens, 0.0)
        means, zeros = _landmarks(tokens, length, self.landmarks)
        mixer = nn.Dense(3 * width, use_bias=False, dtype=self.dtype, name="qkv")
        query, keys, values = self._split(layers.dense(mixer, tokens))
        # Linear without bias, so the mean of the queries is the query of the mean.
        near, far, _ = self._split(layers.dense(mixer, means))
        to_landmarks = jax.nn.softmax(_products(query, far))
        between = _inverse(jax.nn.softmax(_products(near, far)), self.iterations)
        from_landmarks = _with_zero_keys(_products(near, keys), real, zeros)
        read = jnp.einsum("bhmt,bhtd->bhmd", from_landmarks, values)
        read = to_landmarks @ (between @ read)
        kernel = self.param("residual", nn.initializers.lecun_normal(), (_KERNEL, self.heads))
        read = read + _along(values, kernel)
        first = (to_landmarks[:, :, :1] @ between @ from_landmarks)[:, :, 0]
        joined = jnp.moveaxis(read, 1, 2).reshape(batch, count, width)
        out = layers.dense(nn.Dense(width, dtype=self.dtype, name="out"), joined)
        return jnp.where(real[..., None], out, 0.0).astype(jnp.float32), first

    def _split(self, mixed: Float[Array, "B T _"]) -> list[Float[Array, "B H T d"]]:
        batch, count, _ = mixed.shape
        parts = mixed.astype(jnp.float32).reshape(batch, count, 3, self.heads, -1)
        query, keys, values = jnp.moveaxis(parts, (2, 3), (0, 2))
        return [query / jnp.sqrt(jnp.float32(query.shape[-1])), keys, values]


def _landmarks(
    tokens: Float[Array, "B T W"], length: Int[Array, " B"], landmarks: int
) -> tuple[Float[Array, "B m W"], Int[Array, " B"]]:
    """Means of neighbouring tokens, and how many zero tokens are taken to stand before them."""
    each = -(-length // landmarks)
    zeros = landmarks * each - length
    longest = -(-tokens.shape[1] // landmarks)
    within = jnp.arange(longest)[None, None]
    place = jnp.arange(landmarks)[None, :, None] * each[:, None, None] + within
    place = place - zeros[:, None, None]
    there = (within < each[:, None, None]) & (place >= 0)
    rows = layers.take_rows(tokens, jnp.where(there, place, 0))
    total = jnp.where(there[..., None], rows, 0.0).sum(2)
    return total / each[:, None, None], zeros


def _products(left: Float[Array, "B H L d"], right: Float[Array, "B H R d"]):
    return jnp.einsum("bhld,bhrd->bhlr", left, right)


def _with_zero_keys(scores: Float[Array, "B H m T"], real, zeros) -> Float[Array, "B H m T"]:
    """Softmax over the real tokens beside so many more whose logit is 0."""
    scores = jnp.where(real[:, None, None], scores, -jnp.inf)
    many = zeros[:, None, None, None].astype(jnp.float32)
    peak = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), 0.0))
    exponents = jnp.exp(scores - peak)
    return exponents / (exponents.sum(-1, keepdims=True) + many * jnp.exp(-peak))


def _inverse(matrix: Float[Array, "B H m m"], iterations: int) -> Float[Array, "B H m m"]:
    """Moore-Penrose pseudo-inverse, iterated: Xiong et al. 2021, equation 14."""
    largest = [jnp.abs(matrix).sum(axis).max((1, 2)) for axis in (-1, -2)]
    guess = matrix.mT / (largest[0] * largest[1])[:, None, None, None]
    one = jnp.eye(matrix.shape[-1])[None, None]
    with jax.default_matmul_precision("highest"):  # rounded factors would not converge
        for _ in range(iterations):
            product = matrix @ guess
            inner = 15 * one - product @ (7 * one - product)
            guess = 0.25 * guess @ (13 * one - product @ inner)
    return guess


def _along(values: Float[Array, "B H T d"], kernel: Float[Array, "k H"]) -> Float[Array, "B H T d"]:
    """Convolution along the tokens, one kernel a head, zeros around."""
    margin, count = len(kernel) // 2, values.shape[2]
    padded = jnp.pad(values, ((0, 0), (0, 0), (margin, margin), (0, 0)))

    @jax.checkpoint
    def add(total, part):
        first, weights = part
        length = count + _AT_ONCE - 1
        shifted = jax.lax.dynamic_slice_in_dim(padded, first, length, axis=2)
        parts = [
            weights[place][None, :, None, None] * shifted[:, :, place : place + count]
            for place in range(_AT_ONCE)
        ]
        return total + sum(parts), None

    starts = jnp.arange(0, len(kernel), _AT_ONCE)
    groups = kernel.reshape(len(starts), _AT_ONCE, -1)
    return jax.lax.scan(add, jnp.zeros_like(values), (starts, groups))[0]
