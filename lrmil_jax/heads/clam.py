"""CLAM with one attention branch or with one per class."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from lrmil_jax.heads import layers
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.heads.packing import Packing
from lrmil_jax.types import AnyArray


class ClamSB(Head):
    """Clustering-constrained attention MIL, single branch.

    A projection, gated attention, a linear classifier; and for every class a two-class classifier
    of instances, which learns from the bag's label to tell the k instances with most attention
    from the k with least.

    Source: Lu et al., "Data-efficient and weakly supervised computational pathology on
    whole-slide images", Nature Biomedical Engineering 2021, Methods; smooth SVM loss: Berrada,
    Zisserman and Kumar, ICLR 2018, equation 10 with k = 1 and a temperature of 1. Differences:
    k is cut to half of a bag, so that no instance is taught both ways.

    Attributes:
      num_classes: C.
      hidden: width of the attention's hidden layer (256 in the paper).
      width: of the projection of the instances; 0 takes them as they are.
      gated: gated attention.
      k: instances with most and with least attention that are taught.
      bag_weight: of the bag's loss; the instances' loss has the rest.
      subtyping: classes exclude each other: the k instances with most attention also teach the
        other classes' classifiers that they are none of theirs.
      dropout: rate after the projection and in the attention.
      dtype: compute type of the wide matmuls; softmax, pooling and logits are always f32.
    """

    needs_classes = True
    packs = True
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "k": (1, 10**6), "bag_weight": (0.0, 1.0), "width": (0, 10**5),
    }  # fmt: skip
    multi_branch: ClassVar[bool] = False

    num_classes: int
    hidden: int = 256
    width: int = 512
    gated: bool = True
    k: int = 8
    bag_weight: float = 0.7
    subtyping: bool = False
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
        """Classify bags.

        Args:
          bags: instance features [B, N, D]; rows outside the mask may hold any finite number.
          mask: True for real instances; a bag without any gives finite logits.
          xy: ignored.
          train: switch dropout on.
          packing: of bags in one row [1, T, D].

        Returns:
          `HeadOutput`; with a branch per class, `class_attention_logits` and the mean of the
          classes' attention. `aux` has `top` and `bottom` [B, C, k, 2]: logits of each class's
          classifier for the instances with most and with least attention.
        """
        mask = jnp.asarray(mask).astype(bool)
        rates = {"dropout": self.dropout, "dtype": self.dtype}
        instances = layers.Projection(self.width, name="projection", **rates)(bags, train=train)
        branches = self.num_classes if self.multi_branch else 1
        attention = layers.AttentionScores(
            self.hidden, branches, gated=self.gated, name="attention", **rates
        )
        scores = layers.by_bag(attention(instances, train=train), mask, packing)
        pooled = layers.pool(layers.softmax(scores, mask), instances, packing)
        aux = self._taught(instances, scores, mask, packing)
        kept = jnp.where(mask[..., None], scores, 0.0)
        if self.multi_branch:
            logits = layers.ClassWiseDense(1, name="classifier")(pooled)[..., 0]
            mean = layers.mean_attention(scores, mask)
            return HeadOutput(logits, mean, class_attention_logits=kept, aux=aux)
        logits = nn.Dense(self.num_classes, name="classifier")(pooled[:, 0])
        return HeadOutput(logits, kept[..., 0], aux=aux)

    def _taught(self, instances, scores, mask, packing) -> dict[str, Array]:
        classify = layers.ClassWiseDense(2, name="instance_classifiers")
        k = min(self.k, mask.shape[1])
        places = [
            jax.lax.top_k(jnp.where(mask[:, None], sign * scores.mT, -jnp.inf), k)[1]
            for sign in (1, -1)
        ]
        chosen = layers.take_rows(instances, jnp.concatenate(places, -1), packing)
        # [B, branches, 2k, W]
        shape = (chosen.shape[0], self.num_classes, *chosen.shape[2:])
        logits = classify(jnp.broadcast_to(chosen, shape).swapaxes(1, 2)).swapaxes(1, 2)
        return {"top": logits[:, :, :k], "bottom": logits[:, :, k:]}

    def label_losses(
        self,
        output: HeadOutput,
        labels: Int[AnyArray, " B"],
        mask: Bool[AnyArray, "B N"],
        of_logits: Callable[[Float[AnyArray, "B C"]], Float[Array, " B"]],
    ) -> dict[str, Float[Array, " B"]]:
        """`ce`, the bag's loss, and `instance`, that of its instances, by `bag_weight`.

        The instances' loss is the mean over the 2k instances of the label's class and, with
        `subtyping`, over the k instances of every other class, the sum then divided by C.
        """
        top, bottom = output.aux["top"], output.aux["bottom"]
        k = jnp.minimum(top.shape[2], mask.sum(-1) // 2)
        counted = jnp.arange(top.shape[2])[None, None] < k[:, None, None]
        share = counted / jnp.maximum(k, 1)[:, None, None]
        inside = (share * (_smooth_svm(top, 1) + _smooth_svm(bottom, 0))).sum(-1) / 2
        own = jax.nn.one_hot(labels, self.num_classes)
        loss = (own * inside).sum(-1)
        if self.subtyping:
            outside = (share * _smooth_svm(top, 0)).sum(-1)
            loss = (loss + ((1 - own) * outside).sum(-1)) / self.num_classes
        bag = self.bag_weight * of_logits(output.logits)
        return {"ce": bag, "instance": (1 - self.bag_weight) * loss}


class ClamMB(ClamSB):
    """`ClamSB` with an attention branch and a classifier of the bag for each class."""

    multi_branch: ClassVar[bool] = True


def _smooth_svm(logits: Float[Array, "*shape 2"], target: int) -> Float[Array, "*shape"]:
    """Smooth margin loss of two-class logits: log(1 + exp(1 + other - target))."""
    return jax.nn.softplus(1.0 + logits[..., 1 - target] - logits[..., target])
