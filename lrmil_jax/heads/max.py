"""Max pooling: each feature's largest value in the bag."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class MaxPool(Head):
    """A linear classifier on the maximum over the bag of every feature.

    Attributes:
      num_classes: C.
      dropout: rate on the pooled feature; needs the rng stream "dropout" when `train=True`.
      dtype: type in which the instances are read; the logits are f32.
    """

    has_attention = False

    num_classes: int
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
        """Classify bags; a bag without instances pools to 0. `attention_logits` is None."""
        instances = jnp.asarray(bags).astype(self.dtype)
        real = jnp.asarray(mask).astype(bool)[..., None]
        largest = jnp.where(real, instances, -jnp.inf).max(1)
        pooled = jnp.where(real.any(1), largest, 0.0).astype(jnp.float32)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return HeadOutput(nn.Dense(self.num_classes, name="classifier")(pooled))
