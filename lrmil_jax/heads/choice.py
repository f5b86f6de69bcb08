"""The K highest of some scores: how many, which, and with a gradient.

The gradient is that of the maximum under noise: Berthet et al., "Learning with Differentiable
Perturbed Optimizers", NeurIPS 2020, definition 2.1 and proposition 3.1, of the top-K as Cordonnier
et al., "Differentiable Patch Selection for Image Recognition", CVPR 2021, write it, section 3.
"""

import functools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lrmil_jax.types import AnyArray


def size(total: Any, *, rho: float | int | np.floating | None, count: int | None = None) -> Any:
    """How many of so many are chosen, of a number or of an array of numbers.

    Args:
      total: N.
      rho: share of them, taken as the decimal number that it is written as; or
      count: their number.

    Returns:
      ceil(rho N) or `count`, at least 1 and at most N.
    """
    if count:
        wanted = count
    else:
        share = Fraction(str(rho))
        wanted = -(-total * share.numerator // share.denominator)
    return np.minimum(np.maximum(wanted, 1), total)


def sizes(mask: Bool[AnyArray, "B N"], rho: float, count: int) -> tuple[Int[Array, " B"], int]:
    """`size` of each bag, by its mask, and the most that there may be."""
    # A table, as the exact share is no arithmetic of a device.
    table = size(np.arange(mask.shape[1] + 1), rho=rho, count=count).astype(np.int32)
    return jnp.asarray(table)[mask.sum(1)], int(table[-1])


def highest(
    scores: Float[AnyArray, "B N"], mask: Bool[AnyArray, "B N"], wanted: Int[AnyArray, " B"]
) -> Bool[Array, "B N"]:
    """True for the `wanted` highest of every bag; ties go to the lower place."""
    order = jnp.argsort(jnp.where(mask, -scores, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return (rank < wanted[:, None]) & mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def perturbed(
    scores: Float[AnyArray, " N"],
    wanted: Int[AnyArray, ""],
    noise: Float[AnyArray, "S N"],
    deviation: float,
    most: int,
) -> Float[Array, "{most} N"]:
    """The mean choice under noise of one bag's scores, `E[Y(s + deviation Z)]`, Z ~ N(0, 1).

    Row j of `Y` is 1 at the place of the j-th of those chosen, in the order of their places. Its
    derivative in the direction of a slope G is `E[<G, Y> Z] / deviation`; what the choice without
    noise gives is taken from `<G, Y>`, which leaves the mean and takes most of the variance away.

    Args:
      scores: s; -inf at places that cannot be chosen.
      wanted: K of this bag, at most `most`; rows from K on are 0.
      noise: S draws of Z.
      deviation: SD of the noise, above 0.
      most: rows of the result.
    """
    return _forward(scores, wanted, noise, deviation, most)[0]


def _places(scores, wanted, most: int) -> Int[Array, "*S most"]:
    """Places of the `wanted` highest, rising; N in the rest of the `most`."""
    order = jax.lax.top_k(scores, most)[1]
    return jnp.sort(jnp.where(jnp.arange(most) < wanted, order, scores.shape[-1]), axis=-1)


def _forward(scores, wanted, noise, deviation, most):
    draws, count = noise.shape
    places = _places(scores[None] + deviation * noise, wanted, most)
    rows = jnp.broadcast_to(jnp.arange(most), places.shape)
    mean = jnp.zeros((most, count + 1)).at[rows, places].add(1.0 / draws)[:, :count]
    return mean, (places, _places(scores, wanted, most), noise)


def _backward(deviation, most, kept, slope):
    places, still, noise = kept
    slope = jnp.pad(slope, ((0, 0), (0, 1)))
    rows = jnp.arange(most)
    gain = slope[rows, places].sum(-1) - slope[rows, still].sum()
    along = gain @ noise / (len(noise) * deviation)
    return along, None, None


perturbed.defvjp(_forward, _backward)
