"""ZoomMIL: attention at LR, a differentiable choice of regions, attention on their HR patches."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from lrmil_jax.heads import cells, choice, layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class ZoomMIL(Head):
    """Two magnifications, of which the lower one chooses what is read of the higher one.

    Two gated attentions look at LR patches f_i: one pools them to `g_low`, the other, a_i, is there
    for the choice. In training the choice is `Y = E[top-K(N a + noise Z)]`, [K, N], and row j of
    it mixes the HR patches t_ik of regions, `t'_jk = sum_i Y_ji t_ik`; in prediction the K regions
    with the largest a_i are chosen, without noise. A third gated attention pools the `t'_jk` to
    `g_high`, and `logits = W [g_low, g_high] + c`.

    Source: Thandiackal et al., "Differentiable Zooming for Multiple Instance Learning on
    Whole-Slide Images", ECCV 2022, sections 3.1 (gated attention), 3.2 (differentiable patch
    selection by the perturbed maximum) and 3.3 (dual gated attention, several magnifications), with
    two magnifications here. The noise is in units of the mean attention 1 / N, so that it does not
    depend on the size of a bag.

    Attributes:
      num_classes: C.
      hidden: width of the attentions' hidden layers.
      width: of a learned projection of each magnification; 0 takes features as they are.
      children: HR patches of an LR patch, at most.
      rho: share of the LR patches that is chosen.
      count: their number instead; 0: `rho`.
      draws: of the noise, in training.
      noise: its SD.
      dropout: rate after the projections and in the attentions.
      dtype: compute type of the wide matmuls.
    """

    reads_cells = True
    learns_by_chance: ClassVar[tuple[str, ...]] = ("choice",)
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "width": (0, 10**5), "children": (1, 10**4), "rho": (1e-6, 1.0), "count": (0, 10**9),
        "draws": (1, 10**5), "noise": (1e-6, 1e6),
    }  # fmt: skip

    num_classes: int
    hidden: int = 128
    width: int = 0
    children: int = 16
    rho: float = 0.25
    count: int = 0
    draws: int = 100
    noise: float = 0.3
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
        """Classify bags of LR patches beside their HR patches.

        Args:
          bags: rows as `heads.cells` has them.
          mask: True for real instances; a bag without any gives finite logits.
          xy: ignored.
          train: switch dropout and the noise on; needs the rng stream "dropout".

        Returns:
          `HeadOutput`; `attention_logits` are those of a, by which regions are chosen. What the
          rows hold of other regions' children changes nothing in prediction.
        """
        mask = jnp.asarray(mask).astype(bool)
        low, high, there = cells.split(bags, mask, self.children)
        rates = {"dropout": self.dropout, "dtype": self.dtype}
        low = layers.Projection(self.width, name="projection_low", **rates)(low, train=train)
        scores = layers.AttentionScores(self.hidden, name="attention_low", **rates)
        pooled_low = layers.pool(layers.softmax(scores(low, train=train), mask), low)[:, 0]
        chooser = layers.AttentionScores(self.hidden, name="choice", **rates)
        by = chooser(low, train=train)[..., 0]
        high, weights = self._chosen(by, mask, high, there, train=train)
        high = high.reshape(len(high), -1, high.shape[-1])
        high = layers.Projection(self.width, name="projection_high", **rates)(high, train=train)
        scores = layers.AttentionScores(self.hidden, name="attention_high", **rates)
        attention = cells.weighted_softmax(
            scores(high, train=train)[..., 0], weights.reshape(len(high), -1)
        )
        pooled_high = layers.pool(attention[..., None], high)[:, 0]
        joined = jnp.concatenate([pooled_low, pooled_high], -1)
        logits = nn.Dense(self.num_classes, name="classifier")(joined)
        return HeadOutput(logits, jnp.where(mask, by, 0.0))

    def _chosen(
        self,
        by: Float[Array, "B N"],
        mask: Bool[Array, "B N"],
        high: Float[Array, "B N K W"],
        there: Bool[Array, "B N K"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "B R K W"], Float[Array, "B R K"]]:
        """HR patches of R regions, and how much each of them is there: in training the mixtures, in
        prediction all regions, of which those that are not chosen weigh 0."""
        wanted, most = choice.sizes(mask, self.rho, self.count)
        if not train:
            chosen = choice.highest(by, mask, wanted)
            return high, (there & chosen[..., None]).astype(jnp.float32)
        relative = jax.nn.softmax(by, where=mask) * mask.sum(1, keepdims=True)
        relative = jnp.where(mask, relative, -jnp.inf)
        drawn = (len(by), self.draws, by.shape[1])
        drawn = jax.random.normal(self.make_rng("dropout"), drawn)
        mixing = jax.vmap(choice.perturbed, (0, 0, 0, None, None))(
            relative, wanted, drawn, self.noise, most
        )
        weights = jnp.einsum("brn,bnk->brk", mixing, there.astype(jnp.float32))
        mixed = jnp.einsum("brn,bnkw->brkw", mixing, high, preferred_element_type=jnp.float32)
        return mixed / jnp.where(weights > 0, weights, 1.0)[..., None], weights

    def instance_floats(self) -> int:
        """Of two attentions on LR patches, of one on the children that are read, and the draws."""
        share = 1.0 if self.count else self.rho
        attentions = super().instance_floats() * (2 + share * self.children)
        return round(attentions) + 3 * self.draws
