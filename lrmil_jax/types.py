"""Array types of the public functions, and what stands for a coordinate that is not known."""

import numpy as np
from jaxtyping import Array

# NumPy arrays are as welcome as JAX's: tests, notebooks and host code call the same functions.
AnyArray = Array | np.ndarray
# In place of coordinates where another tool kept none.
NO_PLACE = -(2**31)
