"""A Perceiver: a few latents read a bag of any size, at a cost that grows linearly with it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class Perceiver(Head):
    """L learned latents attend to the instances, then to each other; a classifier on their mean.

    Every block is cross-attention, self-attention and an MLP, each on normalised inputs and added
    to the latents. Instances never attend to instances, so time and memory are linear in N.

    Source: Jaegle et al., "Perceiver: General Perception with Iterative Attention", ICML 2021,
    section 3.1. Differences: no positions, and blocks do not share weights.

    Attributes:
      num_classes: C.
      width: of instances and latents.
      latents: L.
      heads: of each attention.
      depth: blocks.
      dropout: rate on what each part adds to the latents.
      dtype: compute type of the wide matmuls; softmax and logits are always f32.
    """

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "width": (1, 10**5), "latents": (1, 10**4), "heads": (1, 1000), "depth": (1, 100),
    }  # fmt: skip

    num_classes: int
    width: int = 256
    latents: int = 16
    heads: int = 4
    depth: int = 2
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def instance_floats(self) -> int:
        """See `Head`: the row, and the keys and values of every block."""
        return (3 * self.depth + 7) * self.width + 2 * self.heads * self.latents

    @nn.compact
    def __call__(
        self,
        bags: Float[AnyArray, "B N D"],
        mask: Shaped[AnyArray, "B N"],
        *,
        xy: Any = None,
        train: bool = False,
    ) -> HeadOutput:
        """Classify bags.

        Args:
          bags: instance features; rows outside the mask may hold any finite number.
          mask: True for real instances; a bag without any gives finite logits.
          xy: ignored.
          train: switch dropout on.

        Returns:
          `HeadOutput`; `attention_logits` are those of the mean attention of the last block's
          latents and heads.
        """
        bags, mask = jnp.asarray(bags), jnp.asarray(mask).astype(bool)
        embedded = layers.dense(nn.Dense(self.width, dtype=self.dtype, name="embedding"), bags)
        instances = nn.LayerNorm(dtype=self.dtype, name="norm_instances")(embedded)
        initial = self.param("latents_0", nn.initializers.normal(1.0), (self.latents, self.width))
        latents = jnp.broadcast_to(initial, (len(bags), *initial.shape))
        drop = nn.Dropout(self.dropout, deterministic=not train)
        everywhere = jnp.ones((len(bags), self.latents), bool)
        for block in range(self.depth):
            normed = nn.LayerNorm(name=f"norm_cross_{block}")(latents)
            read, weights = self._attend(f"cross_{block}", normed, instances, mask)
            latents = latents + drop(read)
            normed = nn.LayerNorm(name=f"norm_self_{block}")(latents)
            latents = latents + drop(self._attend(f"self_{block}", normed, normed, everywhere)[0])
            normed = nn.LayerNorm(name=f"norm_mlp_{block}")(latents)
            hidden = nn.gelu(nn.Dense(2 * self.width, name=f"mlp_{block}")(normed))
            latents = latents + drop(nn.Dense(self.width, name=f"mlp_out_{block}")(hidden))
        mean = nn.LayerNorm(name="norm")(latents).mean(1)
        logits = nn.Dense(self.num_classes, name="classifier")(mean)
        return HeadOutput(logits, layers.log_weights(weights.mean((1, 2)), mask))

    def _attend(
        self, name: str, queries: Float[Array, "B L W"], rows: Float[Array, "B N W"], mask
    ) -> tuple[Float[Array, "B L W"], Float[Array, "B H L N"]]:
        """What the latents read from the rows, and with which weights."""
        batch = len(rows)
        shape = (batch, -1, self.heads, self.width // self.heads)
        query = nn.Dense(self.width, use_bias=False, name=f"{name}_query")(queries)
        both = nn.Dense(2 * self.width, use_bias=False, dtype=self.dtype, name=f"{name}_rows")
        keys, values = jnp.split(layers.dense(both, rows), 2, -1)
        query = query.reshape(shape) / jnp.sqrt(jnp.float32(shape[-1]))
        scores = jnp.einsum(
            "blhd,bnhd->bhln", query, keys.reshape(shape), preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores, where=mask[:, None, None])
        read = jnp.einsum(
            "bhln,bnhd->blhd", weights, values.reshape(shape), preferred_element_type=jnp.float32
        )
        joined = read.reshape(batch, -1, self.width)
        return nn.Dense(self.width, name=f"{name}_out")(joined), weights
