"""Floating point operations of encoders, counted by XLA from shapes alone: no weights are read."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lrmil_jax import encoders
from lrmil_jax.data.schema import Geometry
from lrmil_jax.models import loading


def flops_per_patch(
    name: str, options: Mapping[str, Any], geometry: Geometry, lr_px: int | None = None
) -> dict[str, float] | None:
    """Of one patch's forward pass at "hr" and "lr", a product and its sum being two.

    Args:
      name, options: of the encoder, as `cohort.json` has them.
      geometry, lr_px: of the run; LR tiles are read at `loading.lr_side`.

    Returns:
      None where XLA counts nothing.

    Raises:
      ConfigError: there is no such encoder.
    """
    module = encoders.create(name, **options)
    sides = {
        "hr": encoders.transform(name, **options).px,
        "lr": loading.lr_side(geometry, module, lr_px),
    }
    counts = {side: _count(module, side) for side in set(sides.values())}
    if None in counts.values():
        return None
    return {level: counts[side] for level, side in sides.items()}


@functools.lru_cache(maxsize=32)
def _count(module: Any, side: int) -> float | None:
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    # Positions are made for the side that training had, and resized for another.
    made_for = jax.ShapeDtypeStruct((1, module.px, module.px, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), made_for)
    lowered = jax.jit(lambda p, x: module.apply(p, x).embedding).lower(params, image)
    count = (lowered.cost_analysis() or {}).get("flops")
    return None if count is None else float(count)
