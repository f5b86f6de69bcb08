"""MIL heads: rows of instances with a mask in, class logits and attention out."""

from lrmil_jax.heads.abmil import ABMIL
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.mean import MeanPool
from lrmil_jax.heads.options import defaults
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.heads.positions import in_patches
from lrmil_jax.heads.registry import HEADS, create, find, parse_options

__all__ = [
    "ABMIL",
    "HEADS",
    "Head",
    "HeadOutput",
    "MeanPool",
    "create",
    "defaults",
    "find",
    "in_patches",
    "parse_options",
]
