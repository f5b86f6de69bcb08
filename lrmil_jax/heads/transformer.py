"""A plain transformer over the instances, with attention that weakens with distance."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray

_BLOCK = 512  # queries whose attention to all instances is in memory at once


class Transformer(Head):
    """Pre-norm transformer blocks on a class token and the instances; the token is classified.

    With positions "alibi", an attention logit between two instances is lowered by their distance
    in patches times the head's slope, `2^(-8 h / H)` for head h of H, counted from 1. The class
    token is near to all. Attention between all pairs takes time quadratic in N, but memory linear
    in it: it is computed for 512 queries at a time, and again for the gradient.

    Source: Vaswani et al., NeurIPS 2017; ALiBi: Press, Smith and Lewis, ICLR 2022, section 3;
    in two dimensions by Euclidean distance: Li et al., "Long-MIL", 2023, section 3.

    Attributes:
      num_classes: C.
      width: of the tokens.
      heads: of each attention.
      depth: blocks.
      mlp: width of the MLP's hidden layer.
      positions: "alibi" or "none".
      dropout: rate on what each part adds to the tokens.
      dtype: compute type of the wide matmuls; softmax and logits are always f32.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"positions": ("alibi", "none")}
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "width": (1, 10**5), "heads": (1, 1000), "depth": (1, 100), "mlp": (1, 10**5),
    }  # fmt: skip

    num_classes: int
    width: int = 512
    heads: int = 8
    depth: int = 2
    mlp: int = 512
    positions: str = "alibi"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @property
    def needs_xy(self) -> bool:
        """Whether it uses where instances lie."""
        return self.positions == "alibi"

    @nn.compact
    def __call__(
        self,
        bags: Float[AnyArray, "B N D"],
        mask: Shaped[AnyArray, "B N"],
        *,
        xy: Shaped[AnyArray, "B N 2"] | None = None,
        train: bool = False,
    ) -> HeadOutput:
        """Classify bags.

        Args:
          bags: instance features; rows outside the mask may hold any finite number.
          mask: True for real instances; a bag without any gives finite logits.
          xy: places in units of patches; None: all instances lie in one place.
          train: switch dropout on.

        Returns:
          `HeadOutput`; `attention_logits` are those of the class token's attention to the
          instances in the last block, the mean over heads.
        """
        bags, mask = jnp.asarray(bags), jnp.asarray(mask).astype(bool)
        embedded = layers.dense(nn.Dense(self.width, dtype=self.dtype, name="embedding"), bags)
        token = self.param("token", nn.initializers.normal(0.02), (1, 1, self.width))
        token = jnp.broadcast_to(token, (len(bags), 1, self.width))
        tokens = jnp.concatenate([token, jnp.where(mask[..., None], embedded, 0.0)], 1)
        real = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        places = None
        if xy is not None and self.needs_xy:
            places = jnp.pad(jnp.asarray(xy, jnp.float32), ((0, 0), (1, 0), (0, 0)))
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for block in range(self.depth):
            normed = nn.LayerNorm(dtype=self.dtype, name=f"norm_{block}")(tokens)
            read, weights = self._attend(block, normed, real, places)
            tokens = tokens + drop(read)
            normed = nn.LayerNorm(dtype=self.dtype, name=f"norm_mlp_{block}")(tokens)
            hidden = nn.Dense(self.mlp, dtype=self.dtype, name=f"mlp_{block}")
            out = nn.Dense(self.width, dtype=self.dtype, name=f"mlp_out_{block}")
            added = layers.dense(out, nn.gelu(layers.dense(hidden, normed)))
            tokens = tokens + drop(added)
        first = nn.LayerNorm(name="norm")(tokens[:, 0])
        logits = nn.Dense(self.num_classes, name="classifier")(first)
        return HeadOutput(logits, layers.log_weights(weights[..., 1:].mean(1), mask))

    def _attend(
        self, block: int, tokens: Float[Array, "B T W"], real: Bool[Array, "B T"], places
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B H T"]]:
        """What the tokens read from each other, and the weights of the class token."""
        batch, count, _ = tokens.shape
        mixer = nn.Dense(3 * self.width, dtype=self.dtype, name=f"qkv_{block}")
        shape = (batch, count, 3, self.heads, self.width // self.heads)
        query, keys, values = jnp.moveaxis(layers.dense(mixer, tokens).reshape(shape), 2, 0)
        query = query / jnp.sqrt(jnp.asarray(shape[-1], query.dtype))
        read = in_blocks(query, keys, values, real=real, places=places)
        row = None if places is None else places[:, :1]
        weights = _weights(query[:, :1], row, keys, real=real, places=places, first=0)
        out = nn.Dense(self.width, dtype=self.dtype, name=f"out_{block}")
        return layers.dense(out, read.reshape(batch, count, -1)), weights[:, :, 0]


def in_blocks(
    query: Float[Array, "B T H d"],
    keys: Float[Array, "B T H d"],
    values: Float[Array, "B T H d"],
    *,
    real: Bool[Array, "B T"],
    places: Float[Array, "B T 2"] | None,
    size: int = _BLOCK,
) -> Float[Array, "B T H d"]:
    """Softmax attention of every token to all, `size` queries at a time.

    Args:
      query, keys, values: of the tokens; queries are scaled already.
      real: tokens that may be read.
      places: of the tokens, the first of which lies nowhere; None: no positions.
      size: queries at a time.
    """
    count = query.shape[1]
    blocks = -(-count // size)

    def cut(rows):
        filled = jnp.pad(rows, ((0, 0), (0, blocks * size - count)) + ((0, 0),) * (rows.ndim - 2))
        return jnp.moveaxis(filled.reshape(len(rows), blocks, size, *rows.shape[2:]), 1, 0)

    @jax.checkpoint
    def read(part):
        weights = _weights(part[1], part[2], keys, real=real, places=places, first=part[0])
        return jnp.einsum(
            "bhqk,bkhd->bqhd", weights, values, preferred_element_type=jnp.float32
        )  # fmt: skip

    if blocks == 1:
        return read((0, query, places))
    parts = (jnp.arange(blocks) * size, cut(query), None if places is None else cut(places))
    joined = jnp.moveaxis(jax.lax.map(read, parts), 0, 1)
    return joined.reshape(len(query), blocks * size, *query.shape[2:])[:, :count]


def _weights(
    query: Float[Array, "B Q H d"],
    rows: Float[Array, "B Q 2"] | None,
    keys: Float[Array, "B T H d"],
    *,
    real: Bool[Array, "B T"],
    places: Float[Array, "B T 2"] | None,
    first: Any,
) -> Float[Array, "B H Q T"]:
    """Attention of some tokens, at `rows`, the first of which is token number `first`, to all."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys, preferred_element_type=jnp.float32)
    if places is not None:
        squares = jnp.square(rows[:, :, None] - places[:, None]).sum(-1)
        # The class token lies nowhere; and the root has no gradient at 0, so none is taken.
        inside = (first + jnp.arange(query.shape[1]) > 0)[:, None] & (
            jnp.arange(keys.shape[1]) > 0
        )[None]
        distance = jnp.where(inside[None], jnp.sqrt(jax.lax.stop_gradient(squares)), 0.0)
        heads = query.shape[2]
        slopes = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
        scores = scores - slopes[None, :, None, None] * distance[:, None]
    return jax.nn.softmax(scores, where=real[:, None, None])
