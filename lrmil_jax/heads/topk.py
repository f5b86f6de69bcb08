"""Top-k pooling: the mean of each class's largest instance scores."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class TopK(Head):
    """Instances are classified one by one, and a class is as strong as its k strongest instances.

    `z_nc = w_c . t_n + b_c`; `logits_c` is the mean of the k largest `z_nc` of the bag.

    Source: Campanella et al., "Clinical-grade computational pathology using weakly supervised deep
    learning on whole slide images", Nature Medicine 2019 (k = 1), with the mean of more of them.

    Attributes:
      num_classes: C.
      k: instances that count, or all of a smaller bag.
      width: of a projection of the instances that is learned with the rest; 0 takes them as they
        are.
      dropout: rate after the projection; needs the rng stream "dropout" when `train=True`.
      dtype: compute type of the wide matmul; scores and logits are f32.
    """

    has_attention = False
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {"k": (1, 10**6), "width": (0, 10**5)}

    num_classes: int
    k: int = 16
    width: int = 0
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
        """Classify bags; a bag without instances has logits of 0. `attention_logits` is None."""
        mask = jnp.asarray(mask).astype(bool)
        options = {"width": self.width, "dropout": self.dropout, "dtype": self.dtype}
        scores = layers.instance_scores(bags, self.num_classes, train=train, **options)
        k = min(self.k, mask.shape[1])
        largest = jax.lax.top_k(jnp.where(mask[..., None], scores, -jnp.inf).mT, k)[0]
        there = jnp.arange(k)[None, None] < mask.sum(1)[:, None, None]
        return HeadOutput(jnp.where(there, largest, 0.0).sum(-1) / jnp.maximum(there.sum(-1), 1))
