"""DTFD-MIL: a bag is cut into pseudo-bags; what they distil is a smaller bag."""

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


class DTFD(Head):
    """Double-tier feature distillation MIL.

    Tier 1 is attention MIL on each of M pseudo-bags, which have the bag's label. The class
    activation of an instance, `L_n^c = a_n w_c . h_n`, says which instances a pseudo-bag gives on
    to tier 2, attention MIL on what all give: the one with the largest class probability ("max"),
    that and the one with the smallest ("maxmin"), or the pseudo-bag's pooled feature ("afs").

    Source: Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning
    for Histopathology Whole Slide Image Classification", CVPR 2022, equations 4 to 11.
    Differences: pseudo-bags are random in training alone; in prediction instance n of the bag's
    rows is in pseudo-bag n mod M, so that a slide is always predicted alike, and the order of rows
    matters. The class that ranks instances is the last of two, as in the paper; of more classes,
    the one that tier 1 predicts for the pseudo-bag.

    Attributes:
      num_classes: C.
      hidden: width of the attention's hidden layers.
      width: of the projection of the instances; 0 takes them as they are.
      gated: gated attention in both tiers.
      pseudo_bags: M.
      distill: "maxmin", "max" or "afs".
      dropout: rate after the projection and in the attention.
      dtype: compute type of the wide matmuls; softmax, pooling and logits are always f32.
    """

    order_free = False
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"distill": ("maxmin", "max", "afs")}
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "pseudo_bags": (1, 1000), "width": (0, 10**5),
    }  # fmt: skip

    num_classes: int
    hidden: int = 128
    width: int = 512
    gated: bool = True
    pseudo_bags: int = 5
    distill: str = "maxmin"
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
          train: switch dropout on and draw pseudo-bags; needs the rng stream "dropout".

        Returns:
          `HeadOutput`; `attention_logits` are those of an instance's attention in its pseudo-bag
          times the pseudo-bag's in tier 2, `instance_logits` the class activations, and `aux` has
          `pseudo_bags` [B, M, C], the logits of tier 1, and `present` [B, M], which have instances.
        """
        mask = jnp.asarray(mask).astype(bool)
        rates = {"dropout": self.dropout, "dtype": self.dtype}
        options = {"gated": self.gated, **rates}
        instances = layers.Projection(self.width, name="projection", **rates)(bags, train=train)
        members = self._members(mask, train)
        present = members.any(1)
        scores = layers.AttentionScores(self.hidden, name="attention_1", **options)(
            instances, train=train
        )
        shape = (*mask.shape, self.pseudo_bags)
        weights = jax.nn.softmax(jnp.broadcast_to(scores, shape), axis=1, where=members)
        pooled = layers.pool(weights, instances)
        classifier = nn.Dense(self.num_classes, name="classifier_1")
        first = classifier(pooled)
        # The classifier without its bias: what an instance adds to a class.
        bias = classifier(jnp.zeros((1, 1, instances.shape[-1])))
        activations = weights.sum(-1, keepdims=True) * (layers.dense(classifier, instances) - bias)
        given = self._given(activations, first, members, instances, pooled)
        there = jnp.tile(present, (1, given.shape[1] // self.pseudo_bags))
        attention = layers.AttentionScores(self.hidden, name="attention_2", **options)
        second = layers.softmax(attention(given, train=train), there)
        logits = nn.Dense(self.num_classes, name="classifier_2")(layers.pool(second, given)[:, 0])
        share = second[..., 0].reshape(len(mask), -1, self.pseudo_bags).sum(1)
        total = (weights * share[:, None]).sum(-1)
        return HeadOutput(
            logits,
            layers.log_weights(total, mask),
            jnp.where(mask[..., None], activations, 0.0),
            aux={"pseudo_bags": first, "present": present},
        )

    def _members(self, mask, train) -> Bool[Array, "B N M"]:
        """Which instance is in which pseudo-bag; all are equally large, to one."""
        place = jnp.cumsum(mask, 1) - 1
        if train:
            drawn = jax.random.uniform(self.make_rng("dropout"), mask.shape)
            order = jnp.argsort(jnp.where(mask, drawn, 2.0), 1)
            count = jnp.arange(mask.shape[1])
            place = jax.vmap(lambda own: jnp.zeros_like(own).at[own].set(count))(order)
        group = place[..., None] % self.pseudo_bags == jnp.arange(self.pseudo_bags)[None, None]
        return group & mask[..., None]

    def _given(self, activations, first, members, instances, pooled) -> Float[Array, "B G W"]:
        """What the pseudo-bags give to tier 2."""
        if self.distill == "afs":
            return pooled
        if self.num_classes <= 2:
            probability = jax.nn.softmax(activations)[..., -1:]
            ranked = activations if self.num_classes == 1 else probability
        else:
            predicted = jax.nn.one_hot(first.argmax(-1), self.num_classes)
            ranked = jnp.einsum("bnc,bmc->bnm", jax.nn.softmax(activations), predicted)
        places = jnp.where(members, ranked, -jnp.inf).argmax(1)
        if self.distill == "maxmin":
            smallest = jnp.where(members, ranked, jnp.inf).argmin(1)
            places = jnp.concatenate([places, smallest], 1)
        return layers.take_rows(instances, places)

    def label_losses(
        self,
        output: HeadOutput,
        labels: Any,
        mask: Bool[AnyArray, "B N"],
        of_logits: Callable[[Float[AnyArray, "B C"]], Float[Array, " B"]],
    ) -> dict[str, Float[Array, " B"]]:
        """`ce` of tier 2 and `pseudo_bags`, the mean loss of tier 1 over pseudo-bags."""
        losses = jax.vmap(of_logits, 1, 1)(output.aux["pseudo_bags"])
        present = output.aux["present"]
        mean = (losses * present).sum(-1) / jnp.maximum(present.sum(-1), 1)
        return {"ce": of_logits(output.logits), "pseudo_bags": mean}
