"""The image-text loss and what a trained pair says of an image: pure functions of embeddings.

Sources: symmetric InfoNCE with a learned, clipped scale: Radford et al., "Learning Transferable
Visual Models From Natural Language Supervision", ICML 2021; targets shared by all pairs of one
group: Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lrmil_jax.arrays import f32, namespace
from lrmil_jax.types import AnyArray

# Both of Radford et al.: a temperature of 0.07 to begin with, and never below 0.01.
FIRST_LOG_SCALE = math.log(1 / 0.07)
_LARGEST_LOG_SCALE = math.log(100.0)
_NEVER = -1e30  # finite, so that a row without any pair gives no NaN


def logit_scale(log_scale: Float[AnyArray, ""]) -> Float[Array, ""]:
    """The factor on cosine similarities, at most 100, from the parameter that learns."""
    return jnp.exp(jnp.minimum(log_scale, _LARGEST_LOG_SCALE))


def normalise(vectors: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
    """Vectors of length 1, in float32; a zero vector stays zero. NumPy gives NumPy."""
    vectors, xp = f32(vectors), namespace(vectors)
    squared = xp.sum(vectors**2, -1, keepdims=True)
    return vectors / xp.sqrt(xp.maximum(squared, np.float32(1e-24)))


def contrastive_loss(
    image_embedding: Float[AnyArray, "B d"],
    text_embedding: Float[AnyArray, "B d"],
    group: Int[AnyArray, " B"],
    mask: Bool[AnyArray, " B"],
    *,
    scale: Float[AnyArray, ""] | float | int,
) -> Float[Array, " B"]:
    """Symmetric cross-entropy of matching each image with the batch's texts, and the reverse.

    The target of an image is uniform over the texts of its group, so texts that say the same of
    another tile are no negatives. With groups all different this is CLIP's loss.

    Args:
      image_embedding: of length 1, row i belongs to row i of the texts.
      text_embedding: of length 1.
      group: equal numbers name pairs that match one another.
      mask: False marks rows that only fill up the batch: neither positives nor negatives.
      scale: factor on the cosines, see `logit_scale`.

    Returns:
      Mean of both directions for each pair; 0 where `mask` is False.
    """
    real = mask[None, :] & mask[:, None]
    # Filled in after scaling: the scale's gradient must not meet such numbers.
    logits = jnp.where(real, scale * (image_embedding @ text_embedding.T), _NEVER)
    match = (group[:, None] == group[None, :]) & real
    target = match / jnp.maximum(match.sum(1, keepdims=True), 1)

    def cross_entropy(logits):
        # Filled columns are left out by their zero target and their vanishing exponential.
        log_p = jnp.where(match, jax.nn.log_softmax(logits, axis=1), 0.0)
        return -jnp.sum(target * log_p, 1)

    loss = 0.5 * (cross_entropy(logits) + cross_entropy(logits.T))
    return jnp.where(mask, loss, 0.0)


def in_batch_accuracy(
    image_embedding: Float[AnyArray, "B d"],
    text_embedding: Float[AnyArray, "B d"],
    group: Int[AnyArray, " B"],
    mask: Bool[AnyArray, " B"],
) -> Float[Array, " B"]:
    """1 where the nearest of the batch's texts is of the image's own group, else 0.

    Args:
      image_embedding: of length 1.
      text_embedding: of length 1.
      group: of each pair.
      mask: False marks filling, which is never the nearest.
    """
    group = jnp.asarray(group)
    cosine = jnp.where(mask[None, :], image_embedding @ text_embedding.T, _NEVER)
    return (group[cosine.argmax(1)] == group).astype(jnp.float32)


def in_batch_chance(group: Int[AnyArray, " B"], mask: Bool[AnyArray, " B"]) -> Float[Array, " B"]:
    """What `in_batch_accuracy` is on average where one text is nearest to every image: at best
    the share of the batch's largest group, which needs no look at any image.

    Args:
      group: of each pair.
      mask: False marks filling, which counts for nothing.
    """
    group, mask = jnp.asarray(group), jnp.asarray(mask)
    members = ((group[:, None] == group[None, :]) & mask[None, :]).sum(1)
    largest = jnp.where(mask, members, 0).max() / jnp.maximum(mask.sum(), 1)
    return jnp.full(group.shape, largest, jnp.float32)


def class_embedding(
    text_embedding: Float[AnyArray, "K d"], label: Int[AnyArray, " K"], *, num_classes: int
) -> Float[Array, "C d"]:
    """The normalised mean of every class's caption embeddings (Radford et al., section 3.1.4).

    Args:
      text_embedding: captions, of length 1.
      label: class of each caption, from 0.
      num_classes: C; a class without any caption gets zeros, so it scores 0 everywhere.
    """
    sums = jax.ops.segment_sum(jnp.asarray(text_embedding), jnp.asarray(label), num_classes)
    return normalise(sums)  # of the sum as of the mean


def zero_shot(
    image_embedding: Float[AnyArray, "n d"],
    text_embedding: Float[AnyArray, "K d"],
    label: Int[AnyArray, " K"],
    *,
    num_classes: int,
) -> Float[Array, "n C"]:
    """Class scores of images that were never labelled: cosines with `class_embedding`.

    Args:
      image_embedding: in the space of the texts, of length 1 (`TextTower.project`).
      text_embedding: captions, of length 1 (`TextTower.embed`).
      label: class of each caption, from 0.
      num_classes: C.

    Returns:
      Cosines, from -1 to 1; multiplied by the logit scale they are logits.
    """
    return image_embedding @ class_embedding(text_embedding, label, num_classes=num_classes).T
