"""A plain transformer over the instances, with attention that knows where they lie."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lrmil_jax.errors import ConfigError
from lrmil_jax.heads import blockwise, layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray

# Of the rotations: the longest wave is 2 pi times as many patches, more than a slide is wide.
_LONGEST = 1000.0


class Transformer(Head):
    """Pre-norm transformer blocks on a class token and the instances; the token is classified.

    With positions "alibi", an attention logit between two instances is lowered by their distance
    in patches times the head's slope, `2^(-8 h / H)` for head h of H, counted from 1. The class
    token is near to all. With "rotary", queries and keys are turned by angles that grow with their
    place, half of each head's numbers with x and half with y, so that an attention logit depends
    on the way from one instance to the other; the class token lies in the bag's middle.
    Attention between all pairs takes time quadratic in N, but memory linear in it: it is computed
    for some hundred queries at a time, and again for the gradient.

    Source: Vaswani et al., NeurIPS 2017; ALiBi: Press, Smith and Lewis, ICLR 2022, section 3;
    in two dimensions by Euclidean distance: Li et al., "Long-MIL", 2023, section 3; rotary: Su et
    al., "RoFormer", Neurocomputing 2024, section 3.2; in two dimensions by axes: Heo et al.,
    "Rotary Position Embedding for Vision Transformer", ECCV 2024, section 3.2.

    Attributes:
      num_classes: C.
      width: of the tokens.
      heads: of each attention.
      depth: blocks.
      mlp: width of the MLP's hidden layer.
      positions: "alibi", "rotary" or "none".
      dropout: rate on what each part adds to the tokens.
      dtype: compute type of the wide matmuls; softmax and logits are always f32.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"positions": ("alibi", "rotary", "none")}
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
        return self.positions != "none"

    def instance_floats(self) -> int:
        """See `Head`: a dozen rows of each block, and the attention of some queries."""
        rows = (12 * self.depth + 4) * self.width + 3 * self.depth * self.mlp
        return rows + 3 * self.heads * blockwise.BLOCK

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
        self._refuse_odd_widths()
        embedded = layers.dense(nn.Dense(self.width, dtype=self.dtype, name="embedding"), bags)
        token = self.param("token", nn.initializers.normal(0.02), (1, 1, self.width))
        token = jnp.broadcast_to(token, (len(bags), 1, self.width))
        tokens = jnp.concatenate([token, jnp.where(mask[..., None], embedded, 0.0)], 1)
        real = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        places = None
        if xy is not None and self.needs_xy:
            places = jnp.asarray(xy, jnp.float32)
            if self.positions == "rotary":
                places = _about_the_middle(places, mask)
            places = jnp.pad(places, ((0, 0), (1, 0), (0, 0)))
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
        # [B, H, T, d]: each head's numbers lie together.
        query, keys, values = jnp.moveaxis(
            layers.dense(mixer, tokens).reshape(shape), (2, 3), (0, 2)
        )
        query = query / jnp.sqrt(jnp.asarray(shape[-1], query.dtype))
        if self.positions == "rotary" and places is not None:
            query, keys = rotated(query, places), rotated(keys, places)
            places = None
        read = blockwise.attention(query, keys, values, real, places)
        logits = blockwise.scores(query[:, :, :1], keys, real, places, 0)
        weights = jax.nn.softmax(logits[:, :, 0])
        out = nn.Dense(self.width, dtype=self.dtype, name=f"out_{block}")
        joined = jnp.moveaxis(read, 1, 2).reshape(batch, count, -1)
        return layers.dense(out, joined), weights

    def _refuse_odd_widths(self) -> None:
        parts = self.heads * (4 if self.positions == "rotary" else 1)
        if self.width % parts:
            raise ConfigError(
                f"width of MIL head 'transformer' is {self.width}, but with {self.heads} heads and "
                f"positions={self.positions} it must be a multiple of {parts}"
            )


def rotated(
    vectors: Float[Array, "B H T d"], places: Float[Array, "B T 2"]
) -> Float[Array, "B H T d"]:
    """Pairs of numbers turned by the angle of their wave and place: the first half of d by x, the
    second by y; in each, number i of n is paired with number i + n / 2 and has the wave length
    `2 pi 1000^(2 i / n)` patches."""
    waves = vectors.shape[-1] // 4
    speed = _LONGEST ** (-jnp.arange(waves) / waves)
    angle = (places[..., None] * speed[None, None, None])[:, None]  # [B, 1, T, 2, waves]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    pairs = vectors.reshape(*vectors.shape[:3], 2, 2, waves)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return jnp.stack(turned, -2).reshape(vectors.shape).astype(vectors.dtype)


def _about_the_middle(
    places: Float[Array, "B N 2"], mask: Bool[Array, "B N"]
) -> Float[Array, "B N 2"]:
    """Places less the mean of the bag's."""
    there = mask[..., None]
    total = jnp.where(there, places, 0.0).sum(1, keepdims=True)
    middle = total / jnp.maximum(there.sum(1, keepdims=True), 1)
    return jnp.where(there, places - middle, 0.0)
