"""Bags of any sizes side by side in one row of instances, without filling between them."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from lrmil_jax.types import AnyArray


@flax.struct.dataclass
class Packing:
    """Where each of B bags lies in a row of T instances, `[1, T, ...]`.

    What a head computes of an instance alone is computed once for the row, which can be split over
    devices wherever bags begin; what weighs a bag's instances against each other sees numbers of
    theirs by bag, [B, N]. The fields are Any because JAX rebuilds the struct.

    Attributes:
      first: [B] place of each bag's first instance.
      size: [B] its instances; 0 for an empty slot.
    """

    first: Any
    size: Any

    def mask(self, count: int) -> Bool[Array, "B N"]:
        """True for real instances of bags that are filled up to `count`."""
        return jnp.arange(count)[None] < self.size[:, None]

    def by_bag(self, row: Shaped[AnyArray, "1 T *K"], count: int) -> Shaped[Array, "B N *K"]:
        """The instances of every bag, the first `count`; any of the row's outside the mask."""
        return self.take(row, jnp.broadcast_to(jnp.arange(count), (len(self.first), count)))

    def take(
        self, row: Shaped[AnyArray, "1 T *K"], places: Int[AnyArray, "B *n"]
    ) -> Shaped[Array, "..."]:
        """Instances of every bag by their places in it, the first axis being that of bags."""
        first = self.first.reshape(-1, *[1] * (places.ndim - 1))
        return jnp.asarray(row)[0][jnp.minimum(first + places, row.shape[1] - 1)]

    def pool(
        self, weights: Float[AnyArray, "B N K"], row: Float[AnyArray, "1 T W"]
    ) -> Float[Array, "B K W"]:
        """Weighted sums of each bag's instances, in float32.

        One matmul with a matrix that is 0 where an instance is of another bag: a sum over the row,
        however that is split.
        """
        bags, count, branches = weights.shape
        present = jnp.where(self.mask(count)[..., None], weights, 0.0)
        place = jnp.arange(row.shape[1])[None] - self.first[:, None]  # [B, T], within the bag
        inside = (place >= 0) & (place < self.size[:, None])
        spread = jnp.take_along_axis(present, jnp.clip(place, 0, count - 1)[..., None], axis=1)
        spread = jnp.where(inside[..., None], spread, 0.0)  # [B, T, K]
        flat = spread.swapaxes(1, 2).reshape(bags * branches, -1)
        pooled = jnp.matmul(
            flat, jnp.asarray(row)[0], precision="highest", preferred_element_type=jnp.float32
        )
        return pooled.reshape(bags, branches, -1)
