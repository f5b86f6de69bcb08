"""Mean pooling: the baseline without attention."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.heads.packing import Packing
from lrmil_jax.types import AnyArray


class MeanPool(Head):
    """A linear classifier on the mean of a bag's instances.

    Attributes:
      num_classes: C.
      dropout: rate on the pooled feature; needs the rng stream "dropout" when `train=True`.
      dtype: type in which the instances are read; the mean and the logits are f32.
    """

    has_attention = False
    packs = True

    num_classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        bags: Float[AnyArray, "_ _ D"],
        mask: Shaped[AnyArray, "B N"],
        *,
        xy: Any = None,
        train: bool = False,
        packing: Packing | None = None,
    ) -> HeadOutput:
        """Classify bags; a bag without instances pools to 0. `attention_logits` is None."""
        bags, mask = jnp.asarray(bags), jnp.asarray(mask).astype(bool)
        weights = mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        pooled = layers.pool(weights[..., None], bags.astype(self.dtype), packing)[:, 0]
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return HeadOutput(nn.Dense(self.num_classes, name="classifier")(pooled))
