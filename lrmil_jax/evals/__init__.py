"""Metrics per patient and their intervals."""

from lrmil_jax.evals import intervals, metrics

__all__ = ["intervals", "metrics"]
