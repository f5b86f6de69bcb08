"""Functions of one slide's arrays that run in NumPy where NumPy is given.

Slides have as many patches as they please: JAX would compile anew for each number of them, which
costs a thousand times what NumPy takes. Inside a jitted step the same functions are JAX's.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import special

from lrmil_jax.types import AnyArray


def namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` if one of the arrays is JAX's, traced or not; else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def f32(values: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """The values in f32, where they are."""
    return namespace(values).asarray(values, np.float32)


def softmax(
    values: Float[AnyArray, "*n c"], where: Shaped[AnyArray, "*m c"] | None = None
) -> Float[AnyArray, "*n c"]:
    """Over the last axis; 0 outside `where`, and everywhere in a row without any."""
    if namespace(values, where) is jnp:
        return jax.nn.softmax(values, where=where)
    if where is None:
        where = np.ones(values.shape, bool)
    kept = np.where(where, values, -np.inf)
    highest = kept.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(kept - np.where(np.isfinite(highest), highest, 0))
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def sigmoid(values: Float[AnyArray, "*n c"]) -> Float[AnyArray, "*n c"]:
    """`1 / (1 + exp(-x))` of each value."""
    return jax.nn.sigmoid(values) if namespace(values) is jnp else special.expit(values)


def logit(values: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n c"]:
    """What `sigmoid` makes these values of, in f64; 0 and 1 stand for a trillionth less."""
    return special.logit(np.clip(np.asarray(values, np.float64), 1e-12, 1 - 1e-12))


def sum_by(
    values: Shaped[AnyArray, "n"], group: Int[AnyArray, "n"], groups: int
) -> Shaped[AnyArray, "{groups}"]:
    """Sums of the values of each group; 0 of none."""
    if namespace(values, group) is jnp:
        return jax.ops.segment_sum(values, group, groups)
    return np.bincount(group, values, groups).astype(values.dtype)


def max_by(
    values: Float[AnyArray, "n"], group: Int[AnyArray, "n"], groups: int
) -> Float[AnyArray, "{groups}"]:
    """The largest value of each group; -inf of none."""
    if namespace(values, group) is jnp:
        return jax.ops.segment_max(values, group, groups)
    largest = np.full(groups, -np.inf, values.dtype)
    np.maximum.at(largest, group, values)
    return largest
