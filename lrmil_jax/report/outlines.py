"""Outlines of a lesion mask, as viewers draw them over a slide."""

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image
from skimage import measure

_LARGEST_PX = 2048  # longest side of the mask that is followed
_TOLERANCE = 0.5  # px of that mask by which an outline may be simplified


def outlines(
    mask: Bool[np.ndarray, "mh mw"], dimensions: tuple[int, int]
) -> list[Int[np.ndarray, "_ 2"]]:
    """The borders of the areas of a mask, and of the holes in them.

    Args:
      mask: of the whole slide, of any size.
      dimensions: width and height of the slide in level-0 px.

    Returns:
      Closed rings of level-0 places (x, y), the longest first; none of an empty mask.
    """
    whole = _reduced(mask)
    height, width = whole.shape
    scale = np.array([dimensions[0] / width, dimensions[1] / height])
    # With a rim without lesion, so that an outline is closed at the slide's edge.
    rings = measure.find_contours(np.pad(whole, 1).astype(np.float32), 0.5)
    simple = [measure.approximate_polygon(ring, _TOLERANCE) for ring in rings]
    # From the centre of a pixel of the padded mask, (row, column), to level-0 px.
    placed = [np.round((ring[:, ::-1] - 0.5) * scale).astype(np.int64) for ring in simple]
    return sorted(placed, key=len, reverse=True)


def _reduced(mask: Bool[np.ndarray, "mh mw"]) -> Bool[np.ndarray, "h w"]:
    """A mask of bounded size; whatever has some lesion in it stays lesion."""
    factor = -(-max(mask.shape) // _LARGEST_PX)
    if factor == 1:
        return mask
    size = tuple(-(-side // factor) for side in mask.shape[::-1])
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize(size, Image.Resampling.BOX)) > 0
