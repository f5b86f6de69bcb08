"""ACMIL: several attention branches that must differ, and the most attended left out by chance."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class ACMIL(Head):
    """Attention-challenging MIL.

    Multiple branch attention: M gated attention branches, each with a classifier of its own for
    training; the mean of their attention pools the bag for the prediction. Stochastic top-k
    instance masking: in training a random share of each branch's k most attended instances is
    left out. A diversity loss holds the branches' attention apart.

    Source: Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image
    Classification", ECCV 2024, sections 3.2 and 3.3.

    Attributes:
      num_classes: C.
      hidden: width of the attention's hidden layer.
      width: of the projection of the instances; 0 takes them as they are.
      gated: gated attention.
      branches: M.
      k: instances with most attention that may be left out.
      drop: share of them that is, rounded down.
      diversity: weight of the mean cosine between the branches' attention.
      dropout: rate after the projection and in the attention.
      dtype: compute type of the wide matmuls; softmax, pooling and logits are always f32.
    """

    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "branches": (1, 100), "k": (0, 10**6), "drop": (0.0, 1.0), "width": (0, 10**5),
        "diversity": (0.0, 1e6),
    }  # fmt: skip

    num_classes: int
    hidden: int = 128
    width: int = 512
    gated: bool = True
    branches: int = 5
    k: int = 10
    drop: float = 0.6
    diversity: float = 1.0
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
          train: switch dropout and masking on; needs the rng stream "dropout".

        Returns:
          `HeadOutput`; `attention_logits` are those of the mean of the branches' attention, with
          nothing left out; `aux` has `branches` [B, M, C], their logits, and `similarity` [B],
          their mean cosine.
        """
        mask = jnp.asarray(mask).astype(bool)
        rates = {"dropout": self.dropout, "dtype": self.dtype}
        instances = layers.Projection(self.width, name="projection", **rates)(bags, train=train)
        scorer = layers.AttentionScores(
            self.hidden, self.branches, gated=self.gated, name="attention", **rates
        )
        scores = scorer(instances, train=train)
        kept = jnp.broadcast_to(mask[..., None], scores.shape)
        if train and self.k and self.drop:
            kept &= ~self._left_out(scores, mask)
        attention = jax.nn.softmax(scores, axis=1, where=kept)
        pooled = layers.pool(attention, instances)
        branches = layers.ClassWiseDense(self.num_classes, name="branch_classifiers")(pooled)
        logits = nn.Dense(self.num_classes, name="classifier")(pooled.mean(1))
        return HeadOutput(
            logits,
            layers.mean_attention(scores, mask),
            aux={"branches": branches, "similarity": _similarity(attention)},
        )

    def _left_out(self, scores, mask) -> Bool[Array, "B N M"]:
        k = min(self.k, mask.shape[1])
        reachable = jnp.where(mask[:, None], scores.mT, -jnp.inf)
        places = jax.lax.top_k(reachable, k)[1]
        there = jnp.minimum(k, mask.sum(1))[:, None, None]
        drawn = jax.random.uniform(self.make_rng("dropout"), places.shape)
        drawn = jnp.where(jnp.arange(k)[None, None] < there, drawn, 2.0)
        # A little more, or 0.6 of 5 instances would be 2 of them.
        dropped = jnp.floor(there * self.drop + 1e-4)
        # Ranks by comparison: k is small, and a sort takes long to compile.
        out = (drawn[..., None] > drawn[..., None, :]).sum(-1) < dropped
        mark = jax.vmap(jax.vmap(lambda row, chosen, value: row.at[chosen].set(value)))
        return mark(jnp.zeros(reachable.shape, bool), places, out).mT

    def label_losses(
        self,
        output: HeadOutput,
        labels: Any,
        mask: Bool[AnyArray, "B N"],
        of_logits: Callable[[Float[AnyArray, "B C"]], Float[Array, " B"]],
    ) -> dict[str, Float[Array, " B"]]:
        """`ce` of the bag, `branches`, the mean loss of the branches, and weighted `diversity`."""
        return {
            "ce": of_logits(output.logits),
            "branches": jax.vmap(of_logits, 1, 1)(output.aux["branches"]).mean(-1),
            "diversity": self.diversity * output.aux["similarity"],
        }


def _similarity(attention: Float[Array, "B N M"]) -> Float[Array, " B"]:
    """Mean cosine over pairs of branches; 0 for a single one or an empty bag."""
    branches = attention.shape[-1]
    products = jnp.einsum("bnm,bnk->bmk", attention, attention)
    lengths = jnp.sqrt(jnp.maximum(jnp.square(attention).sum(1), 1e-30))
    cosines = products / (lengths[:, :, None] * lengths[:, None, :] + 1e-30)
    pairs = jnp.triu(jnp.ones((branches, branches)), 1)[None]
    return (cosines * pairs).sum((1, 2)) / max(branches * (branches - 1) / 2, 1)
