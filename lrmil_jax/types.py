"""Array types of the public functions."""

import numpy as np
from jaxtyping import Array, Num

# NumPy arrays are as welcome as JAX's: tests, notebooks and host code call the same functions.
AnyArray = Array | np.ndarray
# A number of a loss, which may be an array [] where models that differ in it are one program.
Number = float | int | np.floating | Num[AnyArray, ""]
