"""Where instances lie, as heads with positions want it."""

import numpy as np
from jaxtyping import Float, Int

from lrmil_jax.errors import DataError
from lrmil_jax.places import NO_PLACE, lattice_step


def in_patches(xy: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Places of a bag's patches in units of patches, from 0.

    The patches lie on a lattice, whose step is the smallest distance between two of its columns or
    rows that hold a patch.

    Args:
      xy: level-0 px.

    Raises:
      DataError: the patches came from another tool, without coordinates.
    """
    if not len(xy):
        return np.zeros((0, 2), np.float32)
    if xy[0, 0] == NO_PLACE:
        raise DataError(
            "the features have no coordinates, which this head needs; choose a head without "
            "positions, such as gated_abmil, or give features with coordinates"
        )
    return ((xy - xy.min(0)) / lattice_step(xy)).astype(np.float32)
