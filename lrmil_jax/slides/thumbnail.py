"""A slide at low power, in bounded memory, with what cannot be decoded left white and listed."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lrmil_jax.errors import SlideError

_BLOCK_PX = 2048  # side of the raw blocks from which a thumbnail is made: 12 MiB each
_SMALLEST_BLOCK_PX = 256  # an undecodable block is given up at this raw side


class UndecodableError(Exception):
    """Raw pixels cannot be decoded."""


@dataclass(frozen=True)
class Thumbnail:
    """A slide at low power.

    Attributes:
      image: [h, w, 3] pixels; white where the slide could not be decoded.
      downsample: level-0 pixels per thumbnail pixel, the same in x and y.
      unreadable: (x, y, side) in level-0 pixels of blocks that could not be decoded.
    """

    image: UInt8[np.ndarray, "h w 3"]
    downsample: float
    unreadable: list[tuple[int, int, int]]


def read(slide: Any, mpp: float | int) -> Thumbnail:
    """The whole slide at about `mpp` um/px.

    Level-0 pixels per thumbnail pixel are rounded to a whole number. Blocks that cannot be
    decoded are retried in quarters, and what remains is left white and listed.

    Args:
      slide: an open `Slide`.
      mpp: um/px.

    Raises:
      SlideError: nothing of it can be decoded.
    """
    downsample = max(1, round(mpp / slide.mpp))
    level = slide.source_level(1, downsample)
    width, height = (math.ceil(n / downsample) for n in slide.dimensions)
    filling = _Filling(slide, level, downsample, np.full((height, width, 3), 255, np.uint8))
    across, down = filling.block()
    decoded = 0
    for top in range(0, height, down):
        for left in range(0, width, across):
            decoded += filling.fill(left, top, min(left + across, width), min(top + down, height))
    if not decoded:
        raise SlideError(
            f"{slide.path}: not one of its pixels can be decoded ({filling.reason}); copy the file "
            "again, or look whether a viewer opens it."
        )
    if filling.unreadable:
        logging.warning("%s: %d blocks cannot be decoded", slide.path, len(filling.unreadable))
    return Thumbnail(filling.image, float(downsample), filling.unreadable)


class _Filling:
    """A thumbnail in the making."""

    def __init__(self, slide: Any, level: int, downsample: int, image: np.ndarray):
        self.image, self.unreadable, self.reason = image, [], ""
        self._slide, self._level, self._downsample = slide, level, downsample

    def block(self) -> tuple[int, int]:
        """(width, height) in thumbnail pixels of what is read at once; strips as wide as they are,
        since every read decodes the whole of them."""
        level = self._slide.levels[self._level]
        scale = level.downsample / self._downsample
        across = max(_BLOCK_PX, level.dimensions[0]) if level.in_strips else _BLOCK_PX
        down = _BLOCK_PX * _BLOCK_PX // across
        return max(1, math.ceil(across * scale)), max(1, int(down * scale))

    def fill(self, left: int, top: int, right: int, bottom: int) -> int:
        """Read a block, in thumbnail pixels, or its quarters.

        Returns:
          How many thumbnail pixels could be decoded.
        """
        width, height = right - left, bottom - top
        if width <= 0 or height <= 0:
            return 0
        box = tuple(n * self._downsample for n in (left, top, right, bottom))
        try:
            # Area averaging: exact for whole-number factors, and the quickest filter.
            pixels = self._slide.resample(self._level, box, (width, height), Image.Resampling.BOX)
        except UndecodableError as error:
            self.reason = str(error)
            side = max(width, height)
            raw = side * self._downsample / self._slide.levels[self._level].downsample
            if side == 1 or raw <= _SMALLEST_BLOCK_PX:
                self.unreadable.append((box[0], box[1], side * self._downsample))
                return 0
            x, y = left + (side + 1) // 2, top + (side + 1) // 2
            quarters = (
                (left, top, min(x, right), min(y, bottom)),
                (x, top, right, min(y, bottom)),
                (left, y, min(x, right), bottom),
                (x, y, right, bottom),
            )
            return sum(self.fill(*quarter) for quarter in quarters)
        self.image[top:bottom, left:right] = pixels
        return width * height
