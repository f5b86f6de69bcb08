"""Masked pieces that the distillation losses share, safe under full masks and their gradients."""

import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


def f32(values: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """The values on the device in f32, in which every loss is reduced."""
    return jnp.asarray(values, jnp.float32)


def positive(name: str, value: object) -> None:
    """Refuse a hyper-parameter that is not above 0; traced values cannot be looked at.

    Raises:
      ConfigError: `value` is a plain number and not above 0.
    """
    if isinstance(value, numbers.Number) and not value > 0:
        raise ConfigError(f"{name} must be above 0, it is {value}.")


def masked_log_softmax(
    logits: Float[Array, "*batch N"], mask: Shaped[Array, "*batch N"]
) -> Float[Array, "*batch N"]:
    """Log-softmax over the masked entries; 0 outside, so that products with 0 stay 0."""
    mask = mask.astype(bool)
    # A finite stand-in for -inf: an empty row gives finite values and zero gradients, not NaN.
    lowest = jnp.finfo(jnp.float32).min / 2
    log_p = jax.nn.log_softmax(jnp.where(mask, f32(logits), lowest))
    return jnp.where(mask, log_p, 0.0)


def masked_mean(
    values: Float[Array, "*batch N"], mask: Shaped[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """Mean over the masked entries; 0 for an empty row."""
    mask = mask.astype(bool)
    return jnp.where(mask, values, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)
