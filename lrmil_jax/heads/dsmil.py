"""DSMIL: the most suspicious instance of a class, and all others by their likeness to it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class DSMIL(Head):
    """Dual-stream MIL.

    First stream: a linear classifier of instances; each class's critical instance m is the one
    with the largest logit. Second stream: `softmax_n(<q_n, q_m>)` weighs the values `v_n`, and a
    linear classifier reads the C pooled values together. Logits are the mean of both streams'.

    Source: Li, Li and Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide
    Image Classification with Self-supervised Contrastive Learning", CVPR 2021, equations 2 to 6.
    Differences, as in its authors' and others' code: likeness is divided by the root of the
    query's width, and values are the instances themselves unless `project_values`.

    Attributes:
      num_classes: C.
      hidden: width of the queries.
      deep_queries: two layers, relu and tanh, in place of a linear one.
      project_values: `v_n = relu(W t_n + b)`.
      dropout: rate on the instances before the values' projection; else on the values.
      dtype: compute type of the wide matmuls; softmax, pooling and logits are always f32.
    """

    num_classes: int
    hidden: int = 128
    deep_queries: bool = True
    project_values: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32

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
          `HeadOutput` with `instance_logits` of the first stream, `class_attention_logits`, the
          mean of the classes' attention, and in `aux` both streams' logits `bag` and
          `max_instance` [B, C].
        """
        bags, mask = jnp.asarray(bags), jnp.asarray(mask).astype(bool)
        scored = layers.dense(nn.Dense(self.num_classes, name="instance_classifier"), bags)
        scored = scored.astype(jnp.float32)
        reachable = jnp.where(mask[..., None], scored, -jnp.inf)
        largest = jnp.where(mask.any(1)[:, None], reachable.max(1), 0.0)
        queries = self._queries(bags)
        critical = layers.take_rows(queries, reachable.argmax(1))
        likeness = jnp.einsum("bnh,bch->bnc", queries, critical, preferred_element_type=jnp.float32)
        scores = likeness / jnp.sqrt(jnp.float32(self.hidden))
        pooled = layers.pool(layers.softmax(scores, mask), self._values(bags, train))
        bag = nn.Dense(self.num_classes, name="classifier")(pooled.reshape(len(pooled), -1))
        return HeadOutput(
            (bag + largest) / 2,
            layers.mean_attention(scores, mask),
            jnp.where(mask[..., None], scored, 0.0),
            class_attention_logits=jnp.where(mask[..., None], scores, 0.0),
            aux={"bag": bag, "max_instance": largest},
        )

    def _queries(self, bags):
        queries = layers.dense(nn.Dense(self.hidden, dtype=self.dtype, name="query"), bags)
        if not self.deep_queries:
            return queries
        second = nn.Dense(self.hidden, dtype=self.dtype, name="query_2")
        return jnp.tanh(layers.dense(second, nn.relu(queries)))

    def _values(self, bags, train):
        values = nn.Dropout(self.dropout, deterministic=not train)(bags)
        if not self.project_values:
            return values
        return nn.relu(
            layers.dense(nn.Dense(bags.shape[-1], dtype=self.dtype, name="value"), values)
        )

    def label_losses(
        self,
        output: HeadOutput,
        labels: Any,
        mask: Bool[AnyArray, "B N"],
        of_logits: Callable[[Float[AnyArray, "B C"]], Float[Array, " B"]],
    ) -> dict[str, Float[Array, " B"]]:
        """Half of the loss of each stream: `ce` of the second, `max_instance` of the first."""
        streams = {"ce": "bag", "max_instance": "max_instance"}
        return {name: of_logits(output.aux[stream]) / 2 for name, stream in streams.items()}
