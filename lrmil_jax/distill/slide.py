"""Stage 2: the student MIL learns from the teacher, per slide.

Every loss is per bag, in f32 inside, 0 with zero gradients for a bag without patches.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from lrmil_jax.distill.masked import (
    f32,
    masked_log_softmax,
    masked_mean,
    positive,
)
from lrmil_jax.types import AnyArray, Number


def bag_loss(
    student_logits: Float[AnyArray, "B C"],
    teacher_logits: Float[AnyArray, "B C"],
    *,
    temperature: Number,
) -> Float[Array, "B"]:
    """L_bag: `T^2 KL(softmax(teacher / T) || softmax(student / T))`.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    section 2: the factor T^2 keeps the gradients' size when T changes.

    Args:
      student_logits: class logits of the student.
      teacher_logits: class logits of the teacher.
      temperature: T above 0.

    Returns:
      The loss of each bag, at least 0.

    Raises:
      ConfigError: T is not above 0.
    """
    positive("The bag's distillation temperature", temperature)
    log_q = jax.nn.log_softmax(f32(teacher_logits) / temperature)
    log_p = jax.nn.log_softmax(f32(student_logits) / temperature)
    return temperature**2 * (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


def bernoulli_loss(
    student_logits: Float[AnyArray, "B n"],
    teacher_logits: Float[AnyArray, "B n"],
    *,
    temperature: Number,
) -> Float[Array, "B n"]:
    """L_bag where every logit is a probability of its own: `T^2 KL` of each pair of tempered ones.

    Args:
      student_logits: of the student; teacher_logits: of the teacher.
      temperature: T above 0.

    Returns:
      The loss of each logit, at least 0.

    Raises:
      ConfigError: T is not above 0.
    """
    positive("The bag's distillation temperature", temperature)
    teacher = f32(teacher_logits) / temperature
    student = f32(student_logits) / temperature
    target = jax.nn.sigmoid(teacher)
    cross_entropy = optax.sigmoid_binary_cross_entropy
    return temperature**2 * (cross_entropy(student, target) - cross_entropy(teacher, target))


def attention_kl_loss(
    student_attention_logits: Float[AnyArray, "B N"],
    guide: Float[AnyArray, "B N"],
    mask: Shaped[AnyArray, "B N"],
    *,
    temperature: Number,
) -> Float[Array, "B"]:
    """L_soft: `T^2 KL(q_T || softmax(student / T))`, `q_T` proportional to `guide^(1/T)`.

    Both sides are tempered, so the student whose attention is the guide has loss 0 at every T.
    Summed over the bag's patches, not divided by their number (`method.md` part 2).

    Args:
      student_attention_logits: the student's attention logits, before any softmax.
      guide: a distribution over the patches; a patch with guide 0 (no child) attracts nothing.
      mask: True for real patches.
      temperature: T above 0.

    Returns:
      The loss of each bag, at least 0.

    Raises:
      ConfigError: T is not above 0.
    """
    positive("The attention's distillation temperature", temperature)
    mask = jnp.asarray(mask).astype(bool)
    guide = jnp.where(mask, f32(guide), 0.0)
    covered = guide > 0
    log_guide = jnp.log(jnp.where(covered, guide, 1.0))
    log_q = masked_log_softmax(log_guide / temperature, covered)
    q = jnp.where(covered, jnp.exp(log_q), 0.0)
    log_p = masked_log_softmax(f32(student_attention_logits) / temperature, mask)
    return temperature**2 * (q * (log_q - log_p)).sum(-1)


def mixed_guide(
    guide: Float[AnyArray, "B N"],
    mask: Shaped[AnyArray, "B N"],
    *,
    second: Shaped[AnyArray, "B N"],
    share: Float[AnyArray, " B"],
) -> Float[Array, "B N"]:
    """The guide of bags that are mixed of two slides each: what is taken of the first sums to its
    share, what is taken of the second to the rest.

    Args:
      guide: the slides' own guides, of the patches that were taken.
      mask: True for real patches with a guide.
      second: True for patches of the second slide.
      share: of the first slide, from 0 to 1.
    """
    mask, second = jnp.asarray(mask).astype(bool), jnp.asarray(second).astype(bool)
    share = f32(share)[:, None]

    def part(of: Bool[AnyArray, "B N"]) -> Float[Array, "B N"]:
        own = jnp.where(mask & of, f32(guide), 0.0)
        total = own.sum(-1, keepdims=True)
        return own / jnp.where(total > 0, total, 1.0)

    return share * part(~second) + (1 - share) * part(second)


def attention_rank_loss(
    student_attention_logits: Float[AnyArray, "B N"],
    guide: Float[AnyArray, "B N"],
    mask: Shaped[AnyArray, "B N"],
    *,
    k: int,
    counted: Number | None = None,
) -> Float[Array, "B"]:
    """L_hard, `"rank"`: the k most guided patches must outrank the k least guided ones.

    Mean over the k x k pairs of `softplus(e_bottom - e_top)` (`method.md` part 2).

    Args:
      student_attention_logits: the student's attention logits e.
      guide: a distribution over the patches.
      mask: True for real patches.
      k: at most half of the bag is used on either side; see `extremes` for ties.
      counted: how many of the k count, see `extremes`.

    Returns:
      The loss of each bag; 0 for a bag of one patch.

    Raises:
      ConfigError: k is below 1.
    """
    top, bottom, valid = extremes(guide, mask, k=k, counted=counted)
    logits = f32(student_attention_logits)
    upper = jnp.take_along_axis(logits, top, -1)
    lower = jnp.take_along_axis(logits, bottom, -1)
    pairs = jax.nn.softplus(lower[:, None, :] - upper[:, :, None])
    valid_pairs = valid[:, None, :] & valid[:, :, None]
    return masked_mean(pairs.reshape(len(pairs), -1), valid_pairs.reshape(len(valid_pairs), -1))


def instance_loss(
    instance_logits: Float[AnyArray, "B N 2"],
    guide: Float[AnyArray, "B N"],
    mask: Shaped[AnyArray, "B N"],
    *,
    k: int,
    counted: Number | None = None,
) -> Float[Array, "B"]:
    """L_hard, `"instance"`: the k most guided patches are class 1, the k least guided class 0.

    Mean cross-entropy over the 2 k patches. The logits must come from a learned projection of
    the instances, or the loss trains nothing but its own classifier.
    Source: Lu et al., "Data-efficient and weakly supervised computational pathology on
    whole-slide images" (CLAM), 2021, with the teacher's guide in place of the own attention.

    Args:
      instance_logits: two logits per patch.
      guide: a distribution over the patches.
      mask: True for real patches.
      k, counted: as in `attention_rank_loss`.

    Returns:
      The loss of each bag.

    Raises:
      ConfigError: k is below 1.
    """
    top, bottom, valid = extremes(guide, mask, k=k, counted=counted)
    log_p = jax.nn.log_softmax(f32(instance_logits))
    upper = jnp.take_along_axis(log_p[..., 1], top, -1)
    lower = jnp.take_along_axis(log_p[..., 0], bottom, -1)
    return -0.5 * (masked_mean(upper, valid) + masked_mean(lower, valid))


def extremes(
    guide: Float[AnyArray, "B N"],
    mask: Shaped[AnyArray, "B N"],
    *,
    k: int,
    counted: Number | None = None,
) -> tuple[Int[Array, "B k"], Int[Array, "B k"], Bool[Array, "B k"]]:
    """Indices of the k patches with most and the k with least guide, and which of them count.

    k is cut to half of the bag's patches, and further to where the guide tells top from bottom:
    of patches with one and the same guide, none may be made to outrank another. `counted`, at most
    k, is a smaller k that may be an array: shapes depend on k alone.

    Returns:
      `top` by falling and `bottom` by rising guide, and `valid`, True at the first places up to
      the bag's own k; the two never share a patch where `valid`.

    Raises:
      ConfigError: k is below 1.
    """
    positive("top-k", k)
    mask = jnp.asarray(mask).astype(bool)
    guide = f32(guide)
    width = guide.shape[-1]
    k = min(k, width // 2)
    most, top = jax.lax.top_k(jnp.where(mask, guide, -jnp.inf), k)
    least, bottom = jax.lax.top_k(jnp.where(mask, -guide, -jnp.inf), k)
    limit = mask.sum(-1, keepdims=True) // 2
    if counted is not None:
        limit = jnp.minimum(limit, counted)
    valid = (jnp.arange(k)[None, :] < limit) & (most > -least)
    return top, bottom, valid
