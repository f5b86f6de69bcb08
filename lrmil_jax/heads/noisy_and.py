"""Noisy-and pooling: a bag is of a class once a learned share of its instances is."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray

_SMALLEST = 1e-6  # distance of a probability from 0 and 1, where its logit would be infinite


class NoisyAnd(Head):
    """Instances are classified one by one; a class is there if enough of them are of it.

    `p_nc = s(w_c . t_n + b_c)` with the sigmoid `s`, `m_c` its mean over the bag, and the
    probability of the class `(s(a (m_c - q_c)) - s(-a q_c)) / (s(a (1 - q_c)) - s(-a q_c))` with a
    slope `a` and a learned share `q_c`; the class's logit is that of this probability.

    Source: Kraus, Ba and Frey, "Classifying and segmenting microscopy images with deep multiple
    instance learning", Bioinformatics 2016, equation 5.

    Attributes:
      num_classes: C.
      slope: a.
      width: of a projection of the instances that is learned with the rest; 0 takes them as they
        are.
      dropout: rate after the projection; needs the rng stream "dropout" when `train=True`.
      dtype: compute type of the wide matmul; probabilities and logits are f32.
    """

    has_attention = False
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "slope": (0.1, 100.0), "width": (0, 10**5),
    }  # fmt: skip

    num_classes: int
    slope: float = 10.0
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
        """Classify bags; a bag without instances has no instance of any class."""
        mask = jnp.asarray(mask).astype(bool)
        options = {"width": self.width, "dropout": self.dropout, "dtype": self.dtype}
        scores = layers.instance_scores(bags, self.num_classes, train=train, **options)
        present = jnp.where(mask[..., None], nn.sigmoid(scores), 0.0)
        mean = present.sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
        share = nn.sigmoid(self.param("share", nn.initializers.zeros, (self.num_classes,)))[None]
        lowest, highest = nn.sigmoid(-self.slope * share), nn.sigmoid(self.slope * (1 - share))
        probability = (nn.sigmoid(self.slope * (mean - share)) - lowest) / (highest - lowest)
        probability = jnp.clip(probability, _SMALLEST, 1 - _SMALLEST)
        return HeadOutput(jnp.log(probability) - jnp.log1p(-probability))
