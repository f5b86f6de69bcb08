"""Attention of every token to all, some queries at a time, with a gradient that does the same.

What the gradient needs of the weights is one number a query, the logarithm of their sum: Rabe and
Staats, "Self-attention Does Not Need O(n^2) Memory", 2021; the gradient as in Dao et al.,
"FlashAttention", NeurIPS 2022, appendix B.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Queries whose attention to all tokens is in memory at once.
BLOCK = 512


def scores(
    query: Float[Array, "B H Q d"],
    keys: Float[Array, "B H T d"],
    real: Bool[Array, "B T"],
    places: Float[Array, "B T 2"] | None,
    first: Any,
    rows: Float[Array, "B Q 2"] | None = None,
) -> Float[Array, "B H Q T"]:
    """Attention logits of some queries, -inf for tokens that may not be read.

    Args:
      query: scaled already.
      keys: of all tokens.
      real: tokens that may be read, at least one a row.
      places: of all tokens; ALiBi lowers logits with the distance. None: no positions.
      first: number of the first query among the tokens; token 0 lies nowhere.
      rows: places of the queries; None: those of the first tokens.
    """
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, keys, preferred_element_type=jnp.float32)
    if places is not None:
        heads, count = query.shape[1:3]
        rows = places[:, :count] if rows is None else rows
        squares = jnp.square(rows[:, :, None] - places[:, None]).sum(-1)
        inside = (first + jnp.arange(count) > 0)[:, None] & (jnp.arange(keys.shape[2]) > 0)[None]
        distance = jnp.where(inside[None], jnp.sqrt(squares), 0.0)
        slopes = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
        logits = logits - slopes[None, :, None, None] * distance[:, None]
    return jnp.where(real[:, None, None], logits, -jnp.inf)


@jax.custom_vjp
def attention(
    query: Float[Array, "B H T d"],
    keys: Float[Array, "B H T d"],
    values: Float[Array, "B H T d"],
    real: Bool[Array, "B T"],
    places: Float[Array, "B T 2"] | None,
) -> Float[Array, "B H T d"]:
    """Softmax attention, in float32; arguments as for `scores`. Places have no gradient."""
    return _forward(query, keys, values, real, places)[0]


def _forward(query, keys, values, real, places):
    def block(part):
        first, queries, rows = part
        logits = scores(queries, keys, real, places, first, rows)
        peak = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - peak)
        total = weights.sum(-1, keepdims=True)
        read = jnp.einsum("bhqk,bhkd->bhqd", weights, values, preferred_element_type=jnp.float32)
        return read / total, peak + jnp.log(total)

    count, size = query.shape[2], _size(query.shape[2])
    if size == count:
        read, scale = block((0, query, places))
    else:
        starts = jnp.arange(0, count, size)
        cut = (starts, _cut(query, 2, size), None if places is None else _cut(places, 1, size))
        read, scale = (_joined(part, count) for part in jax.lax.map(block, cut))
    return read, (query, keys, values, real, places, read, scale)


def _backward(kept, slope):
    query, keys, values, real, places, read, scale = kept
    along = (slope * read).sum(-1, keepdims=True)

    def block(total, part):
        first, queries, rows, scale, slope, along = part
        weights = jnp.exp(scores(queries, keys, real, places, first, rows) - scale)
        of_weights = jnp.einsum("bhqd,bhkd->bhqk", slope, values)
        of_logits = weights * (of_weights - along)
        of_values = jnp.einsum("bhqk,bhqd->bhkd", weights, slope)
        of_keys = jnp.einsum("bhqk,bhqd->bhkd", of_logits, queries)
        of_query = jnp.einsum("bhqk,bhkd->bhqd", of_logits, keys)
        return (total[0] + of_keys, total[1] + of_values), of_query

    count, size = query.shape[2], _size(query.shape[2])
    zero = jnp.zeros(keys.shape, jnp.float32)
    if size == count:
        (of_keys, of_values), of_query = block(
            (zero, zero), (0, query, places, scale, slope, along)
        )
    else:
        # Queries that fill the last block have no slope, and weights of a scale that is finite.
        cut = (jnp.arange(0, count, size), _cut(query, 2, size),
               None if places is None else _cut(places, 1, size),
               *(_cut(one, 2, size) for one in (scale, slope, along)))  # fmt: skip
        (of_keys, of_values), of_query = jax.lax.scan(block, (zero, zero), cut)
        of_query = _joined(of_query, count)
    found = zip((of_query, of_keys, of_values), (query, keys, values), strict=True)
    return (*(slope.astype(one.dtype) for slope, one in found), None, None)


attention.defvjp(_forward, _backward)


def _size(count: int) -> int:
    """Queries of a block: as many in each as it goes, at most `BLOCK`."""
    return -(-count // -(-count // BLOCK))


def _cut(rows: Array, axis: int, size: int) -> Array:
    """[blocks, ...] with `size` rows each along the axis, the last filled with zeros."""
    count = rows.shape[axis]
    blocks = -(-count // size)
    margins = [(0, (blocks * size - count) * (place == axis)) for place in range(rows.ndim)]
    shape = (*rows.shape[:axis], blocks, size, *rows.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(rows, margins).reshape(shape), axis, 0)


def _joined(blocks: Array, count: int) -> Array:
    """[B, H, count, ...] of [blocks, B, H, size, ...]."""
    whole = jnp.moveaxis(blocks, 0, 2)
    return whole.reshape(*whole.shape[:2], -1, whole.shape[-1])[:, :, :count]
