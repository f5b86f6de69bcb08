"""Instances of two magnifications: an LR patch beside the HR patches that lie in it, its children.

A row is [LR feature, features of the children, which of them are there]; `data.cells` makes it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lrmil_jax.types import AnyArray


class Cells(NamedTuple):
    """The parts of a batch of such bags.

    Attributes:
      low: [B, N, W] features of the LR patches.
      high: [B, N, K, W] of their children, 0 where one is missing.
      there: [B, N, K] children that are there; none of an instance that is filling.
    """

    low: Float[Array, "B N W"]
    high: Float[Array, "B N K W"]
    there: Bool[Array, "B N K"]


def split(bags: Float[AnyArray, "B N D"], mask: Bool[AnyArray, "B N"], children: int) -> Cells:
    """The parts of rows of W (K + 1) + K numbers, K being `children`; more are left out."""
    bags = jnp.asarray(bags)
    width = (bags.shape[-1] - children) // (children + 1)
    edge = width * (children + 1)
    there = (bags[..., edge : edge + children] > 0.5) & jnp.asarray(mask)[..., None]
    high = bags[..., width:edge].reshape(*bags.shape[:2], children, width)
    return Cells(bags[..., :width], jnp.where(there[..., None], high, 0.0), there)


def weighted_softmax(
    scores: Float[AnyArray, "B M"], weights: Float[AnyArray, "B M"]
) -> Float[Array, "B M"]:
    """`w_m exp(e_m) / sum_j w_j exp(e_j)`, with a gradient of the weights; zeros where all are 0.

    Args:
      scores: e.
      weights: w, not negative.
    """
    peak = jnp.max(scores, 1, keepdims=True, where=weights > 0, initial=-1e30)
    # Scores whose weight is 0 may be larger than the peak, and their exponential infinite.
    parts = weights * jnp.exp(jnp.minimum(scores - peak, 0.0))
    total = parts.sum(1, keepdims=True)
    return parts / jnp.where(total > 0, total, 1.0)
