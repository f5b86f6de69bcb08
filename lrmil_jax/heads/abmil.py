"""Attention-based MIL, plain and gated."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.heads.packing import Packing
from lrmil_jax.types import AnyArray


class ABMIL(Head):
    """Attention-based multiple-instance learning over rows of instances.

    `e_n = w . h_n`, `h_n = tanh(V t_n)` or, gated, `tanh(V t_n) * sigmoid(U t_n)`;
    `alpha = softmax(e)` over the bag; `logits = W sum_n alpha_n t_n + c`.

    Source: Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning",
    ICML 2018, equations 7 to 9; `width` is the embedding f of its section 2.3, of one layer.

    Attributes:
      num_classes: C.
      hidden: width of the attention's hidden layer.
      width: of a projection of the instances that is learned with the rest; 0 takes them as they
        are, as features of a pretrained encoder may be.
      gated: multiply by the sigmoid gate.
      dropout: rate after the projection and on the hidden layer; needs the rng stream "dropout"
        when `train=True`.
      instance_classes: K > 0 adds a linear K-class head on `h`, the learned projection of the
        instances, as CLAM's instance loss wants it.
      dtype: compute type of the wide matmul; softmax, pooling and logits are always f32.
    """

    packs = True
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {"width": (0, 10**5)}

    num_classes: int
    hidden: int = 128
    width: int = 0
    gated: bool = False
    dropout: float = 0.0
    instance_classes: int = 0
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
        """Classify bags.

        Args:
          bags: instance features [B, N, D]; rows outside the mask may hold any finite number.
          mask: True for real instances; a bag without any gives finite logits.
          xy: ignored.
          train: switch dropout on.
          packing: of bags in one row [1, T, D].

        Returns:
          `HeadOutput`; `attention_logits` always set, `instance_logits` if asked for.
        """
        bags, mask = jnp.asarray(bags), jnp.asarray(mask).astype(bool)
        if self.width:
            rates = {"dropout": self.dropout, "dtype": self.dtype}
            bags = layers.Projection(self.width, name="projection", **rates)(bags, train=train)
        batch, count, width = bags.shape
        # One 2-D matmul over all instances: on CPU the batched form is slower.
        instances = bags.reshape(batch * count, width).astype(self.dtype)
        hidden = jnp.tanh(nn.Dense(self.hidden, dtype=self.dtype, name="attention_v")(instances))
        if self.gated:
            gate = nn.Dense(self.hidden, dtype=self.dtype, name="attention_u")(instances)
            hidden = hidden * nn.sigmoid(gate)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden.astype(jnp.float32))
        # A sum of products, not a matmul with one column, which XLA's CPU backend does slowly.
        weight = self.param("attention_w", nn.initializers.lecun_normal(), (self.hidden, 1))
        scores = (hidden * weight.T).sum(-1).reshape(batch, count)
        scores = layers.by_bag(scores, mask, packing)
        attention = jax.nn.softmax(scores, where=mask)
        pooled = layers.pool(attention[..., None], bags, packing)
        logits = nn.Dense(self.num_classes, name="classifier")(pooled[:, 0])
        instance_logits = None
        if self.instance_classes:
            instance_logits = nn.Dense(self.instance_classes, name="instance_classifier")(hidden)
            instance_logits = instance_logits.reshape(batch, count, self.instance_classes)
            instance_logits = layers.by_bag(instance_logits, mask, packing)
            instance_logits = jnp.where(mask[..., None], instance_logits, 0.0)
        return HeadOutput(logits, jnp.where(mask, scores, 0.0), instance_logits)


class GatedABMIL(ABMIL):
    """`ABMIL` with the gate, equation 9."""

    gated: bool = True
