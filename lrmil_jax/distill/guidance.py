"""The teacher's attention over HR patches, brought down to the LR patches of one slide.

NumPy arrays give NumPy arrays, without any compilation; JAX arrays give JAX arrays.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lrmil_jax.arrays import f32, max_by, namespace, softmax, sum_by
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


def mass(
    attention_logits: Float[AnyArray, "K"],
    parent: Int[AnyArray, "K"],
    num_parents: int,
    mask: Shaped[AnyArray, "K"],
) -> Float[AnyArray, "num_parents"]:
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
    mask, parent, logits = _prepared(mask, parent, attention_logits)
    return sum_by(softmax(logits, mask), parent, num_parents)


def pooled(
    attention_logits: Float[AnyArray, "K"],
    parent: Int[AnyArray, "K"],
    num_parents: int,
    mask: Shaped[AnyArray, "K"],
    how: str,
) -> Float[AnyArray, "num_parents"]:
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
    mask, parent, logits = _prepared(mask, parent, attention_logits)
    xp = namespace(logits, parent, mask)
    count = sum_by(mask.astype(np.float32), parent, num_parents)
    if how == "mean":
        values = sum_by(logits, parent, num_parents) / xp.maximum(count, 1.0)
    elif how == "max":
        values = max_by(xp.where(mask, logits, -np.inf), parent, num_parents)
    else:
        raise ConfigError(f"Unknown pooling of the teacher's attention {how!r}: 'mean' or 'max'.")
    has_child = count > 0
    return softmax(xp.where(has_child, values, 0.0), has_child)


def covered(
    parent: Int[AnyArray, "K"], num_parents: int, mask: Shaped[AnyArray, "K"]
) -> Bool[AnyArray, "num_parents"]:
    """Which LR patches hold at least one HR patch that exists; arguments as for `mass`."""
    mask, parent, _ = _prepared(mask, parent, np.zeros(mask.shape, np.float32))
    return sum_by(mask.astype(np.int32), parent, num_parents) > 0


def _prepared(
    mask: Shaped[AnyArray, "K"], parent: Int[AnyArray, "K"], logits: Float[AnyArray, "K"]
) -> tuple[Bool[AnyArray, "K"], Int[AnyArray, "K"], Float[AnyArray, "K"]]:
    """Mask, parents and f32 logits of one kind of array, harmless where masked."""
    xp = namespace(mask, parent, logits)
    mask = xp.asarray(mask).astype(bool)
    # Masked HR patches may carry -1, which would count from the end.
    parent = xp.where(mask, xp.asarray(parent), 0)
    return mask, parent, xp.where(mask, xp.asarray(f32(logits)), np.float32(0))
