"""Whole-slide images: opening, um/px, tissue, the patch lattice, and synthetic slides.

Everything counts in um/px; coordinates are (x, y) in pixels of the slide's finest level.
"""

from lrmil_jax.slides.annotations import Annotations
from lrmil_jax.slides.lattice import Lattice, check_resolution
from lrmil_jax.slides.levels import Level
from lrmil_jax.slides.slide import Slide, Thumbnail, open_slide
from lrmil_jax.slides.tissue import Tissue

__all__ = [
    "Annotations",
    "Lattice",
    "Level",
    "Slide",
    "Thumbnail",
    "Tissue",
    "check_resolution",
    "open_slide",
]
