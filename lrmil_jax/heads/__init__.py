"""MIL heads: rows of instances with a mask in, class logits and attention out."""

from lrmil_jax.heads.abmil import ABMIL
from lrmil_jax.heads.mean import MeanPool
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.heads.registry import HEADS, create

__all__ = ["ABMIL", "HEADS", "HeadOutput", "MeanPool", "create"]
