"""Array types of the public functions."""

import numpy as np
from jaxtyping import Array

# NumPy arrays are as welcome as JAX's: tests, notebooks and host code call the same functions.
AnyArray = Array | np.ndarray
