"""Slide classification from low-resolution patches on JAX: LRMIL and WISE-FUSE."""

__version__ = "0.1.0"
