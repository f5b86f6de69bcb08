"""Stage 1: the low-resolution encoder learns from the frozen high-resolution one, per LR patch.

Every loss is per example, in f32 inside, 0 with zero gradients where all children are masked.
Values at masked children are never used, whatever they hold.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lrmil_jax.distill.masked import f32, masked_mean
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


def pool_windows(tokens: Float[AnyArray, "B g g D"], ratio: int) -> Float[Array, "B r r D"]:
    """Mean of the LR tokens in the window that each child owns.

    Args:
      tokens: LR tokens of one block, [row, column].
      ratio: children per side, r; child (v, u) owns the g/r x g/r window at (v g/r, u g/r).

    Raises:
      ConfigError: g / r is no whole number.
    """
    batch, grid, _, width = tokens.shape
    if ratio < 1 or grid % ratio:
        raise ConfigError(
            f"{grid} x {grid} tokens cannot be shared out among {ratio} x {ratio} children: choose "
            "an LR input size whose tokens per side are a multiple of the ratio of resolutions."
        )
    window = grid // ratio
    blocks = f32(tokens).reshape(batch, ratio, window, ratio, window, width)
    return blocks.mean((2, 4))


def layer_loss(
    tokens: Float[AnyArray, "B g g D"],
    child_cls: Float[AnyArray, "B r r D"],
    child_mask: Shaped[AnyArray, "B r r"],
) -> Float[Array, "B"]:
    """L_layer of one block: window means of the LR tokens against the children's CLS.

    `mean over k in K_i of mean_d (mean over window_k of h_l[i] - t_{l,k})^2`
    (LRMIL, stage 1; `method.md` part 2).

    Args:
      tokens: LR tokens after block l.
      child_cls: HR CLS after block l of each child, [row, column].
      child_mask: True where the child exists.

    Returns:
      The loss of each LR patch.

    Raises:
      ConfigError: tokens per side are no multiple of the children per side.
    """
    batch, ratio = child_cls.shape[:2]
    mask = jnp.asarray(child_mask).astype(bool)
    difference = pool_windows(tokens, ratio) - f32(child_cls)
    # Masked before squaring: NaN in an absent child must not reach the gradient.
    squares = jnp.square(jnp.where(mask[..., None], difference, 0.0)).mean(-1)
    return masked_mean(squares.reshape(batch, -1), mask.reshape(batch, -1))


def layer_losses(
    tokens: Float[AnyArray, "L B g g D"],
    child_cls: Float[AnyArray, "L B r r D"],
    child_mask: Shaped[AnyArray, "B r r"],
    scale: Float[AnyArray, "L"],
) -> Float[Array, "B"]:
    """L_layer over several blocks: the mean over blocks of `layer_loss / scale`.

    Args:
      tokens: LR tokens of the chosen blocks, stacked in the order of `child_cls` and `scale`.
      child_cls: HR CLS of the same blocks.
      child_mask: True where the child exists.
      scale: the variance of each block's targets over the training set, or ones.

    Returns:
      The loss of each LR patch.
    """
    losses = jax.vmap(layer_loss, in_axes=(0, 0, None))(tokens, child_cls, child_mask)
    return (losses / f32(scale)[:, None]).mean(0)


def attention_loss(
    student_cls: Float[AnyArray, "B D"],
    child_cls: Float[AnyArray, "B K D"],
    attention_logits: Float[AnyArray, "B K"],
    child_mask: Shaped[AnyArray, "B K"],
) -> Float[Array, "B"]:
    """L_attn: the LR embedding is drawn to the children that the teacher attends to.

    `sum over k in K_i of w_k mean_d (t_k - f_i)^2`, `w = softmax of e over K_i alone`
    (LRMIL, stage 1; `method.md` part 2).

    Args:
      student_cls: LR embedding f_i.
      child_cls: HR embeddings t_k of the children.
      attention_logits: the teacher's attention logits e_k, before any softmax.
      child_mask: True where the child exists.

    Returns:
      The loss of each LR patch.
    """
    mask = jnp.asarray(child_mask).astype(bool)
    logits = jnp.where(mask, f32(attention_logits), 0.0)
    weights = jax.nn.softmax(logits, where=mask)
    difference = f32(child_cls) - f32(student_cls)[:, None, :]
    squares = jnp.square(jnp.where(mask[..., None], difference, 0.0)).mean(-1)
    return (weights * squares).sum(-1)
