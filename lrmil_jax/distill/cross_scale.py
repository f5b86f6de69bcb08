"""Cross-scale alignment: a low-resolution patch learns to embed as its children do, in the shared
space of images and texts (WISE-FUSE's CS-VPT, `method.md` part 3).

Every loss is per example, in f32 inside. No embedding need be normalised: all are here, as cosines
are what counts. A patch without children has no target: its loss is finite, with finite gradients,
but means nothing, so the caller weighs it 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lrmil_jax.distill.masked import positive
from lrmil_jax.distill.slide import bag_loss
from lrmil_jax.encoders.contrastive import normalise
from lrmil_jax.types import AnyArray, Number


def children_mean(
    child_embedding: Float[AnyArray, "B K d"], child_mask: Shaped[AnyArray, "B K"]
) -> Float[Array, "B d"]:
    """zbar: the normalised mean of the children's normalised embeddings.

    Args:
      child_embedding: HR embeddings of each LR patch's children, of any length; those of absent
        children are never used, whatever they hold.
      child_mask: True where the child exists.

    Returns:
      Vectors of length 1; zeros for a patch without children.
    """
    mask = jnp.asarray(child_mask).astype(bool)[..., None]
    # Masked before normalising: NaN in an absent child must not reach the gradient.
    children = normalise(jnp.where(mask, jnp.asarray(child_embedding), 0.0))
    return normalise(children.sum(1))  # of the sum as of the mean


def cosine_loss(z: Float[AnyArray, "B d"], target: Float[AnyArray, "B d"]) -> Float[Array, "B"]:
    """`1 - cos(z, target)`, from 0 to 2.

    Args:
      z: LR embeddings, of any length.
      target: the embeddings to come to, of any length; with zeros the loss is 1.
    """
    return 1.0 - (normalise(z) * normalise(target)).sum(-1)


def agreement_loss(
    z: Float[AnyArray, "B d"],
    target: Float[AnyArray, "B d"],
    classes: Float[AnyArray, "C d"],
    *,
    scale: Number,
) -> Float[Array, "B"]:
    """`KL(softmax(s T target) || softmax(s T z))`: both must say the same of the classes.

    Args:
      z: LR embeddings, of any length.
      target: the embeddings to come to, of any length.
      classes: text embeddings T of the classes, of any length.
      scale: s above 0, the vision-language model's logit scale.

    Returns:
      The loss of each patch, at least 0.

    Raises:
      ConfigError: s is not above 0.
    """
    positive("The logit scale", scale)

    def logits(embedding):
        # Logits of some tens: the rounding that accelerators do by default would show.
        cosine = jnp.matmul(normalise(embedding), normalise(classes).T, precision="highest")
        return scale * cosine

    return bag_loss(logits(z), logits(target), temperature=1.0)


def cross_scale_loss(
    z: Float[AnyArray, "B d"],
    target: Float[AnyArray, "B d"],
    classes: Float[AnyArray, "C d"],
    *,
    scale: Number,
    beta: Number,
) -> dict[str, Float[Array, "B"]]:
    """`cosine_loss + beta * agreement_loss`, and both.

    Args:
      z: LR embeddings z_i, of any length.
      target: `children_mean` of their children.
      classes: text embeddings T of the classes, of any length.
      scale: s above 0, the vision-language model's logit scale.
      beta: weight of the agreement; 0 leaves it out.

    Returns:
      "loss" of each patch, at least 0 if beta is, and its terms "cosine" and "agreement".

    Raises:
      ConfigError: s is not above 0.
    """
    cosine = cosine_loss(z, target)
    agreement = agreement_loss(z, target, classes, scale=scale)
    return {"loss": cosine + beta * agreement, "cosine": cosine, "agreement": agreement}
