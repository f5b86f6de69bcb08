"""A picture as a pyramid of JPEG tiles that a page holds itself."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

TILE_PX = 512
_QUALITY = 72


def levels(picture: UInt8[np.ndarray, "h w 3"]) -> list[dict]:
    """The picture and its halves down to one tile, the largest first.

    Returns:
      Of each level `width`, `height` and `tiles`: base64 JPEG by "column_row"; white ones, where
      nothing is, are left out.
    """
    image = Image.fromarray(picture)
    made = [_level(image)]
    while max(image.size) > TILE_PX:
        image = image.reduce(2)
        made.append(_level(image))
    return made


def _level(image: Image.Image) -> dict:
    tiles = {}
    for top in range(0, image.height, TILE_PX):
        for left in range(0, image.width, TILE_PX):
            edges = (left, top, min(left + TILE_PX, image.width), min(top + TILE_PX, image.height))
            tile = image.crop(edges)
            if min(low for low, _ in tile.getextrema()) < 255:
                tiles[f"{left // TILE_PX}_{top // TILE_PX}"] = jpeg(tile)
    return {"width": image.width, "height": image.height, "tiles": tiles}


def jpeg(image: Image.Image, *, quality: int = _QUALITY) -> str:
    """A picture as base64 JPEG."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return base64.b64encode(written.getvalue()).decode()
