"""Metrics per patient and their bootstrap intervals."""

from lrmil_jax.evals import bootstrap, metrics

__all__ = ["bootstrap", "metrics"]
