"""What stands for a coordinate that is not known; apart, so that it is read without JAX or TFDS."""

# In place of coordinates (level-0 px) where another tool kept none.
NO_PLACE = -(2**31)
