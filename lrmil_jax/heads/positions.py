"""Where instances lie, as heads with positions want it."""

import numpy as np
from jaxtyping import Float, Int


def in_patches(xy: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Places of a bag's patches in units of patches, from 0.

    The patches lie on a lattice, whose step is the smallest distance between two of its columns or
    rows that hold a patch.

    Args:
      xy: level-0 px.
    """
    if not len(xy):
        return np.zeros((0, 2), np.float32)
    steps = [np.diff(np.unique(axis)) for axis in xy.T]
    step = min((int(each.min()) for each in steps if each.size), default=1)
    return ((xy - xy.min(0)) / step).astype(np.float32)
