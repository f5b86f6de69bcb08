"""HDMIL: a network on HR patches learns which regions it needs; one on LR patches predicts them."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Shaped

from lrmil_jax.heads import cells, choice, layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray

_NOWHERE = -1e9  # relevance of a region without any HR patch


class HDMIL(Head):
    """Hierarchical distillation: the relevance that HR patches have is learned at LR.

    On HR patches t_ik of the regions i (the paper's DMIN): gated attention logits e_ik, and a
    relevance u_ik whose largest of a region, u_i, says whether the region is needed,
    `M_i = [u_i + noise > 0]`, with the slope of `sigmoid((u_i + noise) / temperature)`. The same
    network sees all of them, `alpha ~ exp(e_ik)`, and those that are needed,
    `alpha ~ M_i exp(e_ik)`: the masked one learns the label and the pooled feature of the full one
    (self-distillation), and the mean of M the budget. On LR patches f_i (the paper's LIPN) a
    network of one hidden layer learns `[u_i > 0]`, without a gradient to the other. In prediction
    the K regions for which it says most are read, and the masked network says the class.

    Source: Dong et al., "Fast and Accurate Gigapixel Pathological Image Classification with
    Hierarchical Distillation Multi-Instance Learning", CVPR 2025, section 3: self-distillation with
    a learned binary mask, then cross-distillation of the mask to the network at low resolution.
    Ours: both in one training, as the second sends no gradient to the first; a mask of regions and
    not of HR patches, as an LR patch has several; K by rank and not by a threshold, so that a
    budget is kept; a linear classifier in place of the Chebyshev-polynomial one.

    Attributes:
      num_classes: C.
      hidden: width of the hidden layers.
      width: of a learned projection of the HR patches; 0 takes features as they are.
      children: HR patches of an LR patch, at most.
      rho: share of the LR patches that is chosen, and that M is to have.
      count: their number instead; 0: `rho`.
      temperature: of the mask's slope.
      full: weight of the full network's loss of the label.
      distil: of the squared distance between both pooled features, a mean over dimensions.
      rate: of the squared difference between the mean of M and the budget.
      screen: of the cross-entropy of the network on LR patches.
      dropout: rate after the projection and on hidden layers.
      dtype: compute type of the wide matmuls.
    """

    reads_cells = True
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "width": (0, 10**5), "children": (1, 10**4), "rho": (1e-6, 1.0), "count": (0, 10**9),
        "temperature": (1e-3, 1e3),
        **dict.fromkeys(("full", "distil", "rate", "screen"), (0.0, 1e6)),
    }  # fmt: skip

    num_classes: int
    hidden: int = 128
    width: int = 0
    children: int = 16
    rho: float = 0.25
    count: int = 0
    temperature: float = 1.0
    full: float = 1.0
    distil: float = 1.0
    rate: float = 2.0
    screen: float = 1.0
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
          train: switch dropout and the noise of the mask on; needs the rng stream "dropout".

        Returns:
          `HeadOutput`; `logits` are of the regions that the network on LR patches chooses, in
          training of those in the mask; `attention_logits` are those by which it chooses; `aux` has
          `full` and `masked` [B, C], logits, and `distance`, `excess` and `screen` [B].
        """
        mask = jnp.asarray(mask).astype(bool)
        low, high, there = cells.split(bags, mask, self.children)
        by = _Screen(self.hidden, self.dropout, self.dtype, name="screen_net")(low, train=train)
        batch, count = mask.shape
        rates = {"dropout": self.dropout, "dtype": self.dtype}
        high = high.reshape(batch, count * self.children, -1)
        high = layers.Projection(self.width, name="projection", **rates)(high, train=train)
        scores = layers.AttentionScores(self.hidden, name="attention", **rates)
        scores = scores(high, train=train)[..., 0]
        relevance = _Screen(self.hidden, self.dropout, self.dtype, name="relevance")
        relevance = relevance(high, train=train).reshape(there.shape)
        relevance = jnp.max(relevance, -1, where=there, initial=_NOWHERE)
        kept = self._mask(relevance, train=train)
        classifier = nn.Dense(self.num_classes, name="classifier")

        def pooled(regions: Float[Array, "B N"]) -> Float[Array, "B W"]:
            weights = (there * regions[..., None]).reshape(batch, -1)
            attention = cells.weighted_softmax(scores, weights)
            return layers.pool(attention[..., None], high)[:, 0]

        whole, masked = pooled(jnp.ones_like(kept)), pooled(kept)
        wanted, _ = choice.sizes(mask, self.rho, self.count)
        logits = {"full": classifier(whole), "masked": classifier(masked)}
        shown = logits["masked"]
        if not train:
            chosen = choice.highest(by, mask, wanted)
            shown = classifier(pooled(chosen.astype(jnp.float32)))
        number = jnp.maximum(mask.sum(1), 1)
        needed = jax.lax.stop_gradient((relevance > 0).astype(jnp.float32))
        told = optax.losses.sigmoid_binary_cross_entropy(by, needed)
        aux = {
            "distance": jnp.square(masked - jax.lax.stop_gradient(whole)).mean(-1),
            "excess": (kept.sum(1, where=mask) - wanted) / number,
            "screen": told.sum(1, where=mask) / number,
        }
        return HeadOutput(shown, jnp.where(mask, by, 0.0), aux=logits | aux)

    def _mask(self, relevance: Float[Array, "B N"], *, train: bool) -> Float[Array, "B N"]:
        """0 or 1, with the slope of a sigmoid; in training with logistic noise, as the difference
        of two Gumbel draws is."""
        if train:
            relevance += jax.random.logistic(self.make_rng("dropout"), relevance.shape)
        soft = nn.sigmoid(relevance / self.temperature)
        return soft + jax.lax.stop_gradient((relevance > 0) - soft)

    def instance_floats(self) -> int:
        """Of the attention and the relevance of all children."""
        return super().instance_floats() * (1 + self.children)

    def label_losses(
        self,
        output: HeadOutput,
        labels: Any,
        mask: Bool[AnyArray, "B N"],
        of_logits: Callable[[Float[AnyArray, "B C"]], Float[Array, " B"]],
    ) -> dict[str, Float[Array, " B"]]:
        """`ce` of the masked network, and weighted `full`, `distil`, `rate` and `screen`."""
        aux = output.aux
        return {
            "ce": of_logits(aux["masked"]),
            "full": self.full * of_logits(aux["full"]),
            "distil": self.distil * aux["distance"],
            "rate": self.rate * jnp.square(aux["excess"]),
            "screen": self.screen * aux["screen"],
        }


class _Screen(nn.Module):
    """One number of every instance, by one hidden layer."""

    hidden: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, instances: Float[AnyArray, "B N W"], *, train: bool) -> Float[Array, "B N"]:
        layer = nn.Dense(self.hidden, dtype=self.dtype, name="hidden")
        values = nn.relu(layers.dense(layer, instances)).astype(jnp.float32)
        values = nn.Dropout(self.dropout, deterministic=not train)(values)
        weight = self.param("weight", nn.initializers.lecun_normal(), (self.hidden, 1))
        bias = self.param("bias", nn.initializers.zeros, ())
        return (values * weight.T[None]).sum(-1) + bias
