"""A batch of bags on the device, as heads and losses take it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrmil_jax import heads
from lrmil_jax.types import AnyArray


def standardise(
    features: Float[AnyArray, "B N D"], mean: Float[AnyArray, " D"], sd: Float[AnyArray, " D"]
) -> Float[Array, "B N D"]:
    """Stored features on the scale of the training patients', in float32."""
    return (jnp.asarray(features, jnp.float32) - mean[None, None]) / sd[None, None]


def of_batch(
    constants: Mapping[str, Array], batch: Mapping[str, Any]
) -> tuple[Float[Array, "_ _ D"], dict[str, Any], dict[str, Any]]:
    """One of `BagLoader`'s batches as heads and losses take it.

    Returns:
      The standardised instances; the batch, of which what is of instances is [B, N, ...]; and what
      the head is told of where they lie (`packing`, or `xy`).
    """
    packed = batch.get("instances")
    if packed is None:
        features = batch["features"] if "features" in batch else constants["bank"][batch["rows"]]
        where = {"xy": batch.get("xy")}
    else:
        rows = packed["features"] if "features" in packed else constants["bank"][packed["rows"]]
        features, packing = rows[None], heads.Packing(batch["first"], batch["size"])
        count = features.shape[1]
        told = {name: packing.by_bag(values[None], count) for name, values in packed.items()
                if name not in ("features", "rows")}  # fmt: skip
        batch, where = {**batch, **told, "mask": packing.mask(count)}, {"packing": packing}
    return standardise(features, constants["mean"], constants["sd"]), dict(batch), where
