"""Distillation losses: pure functions of arrays, one value per example.

Used as `distill.patch.layer_loss`, `distill.slide.bag_loss`, `distill.guidance.mass`.
"""

from lrmil_jax.distill import guidance, patch, slide

__all__ = ["guidance", "patch", "slide"]
