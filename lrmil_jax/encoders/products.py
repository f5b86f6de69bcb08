"""Products of tokens with weights: of floats, or of 8-bit integers where a program asks."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from lrmil_jax.types import AnyArray

_LARGEST = 127  # of an 8-bit integer; -128 is left out, so that signs are alike
_eight_bits = contextvars.ContextVar("eight_bits", default=False)


@contextlib.contextmanager
def eight_bits(on: bool = True) -> Iterator[None]:
    """What is traced within multiplies tokens and weights as 8-bit integers (W8A8), if `on`. It has
    no gradient."""
    token = _eight_bits.set(on)
    try:
        yield
    finally:
        _eight_bits.reset(token)


def dot_general(
    tokens: Float[AnyArray, "*batch W"],
    kernel: Float[AnyArray, "W V"],
    dimensions: Any,
    precision: Any = None,
    **options: Any,
) -> Float[Array, "*batch V"]:
    """`jax.lax.dot_general` of tokens with weights, as `flax.linen.Dense` calls it.

    Args:
      tokens: of the type of computation.
      kernel: of the same type.
      dimensions: the last of `tokens` with the first of `kernel`.
      precision: of products of floats.
      **options: of `jax.lax.dot_general`.
    """
    if _eight_bits.get():
        return _product(tokens, kernel)
    return jax.lax.dot_general(tokens, kernel, dimensions, precision=precision, **options)


def _product(
    tokens: Float[AnyArray, "*batch W"], kernel: Float[AnyArray, "W V"]
) -> Float[Array, "*batch V"]:
    """Each token has a scale and a middle of its own, each column of the weights a scale.

    A middle, as what comes from an activation lies on one side of 0. Source of the scales: the row-
    and column-wise ones of Dettmers et al., "LLM.int8()", NeurIPS 2022, section 2.1.
    """
    tokens32, kernel32 = tokens.astype(jnp.float32), kernel.astype(jnp.float32)
    middle = (tokens32.max(-1, keepdims=True) + tokens32.min(-1, keepdims=True)) / 2
    rows, row_scale = _rounded(tokens32 - middle, axis=-1)
    columns, column_scale = _rounded(kernel32, axis=0)
    sums = jax.lax.dot_general(
        rows,
        columns,
        (((rows.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    leading = (1,) * (rows.ndim - 1)
    scale = column_scale.reshape(*leading, -1)
    of_middle = columns.sum(0, dtype=jnp.int32).astype(jnp.float32).reshape(*leading, -1)
    out = (sums.astype(jnp.float32) * row_scale + middle * of_middle) * scale
    return out.astype(tokens.dtype)


def _rounded(
    values: Float[AnyArray, "*shape"], *, axis: int
) -> tuple[Int8[Array, "*shape"], Float[Array, "*scales"]]:
    """8-bit integers, and what one of them stands for along `axis`."""
    largest = jnp.abs(values).max(axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / _LARGEST
    return jnp.round(values / scale).astype(jnp.int8), scale
