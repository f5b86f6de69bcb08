"""MIL heads: rows of instances with a mask in, class logits and attention out."""

from lrmil_jax.heads.abmil import ABMIL
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.mean import MeanPool
from lrmil_jax.heads.options import defaults
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.heads.packing import Packing
from lrmil_jax.heads.positions import in_patches
from lrmil_jax.heads.registry import HEADS, create, find, name_of, parse_options

__all__ = [
    "ABMIL",
    "HEADS",
    "Head",
    "HeadOutput",
    "MeanPool",
    "Packing",
    "create",
    "defaults",
    "find",
    "in_patches",
    "name_of",
    "parse_options",
]
