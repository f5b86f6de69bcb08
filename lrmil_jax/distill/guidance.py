"""The teacher's attention over HR patches, brought down to the LR patches of one slide."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from lrmil_jax.distill.masked import f32
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


def mass(
    attention_logits: Float[AnyArray, "K"],
    parent: Int[AnyArray, "K"],
    num_parents: int,
    mask: Shaped[AnyArray, "K"],
) -> Float[Array, "num_parents"]:
    """Attention mass that falls in each LR patch: `q_i` = sum over its children of `alpha_k`.

    `alpha` is the softmax over all masked HR patches of the slide (`method.md` part 2).

    Args:
      attention_logits: the teacher's logits e_k of each HR patch.
      parent: index of the LR patch that each HR patch lies in; any number where masked.
      num_parents: number of LR patches; static under jit.
      mask: True for HR patches that exist.

    Returns:
      A distribution over the LR patches; zeros if no HR patch exists.
    """
    mask, parent = _prepared(mask, parent)
    logits = jnp.where(mask, f32(attention_logits), 0.0)
    alpha = jax.nn.softmax(logits, where=mask)
    return jax.ops.segment_sum(alpha, parent, num_parents)


def pooled(
    attention_logits: Float[AnyArray, "K"],
    parent: Int[AnyArray, "K"],
    num_parents: int,
    mask: Shaped[AnyArray, "K"],
    how: str,
) -> Float[Array, "num_parents"]:
    """Softmax over the LR patches of the mean or the maximum of their children's logits.

    Args:
      attention_logits: the teacher's logits e_k of each HR patch.
      parent: index of the LR patch that each HR patch lies in; any number where masked.
      num_parents: number of LR patches; static under jit.
      mask: True for HR patches that exist.
      how: `"mean"` or `"max"` over the children.

    Returns:
      A distribution over the LR patches; 0 for a patch without children, which takes no part.

    Raises:
      ConfigError: another `how`.
    """
    mask, parent = _prepared(mask, parent)
    logits = f32(attention_logits)
    count = jax.ops.segment_sum(mask.astype(jnp.float32), parent, num_parents)
    has_child = count > 0
    if how == "mean":
        total = jax.ops.segment_sum(jnp.where(mask, logits, 0.0), parent, num_parents)
        values = total / jnp.maximum(count, 1.0)
    elif how == "max":
        values = jax.ops.segment_max(jnp.where(mask, logits, -jnp.inf), parent, num_parents)
    else:
        raise ConfigError(f"Unknown pooling of the teacher's attention {how!r}: 'mean' or 'max'.")
    return jax.nn.softmax(jnp.where(has_child, values, 0.0), where=has_child)


def covered(
    parent: Int[AnyArray, "K"], num_parents: int, mask: Shaped[AnyArray, "K"]
) -> Bool[Array, "num_parents"]:
    """Which LR patches hold at least one HR patch that exists; arguments as for `mass`."""
    mask, parent = _prepared(mask, parent)
    return jax.ops.segment_sum(mask.astype(jnp.int32), parent, num_parents) > 0


def _prepared(
    mask: Shaped[AnyArray, "K"], parent: Int[AnyArray, "K"]
) -> tuple[Bool[Array, "K"], Int[Array, "K"]]:
    mask = jnp.asarray(mask).astype(bool)
    # Masked HR patches may carry -1, which would count from the end.
    return mask, jnp.where(mask, jnp.asarray(parent), 0)
