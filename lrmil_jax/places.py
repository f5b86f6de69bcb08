"""Coordinates of patches; apart, so that they are read without JAX or TFDS."""

import numpy as np
from jaxtyping import Num

# In place of coordinates (level-0 px) where another tool kept none.
NO_PLACE = -(2**31)


def lattice_step(xy: Num[np.ndarray, "n 2"]) -> int:
    """The smallest distance of two columns or two rows that hold a patch; 1 where there is one.

    Args:
      xy: level-0 px, of patches on a lattice.
    """
    steps = [np.diff(np.unique(axis)) for axis in xy.T]
    return min((int(each.min()) for each in steps if each.size), default=1)
